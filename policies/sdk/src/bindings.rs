//! Generated bindings to `wit/`, committed so that a policy builds in seconds. `policies/README.md` has the command
//! that generates them.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports,
    unused_unsafe,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    clippy::use_self,
    reason = "generated code"
)]

pub mod explaining;
pub mod learning;
pub mod policy;

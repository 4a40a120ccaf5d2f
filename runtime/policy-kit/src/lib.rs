//! What an author of policies needs beside a router: a folder to begin with, the build of a component in any of four
//! languages, and the time of its decisions.
//!
//! - [`write_folder`] writes a folder that builds and tests by itself: everything that it needs of Signalbox is inside this
//!   crate.
//! - [`build_folder`] runs the tool of the folder's language. A missing tool is an error that says how to install it.
//! - [`measure`] times a policy as a router calls it.
//!
//! Nothing here decides whether a router accepts a component: that is
//! [`PolicyEngine::admit`](signalbox_policy_host::PolicyEngine::admit).

pub use bench::{Bench, SIZES, Timing, measure};
pub use build::{BuildError, build_folder};
pub use component::component_of;
pub use folder::{FolderError, write_folder};
pub use language::Language;

mod bench;
mod build;
mod component;
mod folder;
mod language;
mod templates;
mod tools;

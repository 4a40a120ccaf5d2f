//! Tests of the real binary: what a user does, done by a program.
//!
//! A test starts `runtime` with [`Cluster`] on free ports of its own, talks HTTP to it with [`Api`], and looks at
//! what it answers, at `/admin/v1/…` and at `/metrics`. A [`Fleet`] is several of them on a real NATS and a real etcd. Nothing of Signalbox is linked in: what cannot be seen from
//! outside is tested by the crates themselves.
//!
//! ```no_run
//! use serde_json::json;
//! use signalbox_integration_tests::{Cluster, workload::Workload};
//!
//! # async fn a_repeated_prompt_goes_where_it_was() -> anyhow::Result<()> {
//! let cluster = Cluster::sim(&["--workers=2"]).await?;
//! let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(600), "max_tokens": 4});
//! let first = cluster.api.post("/v1/chat/completions", &body).await?;
//! let again = cluster.api.post("/v1/chat/completions", &body).await?;
//! assert_eq!(again.header("x-signalbox-worker"), first.header("x-signalbox-worker"));
//! # Ok(())
//! # }
//! ```
//!
//! How to write one:
//!
//! - A file is a subject, a test is a behaviour, and its name says which. It returns `anyhow::Result<()>`: what goes
//!   wrong around the assertions comes out with the process's standard error in it.
//! - Await events ([`Process::line`](process::Process::line), [`eventually()`], the next [`Event`]); never sleep and
//!   hope. Deadlines are generous and are there to fail, not to measure.
//! - A time is asserted only where a bound is itself the behaviour; otherwise print it.
//! - Everything a test started ends with it, however it ends: dropping a [`Cluster`] kills the process and its
//!   workers.
//!
//! The binary is `target/<profile>/runtime` beside the tests, or whatever the environment variable
//! `SIGNALBOX_BINARY` names. `make test` builds it first.

mod answer;
mod binary;
mod client;
mod cluster;
mod eventually;
pub mod fleet;
mod metrics;
pub mod process;
pub mod workload;

pub use answer::{Event, EventStream, Reply, Streamed};
pub use binary::{binary, workspace_root};
pub use client::Api;
pub use cluster::{Cluster, Worker};
pub use eventually::{DEADLINE, eventually};
pub use fleet::Fleet;
pub use metrics::Metrics;

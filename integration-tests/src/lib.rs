//! Tests of the real binary, used as a user does.
//!
//! A test starts `runtime` with [`Cluster`] on free ports, sends it HTTP requests with [`Api`], and checks the answers,
//! `/admin/v1/…` and `/metrics`. A [`Fleet`] is several routers and workers on a real NATS and a real etcd. A
//! [`FakeEngine`](fake_engine::FakeEngine) stands for an engine next door. No code of Signalbox is linked in but the fake
//! engine's tokenizer: what is not visible from outside is tested in the crates themselves.
//!
//! ```no_run
//! use serde_json::json;
//! use signalbox_integration_tests::{Cluster, workload::Workload};
//!
//! # async fn a_repeated_prompt_goes_to_the_same_worker() -> anyhow::Result<()> {
//! let cluster = Cluster::sim(&["--workers=2"]).await?;
//! let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(600), "max_tokens": 4});
//! let first = cluster.api.post("/v1/chat/completions", &body).await?;
//! let again = cluster.api.post("/v1/chat/completions", &body).await?;
//! assert_eq!(again.header("x-signalbox-worker"), first.header("x-signalbox-worker"));
//! # Ok(())
//! # }
//! ```
//!
//! How to write a test:
//!
//! - A file is a subject, a test is a behaviour, and its name states the behaviour. It returns `anyhow::Result<()>`: an
//!   error outside the assertions contains the process's standard error.
//! - Wait for events ([`Process::line`](process::Process::line), [`eventually()`], the next [`Event`]), not for a fixed
//!   time. Deadlines are long: they end a test that hangs, and measure nothing.
//! - Assert a time only if the bound is the behaviour under test; otherwise print it.
//! - Every process that a test starts ends with the test: dropping a [`Cluster`] kills the process and its workers.
//!
//! The binary is `target/<profile>/runtime` beside the tests, or the one that the environment variable
//! `SIGNALBOX_BINARY` names. `make test` builds it first.

mod answer;
mod binary;
mod client;
mod cluster;
pub mod disturbed;
pub mod engines;
mod eventually;
pub mod fake_engine;
pub mod fleet;
pub mod hub;
mod metrics;
pub mod process;
pub mod workload;

pub use answer::{Event, EventStream, Reply, Streamed};
pub use binary::{binary, workspace_root};
pub use client::Api;
pub use cluster::{Cluster, Worker};
pub use engines::NextDoor;
pub use eventually::{DEADLINE, eventually};
pub use fleet::Fleet;
pub use metrics::Metrics;

//! Membership: which workers and routers are present.
//!
//! - A worker [registers](Discovery::register) its card and is present until the [`Registration`] is dropped; a router
//!   likewise, with [`register_router`](Discovery::register_router).
//! - A [`Watch`] delivers every worker present, then every change. The changes of an id alternate: it joins, leaves,
//!   joins again. A restarted worker leaves before it joins again.
//! - A slow watch skips intermediate steps and delivers the present state. So nothing queues up for it, and it is never
//!   wrong for long.
//! - [`routers`](Discovery::routers) is the set of all routers present, as one value that changes.
//!
//! [`MemoryDiscovery`] is membership within a process, [`EtcdDiscovery`] across machines; the same tests run against
//! both. Neither checks health: a registered worker may not answer, and a worker whose key vanished from etcd may still
//! answer ([`Departure`]). `README.md` beside this crate's manifest documents the keys in etcd for other programs.

mod change;
mod discovery;
mod error;
mod etcd;
mod membership;
mod memory;
mod routers;
#[cfg(test)]
mod tests;

pub use change::{Departure, WorkerChange};
pub use discovery::Discovery;
pub use error::{DiscoveryError, StaleEpoch};
pub use etcd::{EtcdConfig, EtcdDiscovery, EtcdTls, MAX_CARD_BYTES};
pub use membership::{Registration, Watch};
pub use memory::MemoryDiscovery;

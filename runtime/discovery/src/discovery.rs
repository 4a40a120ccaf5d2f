//! What every kind of membership offers: register, and watch who is present.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use signalbox_protocol::{PlaneStatus, RouterCard, RouterId, WorkerCard};
use tokio::sync::watch;

use crate::{
    error::StaleEpoch,
    membership::{Registration, Watch},
};

/// Membership: which workers and routers are present.
pub trait Discovery: Send + Sync + Debug + 'static {
    /// Makes a worker present until the registration is dropped. A later epoch replaces an earlier one; an earlier one
    /// is refused.
    ///
    /// The same epoch may register again, with another card: watches see it leave and join. Dropping the previous
    /// registration then changes nothing.
    ///
    /// # Errors
    /// [`StaleEpoch`] if a later epoch is known: on etcd, if this process has registered it or watches it. A later
    /// epoch that appears afterwards is logged, and the card is registered as soon as the later epoch is gone.
    fn register(&self, card: Arc<WorkerCard>) -> Result<Registration, StaleEpoch>;

    /// Watches the workers: every worker present now, as `Joined`, then every change, in order and without loss.
    fn watch(&self) -> Watch;

    /// Makes a router present until the registration is dropped. The same id again replaces the card.
    fn register_router(&self, card: RouterCard) -> Registration;

    /// All routers present now, those registered here included, and every change.
    fn routers(&self) -> watch::Receiver<Arc<BTreeMap<RouterId, RouterCard>>>;

    /// The state of the transport, and every change of it.
    fn status(&self) -> watch::Receiver<PlaneStatus>;
}

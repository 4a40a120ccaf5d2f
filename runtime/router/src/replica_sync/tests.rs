use signalbox_discovery::MemoryDiscovery;
use signalbox_event_plane::MemoryBroadcast;
use signalbox_kv_index::WorkerSlot;

use super::*;
use crate::{
    roster::Roster,
    supervisor::{ActorHandle, Panic},
    test_support::{card, join, until},
};

/// A router that has in flight what the test reserves.
struct TestRouter {
    load: LoadTable,
    actor: ActorHandle<ReplicaSync>,
}

impl TestRouter {
    fn start(id: &str, broadcast: &MemoryBroadcast, view: &Arc<ArcSwap<RosterView>>) -> Self {
        let load = LoadTable::default();
        let config = ReplicaConfig {
            id: id.parse().unwrap(),
            broadcast: Arc::new(broadcast.clone()),
        };
        let discovery: Vec<Arc<dyn Discovery>> = vec![Arc::new(MemoryDiscovery::default())];
        let (view, published) = (view.clone(), PublishedLoads::default());
        let actor = ActorHandle::start("replica_sync", {
            let load = load.clone();
            move || {
                ReplicaSync::new(
                    config.clone(),
                    load.clone(),
                    view.clone(),
                    RosterListeners::default(),
                    discovery.clone(),
                    published.clone(),
                )
            }
        });
        Self { load, actor }
    }

    /// Waits until this router counts this many requests of the other routers on a worker.
    async fn counts(&self, worker: WorkerSlot, requests: u32) {
        until(|| self.load.get(worker).others.requests == requests).await;
    }

    async fn panic(&self) {
        assert!(self.actor.address().send(Panic).await.is_err());
    }
}

/// A view with two ready workers of one model.
fn two_workers() -> (Arc<ArcSwap<RosterView>>, [WorkerSlot; 2]) {
    let mut roster = Roster::default();
    let slots = ["a", "b"].map(|name| join(&mut roster, &card(name, 1)));
    (Arc::new(ArcSwap::from_pointee(roster.view())), slots)
}

#[actix_rt::test]
async fn after_a_panic_a_router_counts_the_load_of_the_others_again() {
    let (view, [a, b]) = two_workers();
    let broadcast = MemoryBroadcast::default();
    let failing = TestRouter::start("failing", &broadcast, &view);
    let other = TestRouter::start("other", &broadcast, &view);
    let on_a = other.load.reserve(a, 10, 1);
    failing.counts(a, 1).await;

    failing.panic().await;
    drop(on_a);
    let _on_b = [other.load.reserve(b, 10, 1), other.load.reserve(b, 10, 1)];
    failing.counts(b, 2).await;
    failing.counts(a, 0).await;
}

#[actix_rt::test]
async fn after_a_panic_the_others_count_the_load_of_the_router_again() {
    let (view, [a, b]) = two_workers();
    let broadcast = MemoryBroadcast::default();
    let failing = TestRouter::start("failing", &broadcast, &view);
    let other = TestRouter::start("other", &broadcast, &view);
    // Several updates, so that a router that began with the first sequence number again would be ignored.
    let mut on_a = Vec::new();
    for requests in 1..=3 {
        on_a.push(failing.load.reserve(a, 10, 1));
        other.counts(a, requests).await;
    }

    failing.panic().await;
    on_a.truncate(1);
    let _on_b = failing.load.reserve(b, 10, 1);
    other.counts(a, 1).await;
    other.counts(b, 1).await;
}

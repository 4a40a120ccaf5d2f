//! Servers that are missing, killed, suspended and wiped.

use super::*;

#[tokio::test]
async fn a_server_may_be_missing_at_the_start() {
    let mut server = EtcdServer::prepare();
    let discovery = start(&etcd_config(&server)).await;
    let mut watch = discovery.watch();
    let _a = discovery.register(card("a", 1)).unwrap();
    let mut status = discovery.status();
    let refused = status.wait_for(|status| status.detail.contains("refused"));
    let refused = tokio::time::timeout(PATIENCE, refused)
        .await
        .expect("in time")
        .unwrap()
        .clone();
    assert_eq!(refused.state, PlaneState::Connecting, "{refused:?}");
    server.start();
    expect(&mut watch, [joined("a", 1)]).await;
    becomes(&*discovery, PlaneState::Up).await;
}

#[tokio::test]
async fn another_endpoint_is_used_when_one_is_away() {
    let server = shared_etcd();
    let mut config = etcd_config(&server);
    config.endpoints.insert(0, EtcdServer::prepare().address());
    becomes(&*start(&config).await, PlaneState::Up).await;
}

#[tokio::test]
async fn workers_stay_present_while_a_killed_server_restarts() {
    let mut server = EtcdServer::started();
    let config = etcd_config(&server);
    let (workers, router) = (start(&config).await, start(&config).await);
    let mut watch = router.watch();
    let _a = workers.register(card("a", 1)).unwrap();
    let gone = workers.register(card("gone", 1)).unwrap();
    expect(&mut watch, [joined("a", 1), joined("gone", 1)]).await;
    let key = workers.keys.worker(&card("a", 1));
    let lease = lease_of(&mut raw(&server).await, &key).await;
    server.kill();
    becomes(&*workers, PlaneState::Down).await;
    becomes(&*router, PlaneState::Down).await;
    drop(gone);
    let _b = workers.register(card("b", 1)).unwrap();
    server.start();
    // No change of "a", and the changes made meanwhile.
    expect(&mut watch, [left("gone", 1), joined("b", 1)]).await;
    becomes(&*router, PlaneState::Up).await;
    assert_eq!(lease_of(&mut raw(&server).await, &key).await, lease);
}

#[tokio::test]
async fn a_suspended_server_is_detected_and_used_again() {
    let server = EtcdServer::started();
    let config = etcd_config(&server);
    let (workers, router) = (start(&config).await, start(&config).await);
    let (mut watch, mut present) = (router.watch(), BTreeSet::new());
    let _a = workers.register(card("a", 1)).unwrap();
    becomes_present(&mut watch, &mut present, &["a"]).await;
    server.suspend();
    let began = Instant::now();
    becomes(&*workers, PlaneState::Down).await;
    println!(
        "a registering process detected a suspended server after {:?}",
        began.elapsed()
    );
    becomes(&*router, PlaneState::Down).await;
    println!(
        "a watching process detected a suspended server after {:?}",
        began.elapsed()
    );
    let _b = workers.register(card("b", 1)).unwrap();
    server.resume();
    becomes_present(&mut watch, &mut present, &["a", "b"]).await;
    becomes(&*router, PlaneState::Up).await;
}

#[tokio::test]
async fn a_lease_that_expired_during_an_outage_is_replaced() {
    let mut server = EtcdServer::started();
    let config = EtcdConfig {
        lease_ttl: BRIEF,
        ..etcd_config(&server)
    };
    let (workers, router) = (start(&config).await, start(&config).await);
    let (mut watch, mut present) = (router.watch(), BTreeSet::new());
    let _a = workers.register(card("a", 1)).unwrap();
    becomes_present(&mut watch, &mut present, &["a"]).await;
    let key = workers.keys.worker(&card("a", 1));
    let lease = lease_of(&mut raw(&server).await, &key).await.unwrap();
    server.kill();
    becomes(&*workers, PlaneState::Down).await;
    server.start();
    // The test's client reconnects first, and waits until the lease is gone.
    let mut raw = raw(&server).await;
    while raw
        .lease_revoke(lease)
        .await
        .is_err_and(|error| !error.to_string().contains("not found"))
    {
        tokio::task::yield_now().await;
    }
    becomes(&*workers, PlaneState::Up).await;
    let _b = workers.register(card("b", 1)).unwrap();
    becomes_present(&mut watch, &mut present, &["a", "b"]).await;
    assert_ne!(lease_of(&mut raw, &key).await, Some(lease));
}

#[tokio::test]
async fn all_processes_register_again_with_a_server_that_lost_its_data() {
    let mut server = EtcdServer::started();
    let config = etcd_config(&server);
    let (workers, others, router) = (start(&config).await, start(&config).await, start(&config).await);
    let (mut watch, mut present) = (router.watch(), BTreeSet::new());
    let _a = workers.register(card("a", 1)).unwrap();
    let _b = others.register(card("b", 1)).unwrap();
    let gone = others.register(card("gone", 1)).unwrap();
    let _router = router.register_router(router_card("r"));
    becomes_present(&mut watch, &mut present, &["a", "b", "gone"]).await;
    server.wipe();
    drop(gone);
    server.start();
    // The revisions of the new data pass the old ones before the processes are back.
    let mut raw = raw(&server).await;
    for _ in 0..50 {
        while raw.put("/elsewhere", "", None).await.is_err() {}
    }
    becomes_present(&mut watch, &mut present, &["a", "b"]).await;
    routers_become(&*router, &["r"]).await;
    let _c = workers.register(card("c", 1)).unwrap();
    becomes_present(&mut watch, &mut present, &["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_withdrawal_does_not_wait_for_a_server_that_is_away() {
    let server = EtcdServer::prepare();
    let discovery = start(&etcd_config(&server)).await;
    let _a = discovery.register(card("a", 1)).unwrap();
    let withdrawn = tokio::time::timeout(PATIENCE, discovery.withdraw()).await;
    assert_eq!(withdrawn, Ok(false));
}

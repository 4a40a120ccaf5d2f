//! A cluster of three members that loses its leader, with its data.

use signalbox_test_servers::EtcdCluster;

use super::*;

/// The number of the member that leads.
async fn leader(cluster: &EtcdCluster) -> usize {
    for (number, member) in cluster.members.iter().enumerate() {
        let mut client = Client::connect([member.address()], None).await.unwrap();
        let status = client.status().await.unwrap();
        if status.leader() == status.header().unwrap().member_id() {
            return number;
        }
    }
    panic!("a healthy cluster has a leader")
}

#[tokio::test]
async fn workers_stay_present_when_the_leader_is_killed_and_its_data_is_gone() {
    let mut cluster = EtcdCluster::started();
    let config = EtcdConfig {
        endpoints: cluster.addresses(),
        ..EtcdConfig::default()
    };
    let (workers, router) = (start(&config).await, start(&config).await);
    let mut watch = router.watch();
    let _a = workers.register(card("a", 1)).unwrap();
    expect(&mut watch, [joined("a", 1)]).await;
    let leading = leader(&cluster).await;
    cluster.members[leading].wipe();
    // No change of "a", although a session of either process may have been with the leader.
    let b = workers.register(card("b", 1)).unwrap();
    expect(&mut watch, [joined("b", 1)]).await;
    drop(b);
    expect(&mut watch, [left("b", 1)]).await;
    becomes(&*workers, PlaneState::Up).await;
    becomes(&*router, PlaneState::Up).await;
}

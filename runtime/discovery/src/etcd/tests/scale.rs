//! Measures how long registrations take, without assertions.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_registrations_join_and_end_with_their_processes() {
    let server = EtcdServer::started();
    let config = EtcdConfig {
        lease_ttl: BRIEF,
        ..etcd_config(&server)
    };
    let router = start(&config).await;
    let (mut watch, mut present) = (router.watch(), BTreeSet::new());
    becomes(&*router, PlaneState::Up).await;
    let names: Vec<String> = (0..1_000).map(|n| format!("w{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let began = Instant::now();
    let (mut processes, mut registrations) = (Vec::new(), Vec::new());
    for hundred in names.chunks(100) {
        let process = start(&config).await;
        registrations.extend(
            hundred
                .iter()
                .map(|name| process.register(card(name, 1)).unwrap()),
        );
        processes.push(process);
    }
    becomes_present(&mut watch, &mut present, &names).await;
    println!(
        "1,000 registrations of 10 processes were delivered after {:?}",
        began.elapsed()
    );
    // As if the processes were killed: their tasks end, and no registration is withdrawn.
    drop(processes);
    let began = Instant::now();
    becomes_present(&mut watch, &mut present, &[]).await;
    println!(
        "all had left {:?} after their processes exited, with leases of {BRIEF:?}",
        began.elapsed()
    );
}

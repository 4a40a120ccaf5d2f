use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn command(arguments: &[&str]) -> Command {
    Cli::try_parse_from([&["runtime"], arguments].concat())
        .unwrap()
        .command
}

fn router_of(arguments: &[&str]) -> anyhow::Result<RouterSettings> {
    let Command::Serve(options) = command(&[&["serve"], arguments].concat()) else {
        panic!("serve")
    };
    (*options).try_into()
}

fn worker_of(arguments: &[&str]) -> anyhow::Result<WorkerSettings> {
    let Command::Worker(options) = command(&[&["worker"], arguments].concat()) else {
        panic!("worker")
    };
    (*options).try_into()
}

#[track_caller]
fn check_refused(settings: anyhow::Result<impl std::fmt::Debug>, words: &[&str]) {
    let message = format!("{:#}", settings.unwrap_err());
    for word in words {
        assert!(message.contains(word), "{word:?} in {message:?}");
    }
    assert!(!message.ends_with('.'), "a fragment: {message}");
}

#[test]
fn addresses_name_what_is_wrong() {
    assert_eq!(addresses("a:1, b:2").unwrap(), ["a:1", "b:2"]);
    for (list, wrong) in [("a:1,b", "\"b\""), ("", "\"\""), ("a:0", "a:0"), (":1", ":1")] {
        let message = addresses(list).unwrap_err().to_string();
        assert!(message.contains(wrong), "{message}");
    }
}

#[test]
fn a_router_collects_its_discovery_from_all_urls() {
    let settings = router_of(&[
        "--discovery=static://a:1,b:2",
        "--discovery=etcd://c:3",
        "--namespace=blue",
        "--index-mib=2",
    ])
    .unwrap();
    assert_eq!(settings.planes.static_workers, ["a:1", "b:2"]);
    let etcd = settings.planes.etcd.unwrap();
    assert_eq!(etcd.endpoints, ["http://c:3"]);
    assert_eq!(
        (etcd.namespace.as_str(), settings.http.namespace.as_str()),
        ("blue", "blue")
    );
    assert_eq!(settings.index_bytes, 2 * 1024 * 1024);
    assert!(settings.planes.nats.is_none() && settings.replica_sync);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let known = "--discovery=static://a:1";
    check_refused(router_of(&[]), &["--discovery", "static://", "etcd://"]);
    check_refused(
        router_of(&["--discovery=etcd://a:1", "--discovery=etcd://b:1"]),
        &["etcd twice"],
    );
    check_refused(
        router_of(&[known, "--events=http://nats"]),
        &["--events", "nats://host:port"],
    );
    check_refused(
        router_of(&[known, "--events=nats://a:1", "--policy-dir=x"]),
        &["--policy-dir", "NATS"],
    );
    check_refused(worker_of(&[known]), &["registers", "etcd://"]);
    check_refused(
        worker_of(&["--request-plane=nats"]),
        &["--request-plane nats", "--events"],
    );
    check_refused(
        worker_of(&["--engine=sim", "--sim-workers=3", "--listen=127.0.0.1:65534"]),
        &["--sim-workers 3", "65534", "65535"],
    );
}

#[test]
fn simulated_workers_are_numbered_and_have_ports_of_their_own() {
    let workers = |listen: &str| {
        let arguments = ["--engine=sim", "--id=gpu", "--sim-workers=2", listen];
        worker_of(&arguments)
            .unwrap()
            .workers
            .into_iter()
            .map(|place| format!("{} {}", place.id, place.listen.port()))
            .collect::<Vec<_>>()
    };
    assert_eq!(workers("--listen=127.0.0.1:7000"), ["gpu-0 7000", "gpu-1 7001"]);
    assert_eq!(workers("--listen=127.0.0.1:0"), ["gpu-0 0", "gpu-1 0"]);
}

#[test]
fn workers_of_one_machine_share_its_cores() {
    let Command::Up(options) = command(&["up", "--engine=sim", "--workers=64"]) else {
        panic!("up")
    };
    let settings = UpSettings::try_from(*options).unwrap();
    assert!(settings.is_engine_chosen && settings.engine.threads.unwrap() >= 1);
    assert_eq!(settings.router.planes.namespace, "default");
}

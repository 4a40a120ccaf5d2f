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
fn an_error_about_an_address_has_no_password() {
    for wrong in [
        "--discovery=etcd://me:secret@etcd:2379",
        "--discovery=etcd://me:secret@etcd",
        "--discovery=static://me:sec,secret@worker",
        "--discovery=consul://me:secret@host",
    ] {
        let message = format!("{:#}", router_of(&[wrong]).unwrap_err());
        assert!(
            message.contains("***@") && !message.contains("secret"),
            "{message}"
        );
    }
    let message = router_of(&["--discovery=static://a:1", "--events=http://me:secret@nats"]).unwrap_err();
    assert!(!format!("{message:#}").contains("secret"));
}

#[test]
fn the_limits_of_connections_and_bodies_are_set_by_options() {
    let known = "--discovery=static://a:1";
    let default = router_of(&[known]).unwrap();
    assert_eq!(
        (default.max_connections, default.max_connections_per_address),
        (None, None)
    );
    assert_eq!(default.http.body_budget_bytes, 512 * MIB);
    let set = [
        known,
        "--max-connections=9",
        "--max-connections-per-address=0",
        "--body-memory-mib=16",
    ];
    let set = router_of(&set).unwrap();
    assert_eq!(
        (set.max_connections, set.max_connections_per_address),
        (Some(9), Some(0))
    );
    assert_eq!(set.http.body_budget_bytes, 16 * MIB);
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
    check_refused(
        router_of(&[known, "--max-body-mib=64", "--body-memory-mib=63"]),
        &["--body-memory-mib is 63", "--max-body-mib is 64"],
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
fn a_worker_without_a_name_has_one_of_its_own() {
    let name = |arguments: &[&str]| {
        let arguments = [&["--engine=sim", "--advertise-host=gpu.rack-3"], arguments].concat();
        worker_of(&arguments).unwrap().name.to_string()
    };
    assert_eq!(name(&[]), "gpu-rack-3-7000");
    assert_eq!(name(&["--listen=127.0.0.1:7001"]), "gpu-rack-3-7001");
    assert_eq!(name(&["--id=w"]), "w");
    let own = std::process::id().to_string();
    assert!(name(&["--listen=127.0.0.1:0"]).ends_with(&own));
    let nats = ["--request-plane=nats", "--events=nats://127.0.0.1:4222"];
    assert!(name(&nats).ends_with(&own), "the port is not used then");
}

fn up_of(arguments: &[&str]) -> anyhow::Result<UpSettings> {
    let Command::Up(options) = command(&[&["up"], arguments].concat()) else {
        panic!("up")
    };
    (*options).try_into()
}

#[test]
fn workers_of_one_machine_share_its_cores() {
    let settings = up_of(&["--engine=sim", "--workers=64"]).unwrap();
    assert_eq!(settings.router.planes.namespace, "default");
    let UpWorkers::Alike {
        number,
        engine,
        is_engine_chosen,
    } = settings.workers
    else {
        panic!("{:?}", settings.workers)
    };
    assert!(number == 64 && is_engine_chosen && engine.threads.unwrap() >= 1);
}

#[test]
fn each_engine_that_runs_already_gets_a_worker_named_after_its_address() {
    let settings = up_of(&[
        "--upstream=http://gpu-1:8000",
        "--upstream=http://10.0.0.2:8001/v1",
        "--block-size=32",
    ]);
    let UpWorkers::NextDoor(workers) = settings.unwrap().workers else {
        panic!("engines next door")
    };
    let shown: Vec<_> = workers
        .iter()
        .map(|(name, engine)| {
            let upstream = engine.upstream.as_ref().unwrap();
            (
                name.as_str(),
                upstream.url.as_str(),
                engine.kind,
                engine.block_size,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("gpu-1-8000", "http://gpu-1:8000", EngineKind::Openai, Some(32)),
            (
                "10-0-0-2-8001",
                "http://10.0.0.2:8001",
                EngineKind::Openai,
                Some(32)
            ),
        ]
    );
    let settings = worker_of(&["--upstream=http://h:1", "--upstream-key=secret", "--hf-home=/x"]).unwrap();
    let upstream = settings.engine.upstream.as_ref().unwrap();
    assert_eq!(upstream.key.as_deref(), Some("secret"));
    assert!(!format!("{settings:?}").contains("secret"));
    if std::env::var_os("HF_HUB_CACHE").is_none() {
        assert_eq!(
            upstream.hub_cache.as_deref(),
            Some(std::path::Path::new("/x/hub"))
        );
    }
}

#[test]
fn authorities_are_for_the_engines_with_tls() {
    let settings = up_of(&[
        "--upstream=https://gpu-1",
        "--upstream=http://gpu-2:8000",
        "--upstream-ca=ca.pem",
    ]);
    let UpWorkers::NextDoor(workers) = settings.unwrap().workers else {
        panic!("engines next door")
    };
    let shown: Vec<_> = workers
        .iter()
        .map(|(_, engine)| {
            let upstream = engine.upstream.as_ref().unwrap();
            (upstream.url.as_str(), upstream.ca.is_some())
        })
        .collect();
    assert_eq!(shown, [("https://gpu-1:443", true), ("http://gpu-2:8000", false)]);
}

#[test]
fn the_hub_is_the_named_one_or_none() {
    let hub_of = |arguments: &[&str]| {
        let settings = worker_of(&[&["--upstream=http://h:1"], arguments].concat()).unwrap();
        assert!(!format!("{settings:?}").contains("hf_secret"));
        settings.engine.upstream.unwrap().hub
    };
    let hub = hub_of(&["--hf-endpoint=https://mirror", "--hf-token=hf_secret"]).unwrap();
    assert_eq!(
        (hub.endpoint.as_str(), hub.token.as_deref()),
        ("https://mirror", Some("hf_secret"))
    );
    let hub = hub_of(&["--hf-endpoint=", "--hf-token="]).unwrap();
    assert_eq!(
        (hub.endpoint.as_str(), hub.token),
        ("https://huggingface.co", None)
    );
    assert_eq!(hub_of(&["--hf-hub-offline"]), None);
    check_refused(
        worker_of(&["--upstream=http://h:1", "--hf-endpoint=mirror"]),
        &["mirror", "https://host"],
    );
}

#[test]
fn options_for_other_engines_are_refused() {
    let one = "--upstream=http://h:1";
    for (arguments, words) in [
        (
            &["--engine=openai"][..],
            &["--engine openai", "--upstream http://host:port"][..],
        ),
        (&["--engine=sim", one], &["--upstream", "--engine openai"]),
        (&[one, "--model=x.gguf"], &["--model"]),
        (
            &[one, "--upstream-ca=ca.pem"],
            &["--upstream-ca", "https://host:port"],
        ),
        (
            &["--engine=sim", "--upstream-ca=ca.pem"],
            &["--upstream-ca", "--upstream"],
        ),
        (&[one, "--threads=2"], &["--threads"]),
        (
            &["--engine=sim", "--kv-events=tcp://h:1"],
            &["--kv-events", "--upstream"],
        ),
        (
            &["--engine=sim", "--context-length=5"],
            &["--context-length", "--upstream"],
        ),
    ] {
        check_refused(worker_of(arguments), words);
        check_refused(up_of(arguments), words);
    }
    check_refused(
        worker_of(&[one, "--upstream=http://h:2"]),
        &["one engine", "names 2"],
    );
    check_refused(worker_of(&[one, "--sim-workers=2"]), &["--sim-workers 2"]);
    check_refused(up_of(&[one, one]), &["twice"]);
    check_refused(up_of(&[one, "--workers=2"]), &["--workers", "--upstream"]);
    check_refused(
        up_of(&[one, "--upstream=http://h:2", "--kv-events=tcp://h:1"]),
        &["--kv-events", "one engine"],
    );
}

//! Tests of the NATS transport alone: servers and workers that stop, messages that are lost, and bytes written by hand.

use signalbox_test_servers::NatsServer;

use super::{network::*, raw_nats::*, *};
use crate::nats::NatsListener;

/// Settings with a short backoff, a long dial timeout and the default pings.
fn eager() -> LinkConfig {
    LinkConfig {
        connect_timeout: PATIENCE,
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ..LinkConfig::default()
    }
}

fn lost(error: LinkError) -> String {
    match error {
        LinkError::Lost { reason, .. } => reason,
        other => panic!("not lost but {other:?}"),
    }
}

#[actix_rt::test]
async fn a_worker_without_a_listener_is_unreachable_at_once() {
    let network = Network::of(Over::Nats).await;
    // The dial has no practical limit, so the failure comes from the server's report.
    let config = LinkConfig {
        connect_timeout: Duration::from_secs(3600),
        ..LinkConfig::default()
    };
    let mut link = network.link("nats:worker-0", config);
    let mut stream = link.open(generate());
    let LinkError::Unreachable { reason, .. } = next_error(&mut stream).await else {
        panic!("reachable")
    };
    assert!(reason.contains("no worker worker-0 listens on NATS"), "{reason}");
    link.down().await;
}

#[actix_rt::test]
async fn errors_explain_addresses_that_cannot_be_dialled() {
    let mut without = Link::to("nats:worker-0", LinkConfig::default());
    let reason = without.down().await;
    assert!(
        reason.contains("over NATS") && reason.contains("--events nats://"),
        "{reason}"
    );

    let network = Network::of(Over::Nats).await;
    let mut misnamed = network.link("nats:worker.0", LinkConfig::default());
    let reason = misnamed.down().await;
    assert!(
        reason.contains("\"worker.0\"") && reason.contains("nats:<worker>"),
        "{reason}"
    );
}

#[actix_rt::test]
async fn a_namespace_that_does_not_fit_a_subject_is_refused() {
    let connection = connection(&shared_server()).await;
    for wrong in ["", "a.b", "*", ">", "a b", &"x".repeat(65)] {
        let refused = NatsTransport::new(connection.clone(), wrong).unwrap_err();
        assert!(refused.to_string().contains("letters, digits"), "{refused}");
    }
    assert!(NatsTransport::new(connection, "prod_eu-1").is_ok());
}

#[actix_rt::test]
async fn namespaces_keep_workers_of_one_name_apart() {
    let (mut here, there) = (Worker::start(Over::Nats).await, Worker::start(Over::Nats).await);
    let (link, _other) = (here.link(), there.link());
    let _stream = link.open(generate());
    here.call().await;
}

#[actix_rt::test]
async fn streams_end_when_nats_stops_and_new_ones_open_when_it_is_back() {
    let mut server = NatsServer::started();
    let (worker, router) = (transport(&server, "n").await, transport(&server, "n").await);
    let listening = listen_on_nats(&worker, ServerConfig::default()).await;
    let mut worker = Worker::serve(Network::Tcp, listening);
    let config = LinkConfig {
        nats: Some(router),
        ..eager()
    };
    let mut link = Link::to("nats:worker-0", config);
    let mut stream = link.open(generate());
    link.up().await;
    let (_, responder) = worker.call().await;
    responder.queue(1, b"before").unwrap();
    responder.flush();
    assert_eq!(next_data(&mut stream).await.1, "before");

    server.kill();
    let reason = lost(next_error(&mut stream).await);
    assert!(reason.contains("NATS is down"), "{reason}");
    soon(responder.cancelled()).await;
    let reason = link.down().await;
    assert!(reason.contains("NATS is down"), "{reason}");
    let Err(LinkError::Unreachable { .. }) = link.handle.open(generate()) else {
        panic!("opened without NATS")
    };

    server.start();
    link.up().await;
    let mut stream = link.open(generate());
    worker.call().await.1.end(summary(1));
    assert_eq!(next(&mut stream).await.unwrap(), ResponseEvent::End(summary(1)));
}

#[actix_rt::test]
async fn a_link_dials_as_soon_as_nats_is_back_and_not_after_its_longest_wait() {
    let mut server = NatsServer::started();
    // One connection for both sides, so that both are back at the same moment.
    let router = transport(&server, "n").await;
    let listening = listen_on_nats(&router, ServerConfig::default()).await;
    let _worker = Worker::serve(Network::Tcp, listening);
    let hour = Duration::from_secs(3600);
    let config = LinkConfig {
        nats: Some(router),
        backoff_min: hour,
        backoff_max: hour,
        ..eager()
    };
    let mut link = Link::to("nats:worker-0", config);
    link.up().await;
    server.kill();
    link.down().await;
    server.start();
    link.up().await;
}

#[actix_rt::test]
async fn a_worker_started_before_its_nats_server_is_reached_once_the_server_runs() {
    let mut server = NatsServer::prepare();
    let transport = async || NatsTransport::new(connecting(&server).await, "n").unwrap();
    let (worker, router) = (transport().await, transport().await);
    let listening = Server::on_nats(worker, "worker-0".parse().unwrap(), ServerConfig::default());
    let _worker = Worker::serve(Network::Tcp, soon(listening).await.unwrap());
    let config = LinkConfig {
        nats: Some(router),
        connect_timeout: Duration::from_millis(50),
        ..eager()
    };
    let mut link = Link::to("nats:worker-0", config);
    let reason = link.down().await;
    assert!(reason.contains("NATS is down"), "{reason}");
    server.start();
    link.up().await;
}

#[actix_rt::test]
async fn a_worker_whose_process_ended_is_noticed_at_the_next_message() {
    let server = shared_server();
    let namespace = fresh_namespace();
    let (listens, listening) = tokio::sync::oneshot::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (workers_server, workers_namespace) = (server.clone(), namespace.clone());
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let worker = transport(&workers_server, &workers_namespace).await;
            let listening = listen_on_nats(&worker, ServerConfig::default()).await;
            let _worker = Worker::serve(Network::Tcp, listening);
            listens.send(()).unwrap();
            stopped.await.unwrap();
        });
    });
    soon(listening).await.unwrap();
    // The ping timeout is long, so the link notices the worker's missing subscription and not its silence.
    let config = LinkConfig {
        nats: Some(transport(&server, &namespace).await),
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_secs(3600),
        ..eager()
    };
    let mut link = Link::to("nats:worker-0", config);
    let mut stream = link.open(watch());
    link.up().await;
    stop.send(()).unwrap();
    process.join().unwrap();
    lost(next_error(&mut stream).await);
    let reason = link.down().await;
    assert!(reason.contains("the other side is gone"), "{reason}");
}

#[actix_rt::test]
async fn a_router_whose_process_ended_is_noticed_at_the_next_token() {
    let mut worker = Worker::start(Over::Nats).await;
    let raw = RawNats::router(&worker).await;
    raw.send(DATA, 2, &frame(3, 1, &round_trip::open_payload(&generate())))
        .await;
    let (_, responder) = worker.call().await;
    // The server drops the subscriptions of a process that ends in the same way.
    drop(raw.incoming);
    subscribed(&raw.connection).await;
    responder.queue(1, b"token").unwrap();
    responder.flush();
    soon(responder.cancelled()).await;
}

#[actix_rt::test]
async fn a_worker_that_hangs_is_lost_as_over_tcp() {
    let (mut raw, mut link) = RawNats::worker(hasty()).await;
    let mut stream = link.open(generate());
    raw.accept().await;
    link.up().await;
    let reason = lost(next_error(&mut stream).await);
    assert!(reason.contains("silent"), "{reason}");
    link.down().await;
}

#[actix_rt::test]
async fn a_dial_to_a_worker_that_never_accepts_fails() {
    let config = LinkConfig {
        connect_timeout: Duration::from_millis(50),
        ..hasty()
    };
    let (mut raw, mut link) = RawNats::worker(config).await;
    raw.connect().await;
    let reason = link.down().await;
    assert!(
        reason.contains("worker-0 did not answer over NATS within"),
        "{reason}"
    );
}

#[actix_rt::test]
async fn a_lost_or_repeated_message_of_a_worker_resets_the_connection() {
    for wrong in [1, 3] {
        let (mut raw, mut link) = RawNats::worker(eager()).await;
        let mut stream = link.open(generate());
        raw.accept().await;
        link.up().await;
        let (kind, _, number, _) = raw.receive().await;
        assert_eq!((kind, number), (DATA, 2), "the call");
        raw.send(DATA, wrong, &frame(4, 1, b"\x01\0\0\0misplaced")).await;
        let reason = lost(next_error(&mut stream).await);
        assert!(reason.contains(&format!("message {wrong} arrived")), "{reason}");
        assert!(reason.contains("2 was due"), "{reason}");
        link.down().await;
        let reset = raw.reset().await;
        assert_eq!(
            reason,
            format!("reading failed: {reset}"),
            "both sides have the same reason"
        );
    }
}

#[actix_rt::test]
async fn a_lost_or_repeated_message_of_a_router_resets_the_connection() {
    let mut worker = Worker::start(Over::Nats).await;
    for wrong in [2, 4] {
        let mut raw = RawNats::router(&worker).await;
        let open = frame(3, 1, &round_trip::open_payload(&generate()));
        raw.send(DATA, 2, &open).await;
        let (_, responder) = worker.call().await;
        // Half a frame: if the worker took it, it would send no Reset.
        raw.send(DATA, wrong, &open[..9]).await;
        soon(responder.cancelled()).await;
        let reset = raw.reset().await;
        assert!(reset.contains(&format!("message {wrong} arrived")), "{reset}");
    }
}

#[actix_rt::test]
async fn frames_may_be_cut_anywhere_and_unknown_messages_are_skipped() {
    let mut worker = Worker::start(Over::Nats).await;
    let mut raw = RawNats::router(&worker).await;
    let open = frame(3, 1, &round_trip::open_payload(&generate()));
    raw.send(DATA, 2, &open[..9]).await;
    raw.send(77, 3, b"of a later version").await;
    let id = std::mem::replace(&mut raw.id, 5);
    raw.send(DATA, 4, b"of another connection").await;
    raw.id = id;
    raw.send(DATA, 4, &open[9..]).await;
    worker.call().await.1.end(summary(1));
    let (kind, _, _, payload) = raw.receive().await;
    assert_eq!((kind, payload[4]), (DATA, 5), "the call's end");
    raw.send(CLOSE, 5, &[]).await;
    assert_eq!(raw.receive().await.0, CLOSE);
}

#[actix_rt::test]
async fn a_router_that_ignores_its_window_is_reset() {
    let network = Network::of(Over::Nats).await;
    let mut raw = RawNats::towards(&network).await;
    let NatsNetwork { worker, .. } = network.nats();
    let name = "worker-0".parse().unwrap();
    let mut listener = NatsListener::bind(worker.clone(), name).await.unwrap();
    subscribed(worker.connection()).await;
    raw.send(CONNECT, 0, &WINDOW).await;
    let mut stream = soon(listener.accept()).await.unwrap();
    raw.id = raw.receive().await.1;
    for number in 1..=6 {
        raw.send(DATA, number, &[b'x'; 250_000]).await;
    }
    // All messages have arrived before the first one is read.
    subscribed(&raw.connection).await;
    subscribed(worker.connection()).await;
    let mut into = BytesMut::with_capacity(2 << 20);
    assert_eq!(soon(stream.read.read_buf(&mut into)).await.unwrap(), 5 * 250_000);
    let error = soon(stream.read.read_buf(&mut into))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("window of 1048576 bytes"), "{error}");
    drop(stream);
    assert_eq!(raw.reset().await, error);
}

#[actix_rt::test]
async fn other_versions_are_refused_with_an_error_that_names_both() {
    let worker = Worker::start(Over::Nats).await;
    let mut raw = RawNats::towards(&worker.network).await;
    raw.send_version(9, CONNECT, 0, &WINDOW).await;
    let message = soon(raw.incoming.next()).await.unwrap().payload;
    assert_eq!(message[..2], [1, RESET]);
    let reset = String::from_utf8_lossy(&message[18..]).into_owned();
    assert!(
        reset.contains("version 9") && reset.contains("supports version 1"),
        "{reset}"
    );

    let (mut raw, mut link) = RawNats::worker(eager()).await;
    raw.connect().await;
    raw.send_version(9, ACCEPT, 0, &WINDOW).await;
    let reason = link.down().await;
    assert!(
        reason.contains("version 9") && reason.contains("supports version 1"),
        "{reason}"
    );
}

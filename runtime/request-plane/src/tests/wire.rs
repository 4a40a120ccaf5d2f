//! The bytes on the wire, written by hand as the README documents them for other programs.

use super::*;

#[actix_rt::test]
async fn the_bytes_of_a_whole_exchange() {
    let mut worker = Worker::start(Over::Tcp).await;
    let mut socket = TcpStream::connect(&worker.address).await.unwrap();
    let hello = b"\x31\0\0\0\x01\0\0\0\0SGBX\x01\0\x01\0{\"software\":\"x\",\"window_bytes\":1024}".to_vec();
    assert_eq!(usize::from(hello[0]), hello.len() - 4);
    socket.write_all(&hello).await.unwrap();
    let mut head = [0; 15];
    soon(socket.read_exact(&mut head)).await.unwrap();
    assert_eq!(
        head[4..],
        [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2],
        "HelloAck, version 1, frames of 32 MiB"
    );
    let mut json = vec![0; u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize - 11];
    soon(socket.read_exact(&mut json)).await.unwrap();
    let received: WorkerCard = serde_json::from_slice(&json).unwrap();
    assert_eq!(received, *card("worker-0"));

    let mut open = b"\x31\0\0\0\x03\x05\0\0\0\x1e\0\0\0{\"method\":\"fetch_kv_snapshot\"}".to_vec();
    open.extend(b"\x01\0\0\0\x2a\0\0\0bo");
    assert_eq!(usize::from(open[0]), open.len() - 4);
    socket.write_all(&open).await.unwrap();
    let (parts, responder) = worker.call().await;
    assert_eq!(
        (parts.call, &parts.tokens[..], &parts.body[..]),
        (Call::FetchKvSnapshot, &[42][..], &b"bo"[..])
    );
    responder.queue(3, b"hi").unwrap();
    responder.end(summary(1));
    let mut answer = [0; 36];
    soon(socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer[..15], *b"\x0b\0\0\0\x04\x05\0\0\0\x03\0\0\0hi");
    assert_eq!(
        answer[15..],
        *b"\x11\0\0\0\x05\x05\0\0\0\x03\0\0\0\x02\0\0\0\x01\0\0\0"
    );
}

#[actix_rt::test]
async fn a_router_of_other_versions_is_refused_with_the_supported_versions() {
    let worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(2, 3).await;
    let message = raw.failure(0).await;
    assert!(
        message.contains("version 1,") && message.contains("versions 2 to 3"),
        "{message}"
    );
    raw.closed().await;
}

#[actix_rt::test]
async fn a_worker_of_other_versions_is_named_in_the_links_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = Link::to(listener.local_addr().unwrap(), hasty());
    let mut raw = Raw::accepted_by(&listener).await;
    raw.receive().await;
    raw.hello_ack(9, 1 << 20).await;
    let reason = link.down().await;
    assert!(
        reason.contains("chose version 9") && reason.contains("1 to 1"),
        "{reason}"
    );

    let mut link = Link::to(listener.local_addr().unwrap(), hasty());
    let mut raw = Raw::accepted_by(&listener).await;
    raw.receive().await;
    raw.send(
        6,
        0,
        br#"{"kind":"invalid_request","message":"no common version: the worker supports 2"}"#,
    )
    .await;
    let reason = link.down().await;
    assert!(
        reason.contains("no common version: the worker supports 2"),
        "{reason}"
    );
}

#[actix_rt::test]
async fn other_programs_are_refused_with_a_reason() {
    let worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let message = raw.failure(0).await;
    assert!(message.contains("at most 65536"), "{message}");
    raw.closed().await;

    let mut raw = Raw::to(&worker.address).await;
    raw.send(1, 0, b"NOPE\x01\0\x01\0{}").await;
    assert!(raw.failure(0).await.contains("magic"));

    let mut raw = Raw::to(&worker.address).await;
    raw.send(9, 0, &[0; 8]).await;
    assert!(raw.failure(0).await.contains("Ping"), "a hello comes first");

    let mut link = worker.link();
    link.up().await;
}

#[actix_rt::test]
async fn a_link_to_another_kind_of_server_reports_an_invalid_hello() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = Link::to(listener.local_addr().unwrap(), hasty());
    let mut raw = Raw::accepted_by(&listener).await;
    raw.receive().await;
    raw.socket.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    let reason = link.down().await;
    assert!(reason.contains("instead of a hello"), "{reason}");
}

#[actix_rt::test]
async fn oversize_frames_and_garbage_close_the_connection_with_a_reason() {
    let mut worker = Worker::with(
        Over::Tcp,
        ServerConfig {
            max_frame_bytes: 1000,
            ..ServerConfig::default()
        },
    )
    .await;
    for (garbage, reason) in [
        (&b"\xe9\x03\0\0\x03\x01\0\0\0"[..], "1001 bytes; at most 1000"),
        (&b"\x02\0\0\0\x03\x01"[..], "2 bytes"),
        (&b"\x09\0\0\0\x03\x01\0\0\0\xff\xff\xff\xff"[..], "Open"),
        (&b"\x05\0\0\0\x0b\0\0\0\0"[..], "Drain"),
    ] {
        let mut raw = Raw::to(&worker.address).await;
        raw.hello(1, 1).await;
        raw.receive().await;
        raw.send(3, 1, &round_trip::open_payload(&watch())).await;
        let (_, responder) = worker.call().await;
        raw.socket.write_all(garbage).await.unwrap();
        let message = raw.failure(0).await;
        assert!(message.contains(reason), "{message}");
        soon(responder.cancelled()).await;
        raw.closed().await;
    }
}

#[actix_rt::test]
async fn garbage_from_a_worker_ends_the_connection_with_a_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = Link::to(listener.local_addr().unwrap(), hasty());
    let mut stream = link.open(generate());
    let mut raw = Raw::accepted_by(&listener).await;
    raw.accept_hello().await;
    link.up().await;
    raw.receive().await;
    raw.socket.write_all(&[0xff; 64]).await.unwrap();
    let LinkError::Lost { reason, .. } = next_error(&mut stream).await else {
        panic!("not lost")
    };
    assert!(reason.contains("4294967295 bytes"), "{reason}");
}

#[actix_rt::test]
async fn unknown_frames_and_calls_of_a_newer_router_fail_at_most_their_stream() {
    let mut worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(1, 9).await;
    raw.receive().await;
    raw.send(99, 1, b"a frame of a later version").await;
    raw.send(3, 1, b"\x11\0\0\0{\"method\":\"sing\"}\0\0\0\0").await;
    let message = raw.failure(1).await;
    assert!(message.contains("sing"), "{message}");
    raw.send(3, 2, &round_trip::open_payload(&watch())).await;
    worker.call().await.1.end(summary(0));
    assert_eq!(raw.receive().await.0, 5);
}

#[actix_rt::test]
async fn opening_a_stream_twice_closes_the_connection() {
    let mut worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(1, 1).await;
    raw.receive().await;
    for _ in 0..2 {
        raw.send(3, 4, &round_trip::open_payload(&watch())).await;
    }
    let _call = worker.call().await;
    assert!(raw.failure(0).await.contains("stream 4"));
}

#[actix_rt::test]
async fn silent_routers_are_dropped_before_and_after_their_hello() {
    async fn worker(hello: Duration, silence: Duration) -> Worker {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), ServerConfig::default())
            .await
            .unwrap();
        Worker::serve(Network::of(Over::Tcp).await, server.with_timeouts(hello, silence))
    }
    let without_hello = worker(Duration::from_millis(50), PATIENCE).await;
    let mut raw = Raw::to(&without_hello.address).await;
    assert!(raw.failure(0).await.contains("no hello within"));
    raw.closed().await;

    let mut worker = worker(PATIENCE, Duration::from_millis(500)).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(1, 1).await;
    raw.receive().await;
    raw.send(3, 1, &round_trip::open_payload(&watch())).await;
    let (_, responder) = worker.call().await;
    assert!(raw.failure(0).await.contains("silent"));
    soon(responder.cancelled()).await;
}

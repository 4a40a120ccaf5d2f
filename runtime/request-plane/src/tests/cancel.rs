use super::*;

over_tcp_and_nats!(
    a_dropped_stream_is_cancelled_at_the_worker_and_others_go_on,
    a_closed_link_lets_open_streams_finish,
);

async fn a_dropped_stream_is_cancelled_at_the_worker_and_others_go_on(over: Over) {
    let mut worker = Worker::start(over).await;
    let link = worker.link();
    let (dropped, mut kept) = (link.open(generate()), link.open(generate()));
    let (_, first) = worker.call().await;
    let (_, second) = worker.call().await;
    assert!(!first.is_cancelled());
    drop(dropped);
    soon(first.cancelled()).await;
    assert!(first.is_cancelled() && !second.is_cancelled());
    assert_eq!(first.queue(1, b"late"), Err(CallerGone));
    assert_eq!(first.send(b"late").await, Err(CallerGone));
    first.end(summary(1));
    second.queue(1, b"kept").unwrap();
    second.end(summary(1));
    assert_eq!(next_data(&mut kept).await.1, "kept");
    assert!(matches!(next(&mut kept).await.unwrap(), ResponseEvent::End(_)));
}

#[actix_rt::test]
async fn frames_already_on_their_way_to_a_cancelled_stream_are_ignored() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::to(listener.local_addr().unwrap(), LinkConfig::default());
    let (first, mut second) = (link.open(generate()), link.open(generate()));
    let mut raw = Raw::accepted_by(&listener).await;
    raw.accept_hello().await;
    assert_eq!((raw.receive().await.1, raw.receive().await.1), (1, 2));
    drop(first);
    assert_eq!(raw.receive().await, (7, 1, vec![]));
    raw.send(4, 1, b"\x01\0\0\0late").await;
    raw.send(5, 1, &[0; 12]).await;
    raw.send(4, 2, b"\x01\0\0\0mine").await;
    assert_eq!(next_data(&mut second).await.1, "mine");
}

#[actix_rt::test]
async fn a_finished_stream_sends_no_cancel() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::to(listener.local_addr().unwrap(), LinkConfig::default());
    let mut stream = link.open(generate());
    let mut raw = Raw::accepted_by(&listener).await;
    raw.accept_hello().await;
    raw.receive().await;
    raw.send(5, 1, &[0; 12]).await;
    next(&mut stream).await.unwrap();
    drop(stream);
    let _other = link.open(generate());
    let (kind, stream, _) = raw.receive().await;
    assert_eq!((kind, stream), (3, 2), "the next frame is the next call");
}

#[actix_rt::test]
async fn a_router_that_goes_away_cancels_all_its_streams() {
    let mut worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(1, 1).await;
    raw.receive().await;
    for stream in 1..=3 {
        raw.send(3, stream, &round_trip::open_payload(&generate())).await;
    }
    let responders = [
        worker.call().await.1,
        worker.call().await.1,
        worker.call().await.1,
    ];
    drop(raw);
    for responder in &responders {
        soon(responder.cancelled()).await;
    }
}

async fn a_closed_link_lets_open_streams_finish(over: Over) {
    let mut worker = Worker::start(over).await;
    let mut link = worker.link();
    let mut stream = link.open(generate());
    link.up().await;
    let (_, responder) = worker.call().await;
    link.handle.close();
    assert_eq!(link.handle.state(), LinkState::Closed);
    assert!(matches!(
        link.handle.open(generate()),
        Err(LinkError::Unreachable { .. })
    ));
    responder.queue(1, b"still").unwrap();
    responder.end(summary(1));
    assert_eq!(next_data(&mut stream).await.1, "still");
    assert!(matches!(next(&mut stream).await.unwrap(), ResponseEvent::End(_)));
}

#[actix_rt::test]
async fn the_last_handle_closes_the_link_and_the_last_stream_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let Link { handle, .. } = Link::to(listener.local_addr().unwrap(), LinkConfig::default());
    let stream = handle.open(generate()).unwrap();
    let mut raw = Raw::accepted_by(&listener).await;
    raw.accept_hello().await;
    raw.receive().await;
    drop(handle);
    raw.send(9, 0, &7u64.to_le_bytes()).await;
    assert_eq!(
        raw.receive().await,
        (10, 0, 7u64.to_le_bytes().to_vec()),
        "a stream is open"
    );
    drop(stream);
    assert_eq!(raw.receive().await, (7, 1, vec![]));
    raw.closed().await;
}

use super::*;

over_tcp_and_nats!(
    the_link_comes_back_with_a_restarted_worker_and_its_new_card,
    a_panic_of_the_links_actor_loses_its_calls_and_the_next_use_restarts_it,
);

/// A worker that the test implements byte by byte, with a link that is up.
async fn raw_worker(config: LinkConfig) -> (TcpListener, Link, Raw) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut link = Link::to(listener.local_addr().unwrap(), config);
    let mut raw = Raw::accepted_by(&listener).await;
    raw.accept_hello().await;
    link.up().await;
    (listener, link, raw)
}

#[actix_rt::test]
async fn a_lost_connection_fails_each_open_stream_once_after_what_had_arrived() {
    let (_listener, mut link, mut raw) = raw_worker(LinkConfig::default()).await;
    let (mut begun, mut waiting) = (link.open(generate()), link.open(generate()));
    raw.receive().await;
    raw.receive().await;
    raw.send(4, 1, b"\x01\0\0\0token").await;
    drop(raw);
    link.down().await;
    assert_eq!(next_data(&mut begun).await.1, "token");
    for stream in [&mut begun, &mut waiting] {
        assert!(matches!(next_error(stream).await, LinkError::Lost { .. }));
        assert!(stream.next().await.is_none());
    }
}

#[actix_rt::test]
async fn calls_queued_for_a_dial_that_fails_never_reached_the_worker() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut link = Link::to(address, LinkConfig::default());
    let mut queued = link.open(generate());
    assert!(matches!(
        next_error(&mut queued).await,
        LinkError::Unreachable { .. }
    ));
    link.down().await;
    assert_eq!(link.handle.state(), LinkState::Backoff);
    let Err(LinkError::Unreachable { reason, .. }) = link.handle.open(generate()) else {
        panic!("opened")
    };
    assert!(reason.contains("no connection"), "{reason}");
}

async fn the_link_comes_back_with_a_restarted_worker_and_its_new_card(over: Over) {
    let mut worker = Worker::start(over).await;
    let mut link = worker.link_with(hasty());
    link.up().await;
    let mut cut = link.open(generate());
    worker.call().await;
    worker.handle.drain(Duration::ZERO).await;
    // A `Draining` may arrive first. One that is not delivered is dropped when the connection is lost.
    while !matches!(link.event().await, LinkEvent::Down { .. }) {}
    // The dropped responder failed the call before the connection closed.
    next_error(&mut cut).await;

    let mut worker = worker.restarted().await;
    link.up().await;
    let mut stream = link.open(generate());
    worker.call().await.1.end(summary(9));
    assert_eq!(next(&mut stream).await.unwrap(), ResponseEvent::End(summary(9)));
}

#[actix_rt::test]
async fn a_dial_to_a_port_that_never_answers_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = LinkConfig {
        connect_timeout: Duration::from_millis(100),
        ..hasty()
    };
    let mut link = Link::to(listener.local_addr().unwrap(), config);
    let mut queued = link.open(generate());
    let _silent = Raw::accepted_by(&listener).await;
    assert!(
        matches!(next_error(&mut queued).await, LinkError::Unreachable { .. }),
        "the call was not written"
    );
    let reason = link.down().await;
    assert!(reason.contains("no hello within"), "{reason}");
}

#[actix_rt::test]
async fn open_streams_fail_when_the_worker_falls_silent() {
    let (_listener, mut link, mut raw) = raw_worker(hasty()).await;
    let mut stream = link.open(generate());
    assert_eq!(raw.receive().await.0, 3);
    assert_eq!(raw.receive().await.0, 9, "the worker receives a ping");
    let LinkError::Lost { reason, .. } = next_error(&mut stream).await else {
        panic!("not lost")
    };
    assert!(reason.contains("silent"), "{reason}");
    link.down().await;
}

#[actix_rt::test]
async fn a_worker_that_answers_pings_stays_connected() {
    let (_listener, link, mut raw) = raw_worker(LinkConfig {
        ping_timeout: PATIENCE,
        ..hasty()
    })
    .await;
    for _ in 0..5 {
        let (kind, _, nonce) = raw.receive().await;
        assert_eq!(kind, 9);
        raw.send(10, 0, &nonce).await;
    }
    assert_eq!(link.handle.state(), LinkState::Up);
}

async fn a_panic_of_the_links_actor_loses_its_calls_and_the_next_use_restarts_it(over: Over) {
    let mut worker = Worker::start(over).await;
    let mut link = worker.link_with(hasty());
    let mut stream = link.open(generate());
    link.up().await;
    let (_, responder) = worker.call().await;
    link.handle.panic_in_actor();
    assert!(matches!(next_error(&mut stream).await, LinkError::Lost { .. }));
    soon(responder.cancelled()).await;
    assert_eq!(
        link.handle.state(),
        LinkState::Connecting,
        "the panic is noticed and the actor restarted"
    );
    let mut stream = link.open(generate());
    worker.call().await.1.end(summary(1));
    assert!(matches!(next(&mut stream).await.unwrap(), ResponseEvent::End(_)));
}

#[actix_rt::test]
async fn a_watcher_with_a_full_mailbox_still_receives_the_last_event() {
    /// A watcher that handles no event before it is released.
    struct Busy(
        mpsc::Sender<LinkEvent>,
        Option<tokio::sync::oneshot::Receiver<()>>,
    );
    impl Actor for Busy {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Context<Self>) {
            ctx.set_mailbox_capacity(1);
            let released = self.1.take().unwrap();
            ctx.wait(async { released.await.unwrap() }.into_actor(self));
        }
    }
    impl Handler<LinkEvent> for Busy {
        type Result = ();
        fn handle(&mut self, event: LinkEvent, _: &mut Context<Self>) {
            self.0.try_send(event).unwrap();
        }
    }
    let (release, released) = tokio::sync::oneshot::channel();
    let (sender, mut events) = mpsc::channel(1000);
    let watcher = Busy(sender, Some(released)).start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let link = LinkHandle::start(address, hasty(), Some(watcher.recipient()));
    for _ in 0..10 {
        let mut raw = Raw::accepted_by(&listener).await;
        raw.accept_hello().await;
    }
    let mut last = Raw::accepted_by(&listener).await;
    last.accept_hello().await;
    last.send(11, 0, &[]).await;
    last.send(9, 0, &[0; 8]).await;
    while last.receive().await.0 != 10 {}
    assert_eq!(link.state(), LinkState::Draining);
    release.send(()).unwrap();
    while !matches!(soon(events.recv()).await.unwrap(), LinkEvent::Draining { .. }) {}
}

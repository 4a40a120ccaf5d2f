use signalbox_protocol::ErrorKind;

use super::*;

over_tcp_and_nats!(
    a_drain_waits_for_generations_but_not_for_watches,
    a_drain_ends_with_its_grace,
);

async fn a_drain_waits_for_generations_but_not_for_watches(over: Over) {
    let mut worker = Worker::start(over).await;
    let mut link = worker.link();
    let (mut answer, mut watched) = (link.open(generate()), link.open(watch()));
    link.up().await;
    let (_, generating) = worker.call().await;
    let (_, watching) = worker.call().await;
    let handle = worker.handle.clone();
    let drained = actix_rt::spawn(async move { handle.drain(PATIENCE).await });
    assert!(matches!(link.event().await, LinkEvent::Draining { .. }));
    assert_eq!(link.handle.state(), LinkState::Draining);
    assert!(matches!(
        link.handle.open(generate()),
        Err(LinkError::Draining { .. })
    ));
    let reason = worker.link().down().await;
    assert!(
        reason.contains("refused") || reason.contains("no worker worker-0 listens"),
        "the worker still listens: {reason}"
    );

    assert!(!drained.is_finished());
    generating.queue(1, b"last").unwrap();
    generating.end(summary(1));
    soon(drained).await.unwrap();
    assert_eq!(next_data(&mut answer).await.1, "last");
    assert!(
        matches!(next(&mut answer).await.unwrap(), ResponseEvent::End(_)),
        "queued pieces are not lost"
    );
    soon(watching.cancelled()).await;
    assert!(matches!(next_error(&mut watched).await, LinkError::Lost { .. }));
    link.down().await;
}

async fn a_drain_ends_with_its_grace(over: Over) {
    let mut worker = Worker::start(over).await;
    let link = worker.link();
    let mut stream = link.open(generate());
    let (_, responder) = worker.call().await;
    responder.queue(1, b"piece").unwrap();
    soon(worker.handle.drain(Duration::from_millis(10))).await;
    assert!(responder.is_cancelled());
    assert_eq!(next_data(&mut stream).await.1, "piece");
    assert!(matches!(next_error(&mut stream).await, LinkError::Lost { .. }));
}

#[actix_rt::test]
async fn a_call_that_crosses_the_drain_is_refused_as_unavailable() {
    let mut worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(1, 1).await;
    raw.receive().await;
    raw.send(3, 1, &round_trip::open_payload(&generate())).await;
    let (_, _open) = worker.call().await;
    let handle = worker.handle.clone();
    let drained = actix_rt::spawn(async move { handle.drain(PATIENCE).await });
    assert_eq!(raw.receive().await, (11, 0, vec![]));
    raw.send(3, 2, &round_trip::open_payload(&generate())).await;
    let (kind, stream, payload) = raw.receive().await;
    assert_eq!((kind, stream), (6, 2));
    let error: signalbox_protocol::WireError = serde_json::from_slice(&payload).unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    raw.send(7, 1, &[]).await;
    raw.closed().await;
    drop(raw);
    soon(drained).await.unwrap();
}

use signalbox_protocol::ErrorKind;

use super::*;

over_tcp_and_nats!(
    streams_beyond_the_workers_limit_fail_as_overloaded,
    a_link_opens_no_more_streams_than_its_limit,
    a_call_over_the_workers_limit_fails_alone_and_its_error_names_the_limit,
    connections_beyond_the_limit_are_refused_with_a_reason_and_later_ones_are_served,
);

async fn streams_beyond_the_workers_limit_fail_as_overloaded(over: Over) {
    let mut worker = Worker::with(
        over,
        ServerConfig {
            max_streams_per_connection: 2,
            ..ServerConfig::default()
        },
    )
    .await;
    let link = worker.link();
    let _first = link.open(generate());
    let second = link.open(generate());
    let mut third = link.open(generate());
    let LinkError::Refused(error) = next_error(&mut third).await else {
        panic!("not refused")
    };
    assert_eq!(error.kind, ErrorKind::Overloaded);
    drop(second);
    let (_first, second) = (worker.call().await.1, worker.call().await.1);
    soon(second.cancelled()).await;
    let mut fourth = link.open(generate());
    worker.call().await.1.end(summary(1));
    assert!(
        matches!(next(&mut fourth).await.unwrap(), ResponseEvent::End(_)),
        "the cancelled stream no longer counts"
    );
}

async fn a_link_opens_no_more_streams_than_its_limit(over: Over) {
    let worker = Worker::start(over).await;
    let link = worker.link_with(LinkConfig {
        max_streams: 2,
        ..LinkConfig::default()
    });
    let first = link.open(generate());
    let _second = link.open(generate());
    assert!(matches!(
        link.handle.open(generate()),
        Err(LinkError::Full { limit: 2, .. })
    ));
    drop(first);
    link.open(generate());
}

async fn a_call_over_the_workers_limit_fails_alone_and_its_error_names_the_limit(over: Over) {
    let mut worker = Worker::with(
        over,
        ServerConfig {
            max_frame_bytes: 4096,
            ..ServerConfig::default()
        },
    )
    .await;
    let mut link = worker.link();
    let mut large = generate();
    large.body = vec![b'x'; 10_000].into();
    let (mut queued, mut small) = (link.open(large.clone()), link.open(generate()));
    link.up().await;
    let LinkError::Refused(error) = next_error(&mut queued).await else {
        panic!("not refused")
    };
    assert!(
        error.kind == ErrorKind::TooLarge && error.message.contains("4096"),
        "{error}"
    );
    worker.call().await.1.end(summary(1));
    assert!(matches!(next(&mut small).await.unwrap(), ResponseEvent::End(_)));
    let Err(LinkError::Refused(error)) = link.handle.open(large) else {
        panic!("not refused")
    };
    assert_eq!(error.kind, ErrorKind::TooLarge);
    assert_eq!(link.handle.state(), LinkState::Up);
}

async fn connections_beyond_the_limit_are_refused_with_a_reason_and_later_ones_are_served(over: Over) {
    let worker = Worker::with(
        over,
        ServerConfig {
            max_connections: 1,
            ..ServerConfig::default()
        },
    )
    .await;
    let mut first = worker.link();
    first.up().await;
    let mut second = worker.link_with(hasty());
    let reason = second.down().await;
    assert!(reason.contains("has 1 connections"), "{reason}");
    drop(first);
    assert_eq!(second.up().await.id.as_str(), "worker-0");
}

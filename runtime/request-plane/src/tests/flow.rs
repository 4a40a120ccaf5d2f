use std::{cell::Cell, rc::Rc};

use signalbox_protocol::ErrorKind;

use super::*;

over_tcp_and_nats!(
    a_sender_stops_at_the_window_and_resumes_as_the_reader_reads,
    queued_pieces_beyond_the_window_wait_at_the_worker_and_follow,
    a_reader_too_slow_for_the_backlog_fails_as_overloaded_and_its_engine_stops,
    a_document_larger_than_the_backlog_arrives_whole,
);

fn narrow() -> LinkConfig {
    LinkConfig {
        window_bytes: 4096,
        ..LinkConfig::default()
    }
}

async fn a_sender_stops_at_the_window_and_resumes_as_the_reader_reads(over: Over) {
    const PIECES: u32 = 100;
    let mut worker = Worker::start(over).await;
    let link = worker.link_with(narrow());
    let mut stream = link.open(watch());
    let mut other = link.open(watch());
    let (_, sender) = worker.call().await;
    let (_, responder) = worker.call().await;
    let sent = Rc::new(Cell::new(0));
    let counter = sent.clone();
    actix_rt::spawn(async move {
        for number in 0..PIECES {
            let mut piece = [0; 1000];
            piece[..4].copy_from_slice(&number.to_le_bytes());
            sender.send(&piece).await.unwrap();
            counter.set(number + 1);
        }
        sender.end(summary(0));
    });
    // Pieces of the other stream pass the stopped one. When they have arrived, the sender has run as far as it can.
    for _ in 0..10 {
        responder.queue(1, b"pass").unwrap();
        responder.flush();
        assert_eq!(next_data(&mut other).await.1, "pass");
    }
    assert_eq!(
        sent.get(),
        5,
        "4,096 bytes of window hold four pieces of 1,004, and one may pass it"
    );
    for number in 0..PIECES {
        assert_eq!(next_data(&mut stream).await.1[..4], number.to_le_bytes());
        assert!(sent.get() <= number + 6, "never more than a window ahead");
    }
    assert!(matches!(next(&mut stream).await.unwrap(), ResponseEvent::End(_)));
    assert_eq!(sent.get(), PIECES);
}

async fn queued_pieces_beyond_the_window_wait_at_the_worker_and_follow(over: Over) {
    let mut worker = Worker::start(over).await;
    let link = worker.link_with(narrow());
    let mut stream = link.open(generate());
    let (_, responder) = worker.call().await;
    for number in 0..100u32 {
        responder.queue(number, &[b'x'; 500]).unwrap();
    }
    responder.end(summary(100));
    for number in 0..100 {
        assert_eq!(next_data(&mut stream).await.0, number);
    }
    assert!(matches!(next(&mut stream).await.unwrap(), ResponseEvent::End(_)));
}

async fn a_reader_too_slow_for_the_backlog_fails_as_overloaded_and_its_engine_stops(over: Over) {
    let mut worker = Worker::with(
        over,
        ServerConfig {
            stream_backlog_bytes: 10_000,
            ..ServerConfig::default()
        },
    )
    .await;
    let link = worker.link_with(narrow());
    let mut stream = link.open(generate());
    let (_, responder) = worker.call().await;
    let accepted = (0..100)
        .take_while(|_| responder.queue(1, &[b'x'; 1000]).is_ok())
        .count();
    assert_eq!(
        accepted,
        5 + 9,
        "the window and one piece, and 10,000 bytes of backlog"
    );
    assert!(responder.is_cancelled());
    responder.flush();
    for _ in 0..5 {
        next_data(&mut stream).await;
    }
    let LinkError::Refused(error) = next_error(&mut stream).await else {
        panic!("not refused")
    };
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(error.message.contains("reads too slowly"), "{error}");
}

async fn a_document_larger_than_the_backlog_arrives_whole(over: Over) {
    let mut worker = Worker::start(over).await;
    let link = worker.link_with(narrow());
    let mut stream = link.open(generate());
    let (_, responder) = worker.call().await;
    let document: Vec<u8> = (0..6_000_000_u32).map(|number| (number / 7) as u8).collect();
    responder
        .queue_document(PieceTokens::Count(1), &document)
        .unwrap();
    responder.end(summary(1));
    let mut arrived = Vec::new();
    let mut tokens = 0;
    while let ResponseEvent::Data {
        tokens: more, bytes, ..
    } = next(&mut stream).await.unwrap()
    {
        tokens += more;
        arrived.extend_from_slice(&bytes);
    }
    assert_eq!((arrived == document, tokens), (true, 1));
}

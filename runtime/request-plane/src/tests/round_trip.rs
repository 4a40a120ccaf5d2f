use signalbox_protocol::{ErrorKind, WireError};

use super::*;

over_tcp_and_nats!(
    a_call_arrives_whole_and_its_answer_comes_back_in_order,
    many_streams_from_several_threads_interleave_and_stay_apart,
    a_workers_error_arrives_unchanged_after_its_queued_pieces,
    a_call_whose_handler_drops_it_or_panics_fails_as_internal_and_others_go_on,
    large_calls_and_bulk_answers_pass,
);

async fn a_call_arrives_whole_and_its_answer_comes_back_in_order(over: Over) {
    let mut worker = Worker::start(over).await;
    let mut link = worker.link();
    let sent = generate();
    let mut stream = link.open(sent.clone());
    assert_eq!(link.handle.state(), LinkState::Connecting, "the call was queued");
    assert_eq!(link.up().await.id.as_str(), "worker-0");
    assert_eq!(link.handle.card().unwrap().epoch.0, 7);

    let (parts, responder) = worker.call().await;
    assert_eq!(
        (parts.call, parts.tokens, parts.body),
        (sent.call, sent.tokens, sent.body)
    );
    responder.queue(1, b"data: a\n\n").unwrap();
    responder.queue(2, b"").unwrap();
    responder.flush();
    assert_eq!(
        next_data(&mut stream).await,
        (1, Bytes::from_static(b"data: a\n\n"))
    );
    assert_eq!(next_data(&mut stream).await, (2, Bytes::new()));
    let ids = [1, u32::MAX];
    responder
        .queue_piece(PieceTokens::Ids(&ids), b"data: c\n\n")
        .unwrap();
    responder.flush();
    let Ok(ResponseEvent::Data {
        tokens,
        ids: arrived,
        bytes,
    }) = next(&mut stream).await
    else {
        panic!("no piece");
    };
    assert_eq!((tokens, bytes), (2, Bytes::from_static(b"data: c\n\n")));
    assert!(arrived.iter().eq(ids));
    responder.queue(1, b"b").unwrap();
    responder.end(summary(4));
    assert_eq!(next_data(&mut stream).await, (1, Bytes::from_static(b"b")));
    assert_eq!(next(&mut stream).await.unwrap(), ResponseEvent::End(summary(4)));
    assert!(stream.next().await.is_none() && stream.next().await.is_none());
    assert_eq!(link.handle.state(), LinkState::Up);
}

async fn many_streams_from_several_threads_interleave_and_stay_apart(over: Over) {
    const STREAMS: u32 = 200;
    const PIECES: u32 = 50;
    let mut worker = Worker::start(over).await;
    let link = worker.link();
    let streams: Vec<_> = (0..STREAMS)
        .map(|number| {
            let mut parts = watch();
            parts.tokens = vec![number];
            (number, link.open(parts))
        })
        .collect();
    let mut calls = Vec::new();
    for _ in 0..STREAMS {
        calls.push(worker.call().await);
    }
    // Two engine threads, each with half of the calls, step at the same time.
    let others = calls.split_off(STREAMS as usize / 2);
    for half in [calls, others] {
        std::thread::spawn(move || {
            for piece in 0..PIECES {
                for (parts, responder) in &half {
                    responder
                        .queue(1, format!("{}.{piece}", parts.tokens[0]).as_bytes())
                        .unwrap();
                }
                half[0].1.flush();
            }
            for (_, responder) in half {
                responder.end(summary(PIECES));
            }
        });
    }
    for (number, mut stream) in streams {
        for piece in 0..PIECES {
            assert_eq!(
                next_data(&mut stream).await,
                (1, format!("{number}.{piece}").into())
            );
        }
        assert_eq!(
            next(&mut stream).await.unwrap(),
            ResponseEvent::End(summary(PIECES))
        );
    }
}

async fn a_workers_error_arrives_unchanged_after_its_queued_pieces(over: Over) {
    let mut worker = Worker::start(over).await;
    let link = worker.link();
    let mut stream = link.open(generate());
    let (_, responder) = worker.call().await;
    let error = WireError::invalid_param("max_tokens", "max_tokens is 0; give 1 or more");
    responder.queue(1, b"piece").unwrap();
    responder.fail(error.clone());
    next_data(&mut stream).await;
    let LinkError::Refused(received) = next_error(&mut stream).await else {
        panic!("not refused")
    };
    assert_eq!(received, error);
    assert!(stream.next().await.is_none());
}

async fn a_call_whose_handler_drops_it_or_panics_fails_as_internal_and_others_go_on(over: Over) {
    struct Panics;
    impl CallHandler for Panics {
        fn call(&self, parts: CallParts, responder: Responder) {
            assert!(parts.tokens.is_empty(), "this panic is part of the test");
            responder.end(summary(1));
        }
    }
    let network = Network::of(over).await;
    let server = network.listen(ServerConfig::default()).await;
    let link = network.link(&server.address(), LinkConfig::default());
    server.serve(card("panics"), Arc::new(Panics));
    let (mut bad, mut good) = (link.open(generate()), link.open(watch()));
    let LinkError::Refused(error) = next_error(&mut bad).await else {
        panic!("not refused")
    };
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(next(&mut good).await.unwrap(), ResponseEvent::End(summary(1)));

    let mut worker = Worker::start(over).await;
    let link = worker.link();
    let mut stream = link.open(generate());
    drop(worker.call().await);
    let LinkError::Refused(error) = next_error(&mut stream).await else {
        panic!("not refused")
    };
    assert_eq!(error.kind, ErrorKind::Internal);
}

async fn large_calls_and_bulk_answers_pass(over: Over) {
    let mut worker = Worker::start(over).await;
    let link = worker.link();
    let mut sent = generate();
    sent.tokens = (0..1_000_000).collect();
    sent.body = vec![b'x'; 10 << 20].into();
    let mut stream = link.open(sent.clone());
    let (parts, responder) = worker.call().await;
    assert!(parts.tokens == sent.tokens && parts.body == sent.body);

    let bulk: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = bulk.clone();
    actix_rt::spawn(async move {
        responder.send(&bulk).await.unwrap();
        responder.end(summary(0));
    });
    let mut received = Vec::new();
    while let ResponseEvent::Data { bytes, .. } = next(&mut stream).await.unwrap() {
        assert!(bytes.len() <= MAX_PIECE_BYTES);
        received.extend_from_slice(&bytes);
    }
    assert!(received == expected);
}

#[actix_rt::test]
async fn a_step_arrives_in_one_read() {
    let mut worker = Worker::start(Over::Tcp).await;
    let mut raw = Raw::to(&worker.address).await;
    raw.hello(1, 1).await;
    assert_eq!(raw.receive().await.0, 2);
    let mut responders = Vec::new();
    for stream in 1..=100 {
        raw.send(3, stream, &open_payload(&watch())).await;
        responders.push(worker.call().await.1);
    }
    for responder in &responders {
        responder.queue(1, &[b'x'; 200]).unwrap();
    }
    for responder in &responders {
        responder.flush();
    }
    // 100 frames of 213 bytes: the first read returns the bytes of the first write.
    raw.receive().await;
    assert_eq!(raw.buffer.len(), 99 * 213);
}

pub(super) fn open_payload(parts: &CallParts) -> Vec<u8> {
    let call = serde_json::to_vec(&parts.call).unwrap();
    let mut payload = (call.len() as u32).to_le_bytes().to_vec();
    payload.extend(call);
    payload.extend((parts.tokens.len() as u32).to_le_bytes());
    payload.extend(parts.tokens.iter().flat_map(|token| token.to_le_bytes()));
    payload.extend(&parts.body);
    payload
}

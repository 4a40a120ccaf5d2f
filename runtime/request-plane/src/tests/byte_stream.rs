//! Tests of the byte stream over NATS alone.

use crate::nats::{NatsListener, NatsStream};

use super::{network::*, *};

/// A router's stream, the worker's end of it, and the network that both need.
async fn pair() -> (NatsStream, NatsStream, Network) {
    let network = Network::of(Over::Nats).await;
    let NatsNetwork { worker, router, .. } = network.nats();
    let name = "worker-0".parse().unwrap();
    let mut listener = NatsListener::bind(worker.clone(), name).await.unwrap();
    subscribed(worker.connection()).await;
    let name = "worker-0".parse().unwrap();
    let (router, worker) = tokio::join!(router.connect(&name, PATIENCE), soon(listener.accept()));
    (router.unwrap(), worker.unwrap(), network)
}

/// Bytes without a short period, so that a misplaced piece is noticed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32) as u32
    });
    words.flat_map(u32::to_le_bytes).take(length).collect()
}

#[actix_rt::test]
async fn ten_mebibytes_each_way_arrive_as_they_were_sent() {
    const LENGTH: usize = 10 << 20;
    let (router, worker, _network) = pair().await;
    // Writes of one byte, of many messages, and of anything between.
    let sizes = [1, 600_000, 17, 4096, 262_144, 262_126, 100];
    let side = async |stream: NatsStream, seed: u64| {
        let (mut read, mut write) = (stream.read, stream.write);
        let writing = async {
            let bytes = noise(seed, LENGTH);
            let mut rest = &bytes[..];
            for size in sizes.iter().cycle() {
                let (now, later) = rest.split_at((*size).min(rest.len()));
                write.write_all(now).await.unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            write.shutdown().await.unwrap();
        };
        let reading = async {
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.unwrap();
            received
        };
        tokio::join!(writing, reading).1
    };
    let (at_router, at_worker) = soon(async { tokio::join!(side(router, 1), side(worker, 2)) }).await;
    assert!(at_router == noise(2, LENGTH), "what the worker sent");
    assert!(at_worker == noise(1, LENGTH), "what the router sent");
}

#[actix_rt::test]
async fn a_writer_waits_for_a_slow_reader_and_continues_with_it() {
    use futures_util::FutureExt;

    const PIECE: usize = 64 << 10;
    let (mut router, mut worker, _network) = pair().await;
    let bytes = noise(3, PIECE);
    let write_until_full = |write: &mut crate::nats::NatsWriteHalf| {
        let mut sent = 0;
        while let Some(written) = write.write(&bytes).now_or_never() {
            sent += written.unwrap();
        }
        sent
    };
    for round in 0..3 {
        let sent = write_until_full(&mut router.write);
        // A quarter of the window may have been read and not yet returned as credit.
        let least = if round == 0 { 16 } else { 12 };
        assert!(
            (least * PIECE..=16 * PIECE).contains(&sent),
            "{sent} in round {round}"
        );
        let mut received = vec![0; sent];
        soon(worker.read.read_exact(&mut received)).await.unwrap();
        assert!(received.chunks(PIECE).all(|piece| piece == bytes));
        // The worker sends the credit before this byte, so the router has the credit once the byte arrives.
        worker.write.write_all(b"!").await.unwrap();
        assert_eq!(soon(router.read.read_u8()).await.unwrap(), b'!');
    }
}

#[actix_rt::test]
async fn a_dropped_side_is_an_end_of_file_for_the_other() {
    let (router, mut worker, _network) = pair().await;
    drop(router);
    assert_eq!(soon(worker.read.read(&mut [0; 8])).await.unwrap(), 0);

    let (mut router, worker, _network) = pair().await;
    drop(worker.read);
    let mut write = worker.write;
    write.write_all(b"last bytes").await.unwrap();
    drop(write);
    let mut received = Vec::new();
    soon(router.read.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, b"last bytes");
}

#[actix_rt::test]
async fn a_side_that_has_shut_down_its_writer_still_reads() {
    const LENGTH: usize = 4 << 20;
    let (mut router, mut worker, _network) = pair().await;
    router.write.shutdown().await.unwrap();
    assert_eq!(soon(worker.read.read(&mut [0; 8])).await.unwrap(), 0);
    let answer = noise(4, LENGTH);
    let mut received = vec![0; LENGTH];
    // The worker does not read any more, and still its writer takes the credit.
    let both = async {
        tokio::join!(
            worker.write.write_all(&answer),
            router.read.read_exact(&mut received)
        )
    };
    let (written, read) = soon(both).await;
    written.unwrap();
    read.unwrap();
    assert!(received == answer);
}

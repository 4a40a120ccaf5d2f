//! Measures throughput and latency. Run by hand: `cargo test -p signalbox-event-plane throughput -- --ignored
//! --nocapture`.

use super::*;

const WORKERS: usize = 100;
const BATCHES: u64 = 2000;
const BLOCKS: u64 = 16;

/// The CPU time of this process: of both planes, without the server.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    let server = NatsServer::started();
    plane(&server).await.ready().await;
    let (at_worker, at_router) = (plane(&server).await, plane(&server).await);
    at_router.ready().await;
    let names: Vec<WorkerId> = (0..WORKERS).map(|number| worker(&format!("w{number}"))).collect();
    let (began, cpu_before) = (Instant::now(), cpu());
    let readers: Vec<_> = names
        .iter()
        .map(|name| {
            let mut subscription = at_router.subscribe(name, Some((EPOCH, 0)));
            tokio::spawn(async move {
                let mut skipped = 0;
                loop {
                    match next(&mut subscription).await {
                        Delivery::Batch(batch) if batch.sequence == BATCHES - 1 => return skipped,
                        Delivery::Batch(_) => {}
                        _ => skipped += 1,
                    }
                }
            })
        })
        .collect();
    for sequence in 0..BATCHES {
        let mut batch = batch(sequence);
        Arc::make_mut(&mut batch).events = vec![KvEvent::Stored {
            tier: signalbox_protocol::CacheTier::Device,
            parent: None,
            blocks: (0..BLOCKS).map(SequenceHash).collect(),
        }];
        names
            .iter()
            .for_each(|name| at_worker.publish(name, batch.clone()));
        tokio::task::yield_now().await;
    }
    let published = began.elapsed();
    let mut skipped = 0;
    for reader in readers {
        skipped += reader.await.unwrap();
    }
    let (took, cpu) = (began.elapsed(), cpu() - cpu_before);
    let batches = WORKERS as u64 * BATCHES;
    let stream = Raw::connect(&server)
        .await
        .jetstream
        .get_stream(STREAM)
        .await
        .unwrap();
    let state = &stream.cached_info().state;
    println!(
        "{batches} batches of {BLOCKS} blocks, {WORKERS} workers: published in {published:.2?}, all delivered in \
         {took:.2?}: {:.0} batches/s, {:.1} M blocks/s; {:.1} us of processor a batch for both sides; {} messages, \
         {:.0} batches each; skipped {skipped} times",
        batches as f64 / took.as_secs_f64(),
        (batches * BLOCKS) as f64 / took.as_secs_f64() / 1e6,
        cpu.as_secs_f64() * 1e6 / batches as f64,
        state.last_sequence,
        batches as f64 / state.last_sequence as f64,
    );

    // A new router reads what the server has stored.
    // The server stores the last messages after a few seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let began = Instant::now();
    let late = plane(&server).await;
    late.ready().await;
    let mut last = late.subscribe(&names[0], Some((EPOCH, 0)));
    while !matches!(next(&mut last).await, Delivery::Batch(batch) if batch.sequence == BATCHES - 1) {}
    let took = began.elapsed();
    println!(
        "read again by another: {took:.2?}, {:.0} messages/s",
        state.last_sequence as f64 / took.as_secs_f64()
    );

    // A steady engine: one batch at a time.
    let mut subscription = at_router.subscribe(&names[0], None);
    let mut delays: Vec<Duration> = Vec::new();
    for sequence in BATCHES..BATCHES + 500 {
        let began = Instant::now();
        publish(&at_worker, "w0", sequence..sequence + 1);
        expect(&mut subscription, sequence..sequence + 1).await;
        delays.push(began.elapsed());
    }
    delays.sort_unstable();
    println!(
        "one batch at a time: p50 {:.2?}, p99 {:.2?} from publish to delivery",
        delays[250], delays[495]
    );
}

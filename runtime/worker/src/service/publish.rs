//! Publishes a worker's event log on the event plane.

use std::sync::Arc;

use signalbox_event_plane::{EventLog, EventPlane, decode_batch};
use signalbox_protocol::WorkerId;

/// Publishes all batches of `log`, from the first one on. Never returns.
///
/// The log does not wait for this task. If the task falls behind the batches that the log retains, it continues with
/// the oldest retained batch. Routers then detect the gap and fetch a snapshot.
pub async fn publish_events(worker: WorkerId, log: EventLog, plane: Arc<dyn EventPlane>) {
    let mut next = 0;
    loop {
        let mut reader = match log.read(Some((log.epoch(), next))) {
            Ok(reader) => reader,
            Err(not_retained) => {
                next = not_retained.oldest;
                continue;
            }
        };
        while let Ok(bytes) = reader.next().await {
            match decode_batch(&bytes) {
                Ok(batch) => {
                    next = batch.sequence + 1;
                    plane.publish(&worker, Arc::new(batch));
                }
                Err(error) => {
                    tracing::error!(worker.id = %worker, %error, "a batch of KV events cannot be decoded")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_event_plane::{Delivery, MemoryPlane};
    use signalbox_protocol::{KvEvent, WorkerEpoch};

    use super::*;

    #[tokio::test]
    async fn batches_before_and_after_the_start_reach_the_plane() {
        let (log, plane) = (EventLog::new(WorkerEpoch(7)), MemoryPlane::new());
        let worker: WorkerId = "w".parse().unwrap();
        log.publish(vec![KvEvent::Cleared]);
        let mut subscription = plane.subscribe(&worker, Some((WorkerEpoch(7), 0)));
        tokio::spawn(publish_events(worker, log.clone(), plane));
        for sequence in 0..3 {
            match subscription.next().await {
                Delivery::Batch(batch) => {
                    assert_eq!((batch.epoch, batch.sequence), (WorkerEpoch(7), sequence))
                }
                other => panic!("{other:?}"),
            }
            log.publish(vec![KvEvent::Cleared]);
        }
    }
}

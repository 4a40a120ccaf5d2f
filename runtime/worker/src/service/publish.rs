//! From the worker's event log to the event plane.

use std::sync::Arc;

use signalbox_event_plane::{EventLog, EventPlane, decode_batch};
use signalbox_protocol::WorkerId;

/// Publishes everything `log` says, from its first batch on, for ever.
///
/// The log never waits for it. Where it falls behind what the log keeps, it goes on with the oldest batch there is:
/// routers see the hole and take a snapshot.
pub async fn publish_events(worker: WorkerId, log: EventLog, plane: Arc<dyn EventPlane>) {
    let mut wanted = 0;
    loop {
        let mut reader = match log.read(Some((log.epoch(), wanted))) {
            Ok(reader) => reader,
            Err(missed) => {
                wanted = missed.oldest;
                continue;
            }
        };
        while let Ok(bytes) = reader.next().await {
            match decode_batch(&bytes) {
                Ok(batch) => {
                    wanted = batch.sequence + 1;
                    plane.publish(&worker, Arc::new(batch));
                }
                Err(error) => {
                    tracing::error!(worker.id = %worker, %error, "a batch of KV events cannot be read back")
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
    async fn what_was_said_before_and_after_reaches_the_plane() {
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

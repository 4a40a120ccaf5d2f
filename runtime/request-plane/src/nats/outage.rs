//! Detects an outage of NATS that is long enough to end the connections over it.

use std::time::Duration;

use signalbox_protocol::{PlaneState, PlaneStatus};
use tokio::{sync::watch, time::timeout};

/// An outage within this time ends only the connections that lost a message. After a longer one, requests should go to
/// other workers.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Returns the reason once NATS has been down for `grace`.
pub(super) async fn outage(mut status: watch::Receiver<PlaneStatus>, grace: Duration) -> String {
    loop {
        let down = status.wait_for(|status| status.state != PlaneState::Up);
        if down.await.is_err() {
            return "its client has stopped".into();
        }
        let up = status.wait_for(|status| status.state == PlaneState::Up);
        let back = timeout(grace, up).await.is_ok_and(|up| up.is_ok());
        if !back {
            return status.borrow().detail.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn down() -> PlaneStatus {
        PlaneStatus {
            kind: "nats".into(),
            state: PlaneState::Down,
            detail: "gone".into(),
        }
    }

    #[tokio::test]
    async fn an_outage_is_reported_with_its_reason_after_the_grace() {
        let (_sender, status) = watch::channel(down());
        assert_eq!(outage(status, Duration::from_millis(1)).await, "gone");
    }

    #[tokio::test]
    async fn an_outage_within_the_grace_is_ignored() {
        let (sender, status) = watch::channel(PlaneStatus::in_process("nats"));
        let mut ends = Box::pin(outage(status, Duration::from_secs(3600)));
        for _ in 0..3 {
            assert!((&mut ends).now_or_never().is_none());
            sender.send_replace(down());
            assert!((&mut ends).now_or_never().is_none());
            sender.send_replace(PlaneStatus::in_process("nats"));
        }
        assert!((&mut ends).now_or_never().is_none());
        drop(sender);
        assert!(
            ends.now_or_never().is_some(),
            "the status was watched all the time"
        );
    }
}

//! The settings of a link.

use std::time::Duration;

use super::link_log::LinkLosses;
use crate::{frame::DEFAULT_MAX_FRAME_BYTES, nats::NatsTransport};

/// Timeouts and bounds of a link. The defaults suit a data centre.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The time to connect over TCP, or for the worker to accept over NATS, and again the time until the worker's hello.
    /// 1 s allows three SYNs within one site.
    pub connect_timeout: Duration,
    /// Wait before the first reconnect. It doubles with each failure, and half of each wait is random.
    pub backoff_min: Duration,
    /// Longest wait before a reconnect. After a connection that lasted this long, waits start again at `backoff_min`.
    pub backoff_max: Duration,
    /// A ping is sent when either side was silent for this long. Keep it below 10 s: workers drop a router that is silent
    /// for 30 s.
    pub ping_interval: Duration,
    /// The connection counts as lost if nothing arrives for this long after a ping.
    pub ping_timeout: Duration,
    /// Bytes of a stream that may have arrived and are not read yet: 1 KiB to 16 MiB. A stream may pass it by one piece.
    pub window_bytes: u32,
    /// Streams of the link at the same time, including streams that have ended and are not read to their end.
    pub max_streams: usize,
    /// Largest frame in either direction, in bytes. A prompt travels in one frame, so this bounds the request, as does the
    /// worker's own limit. It also bounds the bytes of calls that wait to be written.
    pub max_frame_bytes: usize,
    /// The transport for workers whose address is `nats:<worker>`. Without it the link cannot reach them.
    pub nats: Option<NatsTransport>,
    /// What the links of a process log of lost workers together.
    pub losses: LinkLosses,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            ping_interval: Duration::from_secs(2),
            ping_timeout: Duration::from_secs(3),
            // About 600 tokens' worth of chunks, so that a reader that pauses briefly does not stop its stream.
            window_bytes: 128 << 10,
            max_streams: 1024,
            max_frame_bytes: DEFAULT_MAX_FRAME_BYTES,
            nats: None,
            losses: LinkLosses::default(),
        }
    }
}

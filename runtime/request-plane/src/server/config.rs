//! The settings of a server.

use crate::frame::DEFAULT_MAX_FRAME_BYTES;

/// The limits that a worker's server sets for its routers.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Streams open at the same time on one connection. More streams fail as overloaded.
    pub max_streams_per_connection: usize,
    /// Connections at the same time: one for each router thread that uses this worker. More connections are refused with
    /// a reason.
    pub max_connections: usize,
    /// Largest frame accepted from a router, in bytes. The server announces it in its hello, so a larger call fails at the
    /// router.
    pub max_frame_bytes: usize,
    /// Bytes kept for a stream beyond its window. A stream that exceeds them fails as overloaded.
    pub stream_backlog_bytes: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_streams_per_connection: 1024,
            max_connections: 1024,
            max_frame_bytes: DEFAULT_MAX_FRAME_BYTES,
            // About 20,000 tokens' worth of chunks: longer than answers are, so only a router in trouble reaches it.
            stream_backlog_bytes: 4 << 20,
        }
    }
}

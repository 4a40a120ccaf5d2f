//! A call with its bulk parts.

use bytes::Bytes;
use signalbox_protocol::Call;

/// A call with its bulk parts, which travel as bytes beside the call's JSON.
#[derive(Debug, Clone)]
pub struct CallParts {
    /// The call.
    pub call: Call,
    /// The prompt's token ids; empty for all calls but [`Call::Generate`].
    pub tokens: Vec<u32>,
    /// The client's own request body, unchanged; empty for all calls but [`Call::Generate`].
    pub body: Bytes,
}

//! A link without a worker and a socket, for benches that count the cost of frames. A bench opens calls on it, and passes
//! it bytes as if a read had returned them.

use bytes::{Bytes, BytesMut};

use super::{config::LinkConfig, pump::take_frames, response::ResponseStream, state::SharedLink};
use crate::{
    call_parts::CallParts,
    frame::{FrameCodec, MAX_DATA_FRAME_BYTES, PieceTokens, put_data},
};

/// The router's end of a connection without another end.
#[derive(Debug)]
pub struct BenchLink {
    link: SharedLink,
    codec: FrameCodec,
    arrived: BytesMut,
    written: BytesMut,
}

impl Default for BenchLink {
    fn default() -> Self {
        Self {
            link: SharedLink::new(String::new(), LinkConfig::default(), false),
            codec: FrameCodec::new(MAX_DATA_FRAME_BYTES),
            arrived: BytesMut::new(),
            written: BytesMut::new(),
        }
    }
}

impl BenchLink {
    /// Opens a stream and drops its Open frame as if it had been written. Streams count from 1.
    ///
    /// # Errors
    /// The link's refusal, as text.
    pub fn open(&mut self, parts: &CallParts) -> Result<(u32, ResponseStream), String> {
        let opened = self.link.with(|link| link.mux.open(parts));
        let stream = opened.map_err(|refusal| format!("{refusal:?}"))?;
        self.take_written();
        Ok((stream, ResponseStream::new(self.link.clone(), stream)))
    }

    /// Appends a Data frame to `frames`, as the worker writes it.
    pub fn write_data(frames: &mut BytesMut, stream: u32, bytes: &Bytes) {
        put_data(frames, stream, PieceTokens::Count(1), bytes);
    }

    /// Takes `frames` as the bytes of one read.
    ///
    /// # Errors
    /// What would end the connection, as text.
    pub fn arrive(&mut self, frames: &[u8]) -> Result<(), String> {
        self.arrived.extend_from_slice(frames);
        take_frames(&mut self.codec, &mut self.arrived, &self.link).map_err(|end| end.to_string())?;
        // Drops the Credit frames of earlier reads.
        self.take_written();
        Ok(())
    }

    fn take_written(&mut self) {
        self.written.clear();
        self.link.with(|link| link.mux.take_output(&mut self.written));
    }
}

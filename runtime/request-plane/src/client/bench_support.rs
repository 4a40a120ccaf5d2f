//! A link with neither worker nor socket, for counting what frames cost: calls are opened on it, and bytes arrive as they
//! would from a read.

use bytes::{Bytes, BytesMut};

use super::{LinkConfig, ResponseStream, pump::take_frames, state::SharedLink};
use crate::{
    CallParts,
    frame::{FrameCodec, MAX_DATA_FRAME_BYTES, put_data},
};

/// The router's end of a connection that nobody is at the other end of.
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
    /// Opens a stream and takes its Open frame as written. The streams count from 1.
    ///
    /// # Errors
    /// Those of the link, as text.
    pub fn open(&mut self, parts: &CallParts) -> Result<(u32, ResponseStream), String> {
        let opened = self.link.with(|link| link.mux.open(parts));
        let stream = opened.map_err(|refusal| format!("{refusal:?}"))?;
        self.take_written();
        Ok((stream, ResponseStream::new(self.link.clone(), stream)))
    }

    /// A Data frame as the worker writes it, appended to `frames`.
    pub fn write_data(frames: &mut BytesMut, stream: u32, bytes: &Bytes) {
        put_data(frames, stream, 1, bytes);
    }

    /// These frames arrive in one read.
    ///
    /// # Errors
    /// What would end the connection, as text.
    pub fn arrive(&mut self, frames: &[u8]) -> Result<(), String> {
        self.arrived.extend_from_slice(frames);
        take_frames(&mut self.codec, &mut self.arrived, &self.link).map_err(|ended| ended.to_string())?;
        // What reading gave back as credit.
        self.take_written();
        Ok(())
    }

    fn take_written(&mut self) {
        self.written.clear();
        self.link.with(|link| link.mux.take_output(&mut self.written));
    }
}

//! What the reader, the writer and the responders of one router's connection share.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

use super::send_queue::SendQueue;
use crate::frame::Frame;

/// The shared state of one router's connection.
#[derive(Debug)]
pub(super) struct RouterConnection {
    send_queue: Mutex<SendQueue>,
    /// Whether output was queued since the last flush.
    dirty: AtomicBool,
    writer: Notify,
    /// Cancelled once the reader or the writer has ended, so that the other one ends too.
    gone: CancellationToken,
}

impl RouterConnection {
    pub(super) fn new(send_queue: SendQueue) -> Self {
        Self {
            send_queue: Mutex::new(send_queue),
            dirty: AtomicBool::new(false),
            writer: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    /// Changes the send queue. The output waits for a [`flush`](Self::flush).
    pub(super) fn queue<R>(&self, change: impl FnOnce(&mut SendQueue) -> R) -> R {
        let mut send_queue = self.send_queue.lock();
        let result = change(&mut send_queue);
        let woken = send_queue.take_woken();
        if send_queue.has_output() {
            self.dirty.store(true, Ordering::Release);
        }
        drop(send_queue);
        for signal in woken {
            signal.wake();
        }
        result
    }

    /// Wakes the writer if output was queued.
    pub(super) fn flush(&self) {
        if self.dirty.load(Ordering::Acquire) && self.dirty.swap(false, Ordering::AcqRel) {
            self.writer.notify_one();
        }
    }

    pub(super) fn send_drain(&self) {
        self.queue(|send_queue| send_queue.put(Frame::Drain));
        self.flush();
    }

    /// Wakes the writer, even if nothing is queued.
    pub(super) fn wake_writer(&self) {
        self.writer.notify_one();
    }

    /// Completes once the writer is woken.
    pub(super) fn writer_woken(&self) -> Notified<'_> {
        self.writer.notified()
    }

    /// Cancels every stream and ends the writer.
    pub(super) fn close(&self) {
        self.queue(SendQueue::close);
        self.gone.cancel();
    }

    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

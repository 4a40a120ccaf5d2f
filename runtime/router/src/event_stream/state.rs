//! The pure state behind the [`EventStream`](super::EventStream) actor: where one worker's stream is, and what to do
//! next. Each method takes one fact and returns the action that follows from it; the actor performs the action.

use std::{fmt, time::Duration};

use signalbox_event_plane::{BatchCheck, StreamCursor};
use signalbox_protocol::{KvEvent, KvEventBatch, KvSnapshot, WorkerEpoch};

/// Wait before a failed snapshot is requested again. It doubles with each failure, up to the longest: a worker that is
/// leaving sends no snapshot, and its stream runs until the roster stops it.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(50);
const SNAPSHOT_RETRY_MAX: Duration = Duration::from_secs(2);

/// Numbers the resyncs of one stream. A snapshot, a batch or a retry that belongs to an earlier resync is ignored:
/// the index was emptied since, and the credit it would add may be wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resync(u64);

/// What the actor has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// End the subscription, report the worker as resyncing, drop all its credit, and request a snapshot.
    Resync { resync: Resync, reason: ResyncReason },
    /// Request a snapshot again.
    FetchSnapshot { resync: Resync },
    /// Report the end of this delay to [`StreamState::on_retry`].
    RetryAfter {
        resync: Resync,
        delay: Duration,
        reason: String,
    },
    /// Credit the KV blocks of a snapshot, report the worker as followed, and subscribe to the plane from the
    /// position `next`.
    Follow {
        resync: Resync,
        stored: &'a [KvEvent],
        next: (WorkerEpoch, u64),
    },
    /// Apply the events of a batch to the index.
    Apply(&'a [KvEvent]),
    /// Log that the worker publishes in this later epoch; once for each.
    LogLaterEpoch(WorkerEpoch),
}

/// Why a stream starts again from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResyncReason {
    /// The stream has just started.
    Start,
    /// A batch arrived before the one that was due.
    Gap { expected: u64, received: u64 },
    /// The plane no longer keeps the batches that are missing.
    Skipped,
    /// The worker reported batches that never arrived.
    Lag { expected: u64, reported: u64 },
}

/// How far the stream is at one tick.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    plane_is_up: bool,
    /// The next batch that the stream expects.
    expected: u64,
    /// The next batch that the worker will publish, as it last reported.
    reported: u64,
}

/// What the stream does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for a snapshot. The index holds no credit of the worker.
    Resyncing,
    /// Applies batches.
    Following,
    /// Ignores everything: the worker left, or its events are not used any more.
    Stopped,
}

/// All mutable state of an event stream.
#[derive(Debug)]
pub(super) struct StreamState {
    /// The worker's epoch. A worker that restarts gets a stream of its own.
    epoch: WorkerEpoch,
    phase: Phase,
    cursor: StreamCursor,
    resync: Resync,
    retry_delay: Duration,
    last_progress: Progress,
    /// Whether a batch was applied since the last snapshot. Until the first batch is applied, the plane may repeat
    /// or skip batches that the snapshot contains, and nothing is lost. A real loss shows as a gap in front of the next
    /// batch, or as a lag at a later tick.
    applied_since_snapshot: bool,
    /// The latest epoch that was logged.
    logged: WorkerEpoch,
}

impl StreamState {
    pub(super) fn new(epoch: WorkerEpoch) -> Self {
        Self {
            epoch,
            logged: epoch,
            phase: Phase::Resyncing,
            cursor: StreamCursor::default(),
            resync: Resync::default(),
            retry_delay: SNAPSHOT_RETRY,
            last_progress: Progress::default(),
            applied_since_snapshot: false,
        }
    }

    /// The stream starts.
    pub(super) fn start(&mut self) -> Option<Action<'static>> {
        (self.phase != Phase::Stopped).then(|| self.begin_resync(ResyncReason::Start))
    }

    /// The snapshot that was requested for `resync` arrived, or could not be fetched or read.
    pub(super) fn on_snapshot<'a>(
        &mut self,
        resync: Resync,
        snapshot: Result<&'a KvSnapshot, String>,
    ) -> Option<Action<'a>> {
        if !self.is_current(resync) || self.phase != Phase::Resyncing {
            return None;
        }
        let reason = match snapshot {
            Ok(snapshot) if snapshot.epoch == self.epoch => {
                self.phase = Phase::Following;
                self.retry_delay = SNAPSHOT_RETRY;
                self.applied_since_snapshot = false;
                self.cursor.resume(snapshot.epoch, snapshot.next_sequence);
                return Some(Action::Follow {
                    resync,
                    stored: &snapshot.stored,
                    next: (snapshot.epoch, snapshot.next_sequence),
                });
            }
            Ok(snapshot) => format!("the snapshot is of epoch {}, not {}", snapshot.epoch, self.epoch),
            Err(reason) => reason,
        };
        let delay = self.retry_delay;
        self.retry_delay = (delay * 2).min(SNAPSHOT_RETRY_MAX);
        Some(Action::RetryAfter {
            resync,
            delay,
            reason,
        })
    }

    /// The delay of [`Action::RetryAfter`] is over.
    pub(super) fn on_retry(&self, resync: Resync) -> Option<Action<'static>> {
        (self.is_current(resync) && self.phase == Phase::Resyncing)
            .then_some(Action::FetchSnapshot { resync })
    }

    /// The subscription of `resync` delivered a batch.
    pub(super) fn on_batch<'a>(&mut self, resync: Resync, batch: &'a KvEventBatch) -> Option<Action<'a>> {
        if !self.is_following(resync) {
            return None;
        }
        match self.cursor.check(batch.epoch, batch.sequence) {
            BatchCheck::Apply => {
                self.applied_since_snapshot = true;
                Some(Action::Apply(&batch.events))
            }
            BatchCheck::Duplicate | BatchCheck::OldEpoch => None,
            BatchCheck::Gap { expected } => Some(self.begin_resync(ResyncReason::Gap {
                expected,
                received: batch.sequence,
            })),
            BatchCheck::NewEpoch => {
                let is_new = batch.epoch > self.logged;
                self.logged = self.logged.max(batch.epoch);
                is_new.then_some(Action::LogLaterEpoch(batch.epoch))
            }
        }
    }

    /// The subscription of `resync` may have skipped batches.
    pub(super) fn on_skipped(&mut self, resync: Resync) -> Option<Action<'static>> {
        (self.is_following(resync) && self.applied_since_snapshot)
            .then(|| self.begin_resync(ResyncReason::Skipped))
    }

    /// Compares the stream with what it was at the previous tick, and with what the worker reports. This finds the loss
    /// of a worker's last batches before it becomes idle; no later batch reveals it.
    ///
    /// Batches take milliseconds and ticks are seconds apart. So a batch that was reported by the previous tick, and
    /// that is still the next one expected, is lost; unless the plane was down, which delivers it later.
    pub(super) fn on_tick(&mut self, plane_is_up: bool, reported: u64) -> Option<Action<'static>> {
        let progress = Progress {
            plane_is_up,
            expected: self.cursor.position().map_or(0, |(_, next)| next),
            reported,
        };
        let previous = std::mem::replace(&mut self.last_progress, progress);
        (self.phase == Phase::Following && previous.shows_loss(progress)).then(|| {
            self.begin_resync(ResyncReason::Lag {
                expected: progress.expected,
                reported,
            })
        })
    }

    /// The worker left, or its events are not used any more: every later call returns nothing.
    pub(super) fn stop(&mut self) {
        self.phase = Phase::Stopped;
    }

    fn begin_resync(&mut self, reason: ResyncReason) -> Action<'static> {
        self.phase = Phase::Resyncing;
        self.resync.0 += 1;
        Action::Resync {
            resync: self.resync,
            reason,
        }
    }

    fn is_current(&self, resync: Resync) -> bool {
        resync == self.resync
    }

    fn is_following(&self, resync: Resync) -> bool {
        self.is_current(resync) && self.phase == Phase::Following
    }
}

impl Progress {
    /// Whether a batch is lost that the worker had reported at this tick, judged at the tick `now`.
    fn shows_loss(self, now: Self) -> bool {
        self.plane_is_up && now.plane_is_up && now.expected == self.expected && now.expected < self.reported
    }
}

impl fmt::Display for ResyncReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("the stream starts"),
            Self::Gap { expected, received } => {
                write!(f, "batch {received} arrived where batch {expected} was due")
            }
            Self::Skipped => f.write_str("the event plane no longer keeps the batches that are missing"),
            Self::Lag { expected, reported } => write!(
                f,
                "batch {expected} is missing although the worker reported every batch before {reported}"
            ),
        }
    }
}

#[cfg(test)]
mod tests;

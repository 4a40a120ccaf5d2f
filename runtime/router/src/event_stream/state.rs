//! The pure state behind the [`EventStream`](super::EventStream) actor: where one worker's stream is, and what to do
//! next. Each method takes one fact and returns the action that follows from it; the actor performs the action.

use std::{collections::VecDeque, time::Duration};

use signalbox_event_plane::{BatchCheck, StreamCursor};
use signalbox_protocol::{KvDigest, KvEvent, KvEventBatch, KvSnapshot, WorkerEpoch};

pub(super) use self::reason::ResyncReason;

mod reason;

/// Wait before a failed snapshot is requested again. It doubles with each failure, up to the longest: a worker that is
/// leaving sends no snapshot, and its stream runs until the roster stops it.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(50);
const SNAPSHOT_RETRY_MAX: Duration = Duration::from_secs(2);

/// Wait before the snapshot of a resync that follows another one closely, whatever the cause. It doubles with each, up to
/// the longest: a worker whose batches never fit costs a snapshot every half minute, and is credited with nothing
/// meanwhile.
const RESYNC_DELAY: Duration = Duration::from_millis(100);
const RESYNC_DELAY_MAX: Duration = Duration::from_secs(30);
/// Ticks without a resync after which the next one begins at once again: ten seconds.
const CALM_TICKS: u32 = 5;

/// Ticks for which a stream may be ahead of what the worker reports: twelve seconds. A report is at most some eight
/// seconds old, in the largest fleet.
const AHEAD_TICKS: u32 = 6;

/// Positions whose digest is kept, to compare with a report that comes later: a second of a busy engine.
const MAX_DIGESTS: usize = 128;

/// Numbers the resyncs of one stream. A snapshot, a batch or a retry that belongs to an earlier resync is ignored:
/// the index was emptied since, and the credit it would add may be wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resync(u64);

/// What the actor has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// End the subscription, report the worker as resyncing, and drop all its credit. Request a snapshot after this delay:
    /// report its end to [`StreamState::on_retry`].
    Resync {
        resync: Resync,
        reason: ResyncReason,
        delay: Duration,
    },
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

/// What the index credits the worker with at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Credit {
    pub(super) digest: KvDigest,
    /// Whether the index lacks blocks of the worker, because it is full. Then the worker may hold more.
    pub(super) is_partial: bool,
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
    /// Wait before the snapshot of the next resync.
    resync_delay: Duration,
    /// Ticks since the stream began to follow.
    calm_ticks: u32,
    last_progress: Progress,
    /// A position of the stream that the worker had not reported, and for how many ticks.
    ahead: Option<(u64, u32)>,
    /// Batches before this one may be of another publisher than the worker. They are ignored, and the worker's own show
    /// as a lag.
    distrusted_before: u64,
    /// What the worker last reported to hold, with the next batch then.
    reported: Option<(u64, KvDigest)>,
    /// The latest positions of the stream, with what the index held there.
    credits: VecDeque<(u64, Credit)>,
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
            resync_delay: Duration::ZERO,
            calm_ticks: 0,
            last_progress: Progress::default(),
            ahead: None,
            distrusted_before: 0,
            reported: None,
            credits: VecDeque::new(),
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
                self.calm_ticks = 0;
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
        if !self.is_following(resync) || (batch.epoch, batch.sequence) < (self.epoch, self.distrusted_before)
        {
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
        if self.phase != Phase::Following {
            return None;
        }
        self.calm_ticks += 1;
        if self.calm_ticks == CALM_TICKS {
            self.resync_delay = Duration::ZERO;
        }
        let expected = progress.expected;
        if previous.shows_loss(progress) {
            return Some(self.begin_resync(ResyncReason::Lag { expected, reported }));
        }
        if self.is_ahead(expected, reported) {
            self.distrusted_before = self.distrusted_before.max(expected);
            return Some(self.begin_resync(ResyncReason::Ahead { expected, reported }));
        }
        None
    }

    /// Whether the stream has been ahead of the worker's reports for too long: a position that it had some ticks ago is
    /// still not reported. Only for workers that report what they hold: others may report a batch late.
    fn is_ahead(&mut self, expected: u64, reported: u64) -> bool {
        if self.reported.is_none() {
            return false;
        }
        self.ahead = match self.ahead {
            Some((position, ticks)) if position > reported => Some((position, ticks + 1)),
            _ if expected > reported => Some((expected, 1)),
            _ => None,
        };
        self.ahead.is_some_and(|(_, ticks)| ticks > AHEAD_TICKS)
    }

    /// The worker reports what it holds by the batches before `next`.
    pub(super) fn on_report(&mut self, next: u64, digest: KvDigest) -> Option<Action<'static>> {
        self.reported = Some((next, digest));
        self.compare()
    }

    /// The index holds this now, after a snapshot or a batch.
    pub(super) fn on_applied(&mut self, credit: Credit) -> Option<Action<'static>> {
        let (_, next) = self
            .cursor
            .position()
            .filter(|_| self.phase == Phase::Following)?;
        if self.credits.len() == MAX_DIGESTS {
            self.credits.pop_front();
        }
        self.credits.push_back((next, credit));
        self.compare()
    }

    /// Compares the worker's last report with what the index held at the same position, if the stream is there.
    fn compare(&mut self) -> Option<Action<'static>> {
        let (next, reported) = self.reported?;
        let place = self
            .credits
            .binary_search_by_key(&next, |(position, _)| *position)
            .ok()?;
        let (_, credit) = self.credits[place];
        let credited = credit.digest;
        let agrees = match credit.is_partial {
            true => credited.blocks <= reported.blocks,
            false => credited == reported,
        };
        (self.phase == Phase::Following && !agrees).then(|| {
            self.begin_resync(ResyncReason::Mismatch {
                next,
                credited,
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
        self.ahead = None;
        self.credits.clear();
        let delay = self.resync_delay;
        if reason != ResyncReason::Start {
            self.resync_delay = (delay * 2).clamp(RESYNC_DELAY, RESYNC_DELAY_MAX);
        }
        Action::Resync {
            resync: self.resync,
            reason,
            delay,
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

#[cfg(test)]
mod tests;

//! A policy that behaves well and uses every optional interface: it learns from outcomes, passes what it learnt to its
//! next version, explains its decisions, and reads every extra signal.

use signalbox_policy_sdk::{
    Candidates, Columns, Decision, Info, Outcome, Policy, Request, Settings, export_policy,
};

/// The cost of a worker is the mean time to its first token, in ms, plus the two signals.
#[derive(Debug, Default)]
pub struct Learner {
    /// For each worker: its number, the number of outcomes, and the sum of their times to the first token, in ms.
    workers: Vec<(u32, u32, f32)>,
    /// The setting `forget`: refuse the snapshot of an earlier version.
    forget: bool,
}

/// Bytes of one worker in a snapshot: three little-endian words.
const ENTRY: usize = 12;

impl Learner {
    fn mean(&self, worker: u32) -> f32 {
        self.workers
            .iter()
            .find(|(number, ..)| *number == worker)
            .map_or(0.0, |&(_, count, total)| total / count as f32)
    }
}

impl Policy for Learner {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.forget = settings.switch("forget", false)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        let info = Info::new("learner", "1.0.0", Columns::empty());
        Info {
            extra: vec!["kv-use".into(), "overlap-share".into()],
            ..info
        }
    }

    fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
        let signals = candidates.signal(0).iter().zip(candidates.signal(1));
        let costs = candidates.worker.iter().zip(signals);
        Decision::Costs(
            costs
                .map(|(&worker, (kv_use, overlap))| self.mean(worker) + kv_use + overlap)
                .collect(),
        )
    }

    fn observe(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            match self
                .workers
                .iter_mut()
                .find(|(number, ..)| *number == outcome.worker)
            {
                Some((_, count, total)) => {
                    *count += 1;
                    *total += outcome.ttft_ms;
                }
                None => self.workers.push((outcome.worker, 1, outcome.ttft_ms)),
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let words = |&(worker, count, total): &(u32, u32, f32)| [worker, count, total.to_bits()];
        self.workers
            .iter()
            .flat_map(words)
            .flat_map(u32::to_le_bytes)
            .collect()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        if self.forget {
            return Err("told to forget".into());
        }
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let entry = |bytes: &[u8]| (word(bytes), word(&bytes[4..]), f32::from_bits(word(&bytes[8..])));
        self.workers = snapshot.chunks_exact(ENTRY).map(entry).collect();
        Ok(())
    }

    fn explain(&self, _: &Request, candidates: &Candidates, chosen: usize) -> String {
        format!(
            "worker {} answers in {:.1} ms",
            candidates.worker[chosen],
            self.mean(candidates.worker[chosen])
        )
    }
}

export_policy!(Learner, learning, explaining);

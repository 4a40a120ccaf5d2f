//! A policy that behaves well and uses every optional interface: it learns from outcomes, passes what it learnt to its
//! next version, explains its decisions, and reads columns of every kind.

use signalbox_policy_sdk::{
    Candidates, Decision, Info, Key, Number, Outcome, Policy, Request, Settings, export_policy,
};

/// The cost of a worker is the mean time to its first token, in ms, plus two shares.
#[derive(Debug, Default)]
pub struct Learner {
    /// For each worker: its key, the number of outcomes, and the sum of their times to the first token, in ms.
    workers: Vec<(u64, u32, f32)>,
    /// The setting `forget`: refuse the snapshot of an earlier version.
    forget: bool,
}

/// Bytes of one worker in a snapshot: its key, and two little-endian words.
const ENTRY: usize = 16;

impl Learner {
    fn mean(&self, worker: u64) -> f32 {
        self.workers
            .iter()
            .find(|(key, ..)| *key == worker)
            .map_or(0.0, |&(_, count, total)| total / count as f32)
    }
}

impl Policy for Learner {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.forget = settings.switch("forget", false)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new("learner", "1.0.0")
            .numbers([Number::KvUse, Number::OverlapShare])
            .keys([Key::Worker])
    }

    fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
        let shares = candidates
            .numbers(Number::KvUse)
            .iter()
            .zip(candidates.numbers(Number::OverlapShare));
        let costs = candidates.keys(Key::Worker).iter().zip(shares);
        Decision::Costs(
            costs
                .map(|(&worker, (kv_use, overlap))| self.mean(worker) + kv_use + overlap)
                .collect(),
        )
    }

    fn observe(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            match self.workers.iter_mut().find(|(key, ..)| *key == outcome.worker) {
                Some((_, count, total)) => {
                    *count += 1;
                    *total += outcome.ttft_ms;
                }
                None => self.workers.push((outcome.worker, 1, outcome.ttft_ms)),
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut snapshot = Vec::new();
        for (worker, count, total) in &self.workers {
            snapshot.extend(worker.to_le_bytes());
            snapshot.extend(count.to_le_bytes());
            snapshot.extend(total.to_bits().to_le_bytes());
        }
        snapshot
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        if self.forget {
            return Err("told to forget".into());
        }
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let key = |bytes: &[u8]| u64::from(word(bytes)) | u64::from(word(&bytes[4..])) << 32;
        let entry = |bytes: &[u8]| (key(bytes), word(&bytes[8..]), f32::from_bits(word(&bytes[12..])));
        self.workers = snapshot.chunks_exact(ENTRY).map(entry).collect();
        Ok(())
    }

    fn explain(&self, _: &Request, candidates: &Candidates, chosen: usize) -> String {
        let mean = self.mean(candidates.keys(Key::Worker)[chosen]);
        format!("it answers in {mean:.1} ms")
    }
}

export_policy!(Learner, learning, explaining);

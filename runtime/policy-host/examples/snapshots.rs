//! Prints trial requests as JSON lines, each a request with its candidates. Its output is `tests/snapshots.jsonl`. Run
//! it again when the fields of requests or candidates, or their trial values, change.

use std::io::{self, BufWriter, Write};

use signalbox_policy_host::trial_requests;

/// Numbers of candidates: small, so that a person can review the file.
const SIZES: [usize; 6] = [1, 2, 3, 8, 21, 64];
/// Requests of each size.
const ROUNDS: u64 = 16;

fn main() -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for request in trial_requests(&SIZES, ROUNDS) {
        serde_json::to_writer(&mut out, &request)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

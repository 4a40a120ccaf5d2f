//! Prints made-up decisions as JSON lines, each a request with its candidates: `tests/snapshots.jsonl` was written by
//! this. Run it again only when the shape of requests or candidates changes.

use std::io::{self, BufWriter, Write};

use signalbox_policy_host::trial_requests;

/// Numbers of candidates, small enough that the file can be read and reviewed.
const SIZES: [usize; 6] = [1, 2, 3, 8, 21, 64];
/// Decisions of each size.
const ROUNDS: u64 = 16;

fn main() -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for decision in trial_requests(&SIZES, ROUNDS) {
        serde_json::to_writer(&mut out, &decision)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

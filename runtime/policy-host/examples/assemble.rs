//! Turns WebAssembly text into its binary form: `assemble IN.wat OUT.wasm`. Some guests are written as text, because no
//! compiler makes them.

use std::{env, fs};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [text, binary] = arguments.as_slice() else {
        anyhow::bail!("usage: assemble IN.wat OUT.wasm")
    };
    fs::write(binary, wat::parse_file(text)?)?;
    Ok(())
}

//! Turns WebAssembly text into its binary form: `assemble IN.wat OUT.wasm`. For the few guests no compiler would make.

use std::{env, fs};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [text, binary] = arguments.as_slice() else {
        anyhow::bail!("usage: assemble IN.wat OUT.wasm")
    };
    fs::write(binary, wat::parse_file(text)?)?;
    Ok(())
}

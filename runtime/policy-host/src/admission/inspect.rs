//! A look at the bytes before they are compiled: whether they are a component at all, and whether compiling them
//! would take longer than it may. Compilers' time on hostile input is outside wasmtime's promises.

use wasmparser::{Encoding, Parser, Payload};

use super::{AdmissionError, unsound};

/// Functions in all. A policy in Rust has some 200; compiling takes about 0.1 ms each.
const MAX_FUNCTIONS: u32 = 10_000;
/// Bytes of one function's code: register allocation takes more than linear time in it. Rust's largest have 10 KB.
const MAX_FUNCTION_BYTES: usize = 128 << 10;
/// Modules and components nested in each other.
const MAX_PARTS: u32 = 100;

/// Refuses what is no component or too much to compile.
pub(super) fn inspect(wasm: &[u8]) -> Result<(), AdmissionError> {
    if wasm.is_empty() {
        return Err(unsound(
            "the upload is empty; send the bytes of a WebAssembly component",
        ));
    }
    if !wasm.starts_with(b"\0asm") {
        let what = if wasm.trim_ascii_start().starts_with(b"(") {
            "WebAssembly text, not its binary form"
        } else {
            "no WebAssembly"
        };
        return Err(unsound(format!(
            "this is {what} (it should begin with the bytes 00 61 73 6d); send the bytes of a WebAssembly component"
        )));
    }
    if Parser::is_core_wasm(wasm) {
        return Err(unsound(
            "this is a core WebAssembly module, not a component; link it with wasm-component-ld, or convert it with \
             `wasm-tools component new`",
        ));
    }
    let (mut functions, mut parts) = (0, 0);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| unsound(format!("the component is not valid: {error}")))? {
            Payload::Version {
                num,
                encoding: Encoding::Component,
                ..
            } if num != WASM_COMPONENT_VERSION => {
                return Err(unsound(format!(
                    "this component is of format {num:#x}; {WASM_COMPONENT_VERSION:#x} is known"
                )));
            }
            Payload::CodeSectionStart { count, .. } => functions += count,
            Payload::CodeSectionEntry(body) if body.as_bytes().len() > MAX_FUNCTION_BYTES => {
                return Err(unsound(format!(
                    "one of its functions has {} bytes; {MAX_FUNCTION_BYTES} is the most that is compiled",
                    body.as_bytes().len()
                )));
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => parts += 1,
            _ => {}
        }
        if functions > MAX_FUNCTIONS || parts > MAX_PARTS {
            return Err(unsound(format!(
                "it has more than {MAX_FUNCTIONS} functions or {MAX_PARTS} modules, too much to compile for a policy"
            )));
        }
    }
    Ok(())
}

/// The version field of the component binaries wasmtime 48 reads.
const WASM_COMPONENT_VERSION: u16 = 0xd;

//! Checks the bytes before they are compiled: whether they are a component, and whether the compiler would take too
//! long. wasmtime does not promise how long it takes to compile hostile input.

use wasmparser::{Encoding, Parser, Payload};

/// Most functions of a component. A policy in Rust has some 200. One takes about 0.1 ms to compile.
const MAX_FUNCTIONS: u32 = 10_000;
/// Longest code of one function, in bytes. Register allocation takes more than linear time in it. The longest of a
/// policy in Rust has some 10 KB.
const MAX_FUNCTION_BYTES: usize = 128 << 10;
/// Most modules and components nested in a component.
const MAX_PARTS: u32 = 100;
/// The version field of the component binaries that wasmtime 48 reads.
const WASM_COMPONENT_VERSION: u16 = 0xd;

/// Refuses bytes that are not a component, and a component that takes too long to compile. An error is a sentence for
/// the author.
pub(super) fn inspect(wasm: &[u8]) -> Result<(), String> {
    if wasm.is_empty() {
        return Err("the upload is empty; send the bytes of a WebAssembly component".into());
    }
    if !wasm.starts_with(b"\0asm") {
        let what = if wasm.trim_ascii_start().starts_with(b"(") {
            "WebAssembly text, not the binary form"
        } else {
            "not WebAssembly"
        };
        return Err(format!(
            "the upload is {what}, which begins with the bytes 00 61 73 6d; send the bytes of a WebAssembly component"
        ));
    }
    if Parser::is_core_wasm(wasm) {
        return Err(
            "the upload is a core WebAssembly module, not a component; link it with wasm-component-ld, or convert it \
             with `wasm-tools component new`"
                .into(),
        );
    }
    let (mut functions, mut parts, mut depth) = (0, 0, 0);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| format!("the component is not valid: {error}"))? {
            Payload::Version {
                num,
                encoding: Encoding::Component,
                ..
            } if num != WASM_COMPONENT_VERSION => {
                return Err(format!(
                    "the component has the format {num:#x}; this host reads {WASM_COMPONENT_VERSION:#x}"
                ));
            }
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            // wasmtime joins two components that call each other by code with a memory of each, which this engine does
            // not compile.
            Payload::ModuleSection { .. } if depth > 1 => {
                return Err(
                    "the component contains another component with code of its own; a policy is a single component: \
                     link its parts into one before they become a component"
                        .into(),
                );
            }
            Payload::CodeSectionStart { count, .. } => functions += count,
            Payload::CodeSectionEntry(body) if body.as_bytes().len() > MAX_FUNCTION_BYTES => {
                return Err(format!(
                    "a function of the component has {} bytes of code; at most {MAX_FUNCTION_BYTES} are possible",
                    body.as_bytes().len()
                ));
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => parts += 1,
            _ => {}
        }
        if functions > MAX_FUNCTIONS || parts > MAX_PARTS {
            return Err(format!(
                "the component has more than {MAX_FUNCTIONS} functions or {MAX_PARTS} modules, the limits for a policy"
            ));
        }
    }
    Ok(())
}

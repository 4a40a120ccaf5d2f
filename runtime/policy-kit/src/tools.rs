//! The tools that build policies: where they are looked for, and what to do where one is missing.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A tool that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What it is.
    pub(crate) what: &'static str,
    /// What installs it, as a command in the folder.
    pub(crate) install: &'static str,
}

const CARGO: Missing = Missing {
    what: "cargo is not installed",
    install: "get Rust from https://rustup.rs, then: rustup target add wasm32-unknown-unknown",
};
pub(crate) const WASM_TARGET: Missing = Missing {
    what: "this Rust has no target wasm32-unknown-unknown",
    install: "rustup target add wasm32-unknown-unknown",
};
const COMPONENTIZE_QJS: Missing = Missing {
    what: "componentize-qjs is not installed",
    install: "npm install",
};
const COMPONENTIZE_PY: Missing = Missing {
    what: "componentize-py is not installed",
    install: "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt",
};
const C_COMPILER: Missing = Missing {
    what: "there is no C compiler for WebAssembly",
    install: "python3 -m venv .venv && .venv/bin/pip install ziglang",
};

/// A C compiler.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CCompiler {
    /// Zig, which has `clang` and the linker in itself: the program, and the arguments that make it a C compiler.
    Zig(PathBuf),
    /// `clang`, with `wasm-ld` beside it.
    Clang(PathBuf),
}

pub(crate) fn cargo() -> Result<PathBuf, Missing> {
    on_path("cargo").ok_or(CARGO)
}

pub(crate) fn componentize_qjs(folder: &Path) -> Result<PathBuf, Missing> {
    let installed = folder.join("node_modules/.bin/componentize-qjs");
    first([Some(installed), on_path("componentize-qjs")]).ok_or(COMPONENTIZE_QJS)
}

pub(crate) fn componentize_py(folder: &Path) -> Result<PathBuf, Missing> {
    let installed = folder.join(".venv/bin/componentize-py");
    first([Some(installed), on_path("componentize-py")]).ok_or(COMPONENTIZE_PY)
}

pub(crate) fn c_compiler(folder: &Path) -> Result<CCompiler, Missing> {
    let zig = first([
        Some(folder.join(".venv/bin/python-zig")),
        on_path("zig"),
        on_path("python-zig"),
    ]);
    let clang = || {
        // Without its linker `clang` cannot make WebAssembly, though it may have the target.
        on_path("wasm-ld")?;
        on_path("clang")
    };
    zig.map(CCompiler::Zig)
        .or_else(|| clang().map(CCompiler::Clang))
        .ok_or(C_COMPILER)
}

/// The first of these that is a file, as an absolute path: tools run in the folder of the policy.
fn first<const N: usize>(places: [Option<PathBuf>; N]) -> Option<PathBuf> {
    let mut places = places.into_iter().flatten();
    places
        .find(|place| place.is_file())
        .and_then(|place| std::path::absolute(place).ok())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|place| place.is_file())
}

//! The build of a policy's folder: the component `policy.wasm` in it.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    component::component_of,
    language::Language,
    tools::{self, CCompiler, Missing, WASM_TARGET},
};

/// The component that a build writes into the folder.
const COMPONENT: &str = "policy.wasm";
/// The world of `wit/policy.wit`.
const WORLD: &str = "policy";
/// A core module on its way to a component, removed after the build.
const CORE_MODULE: &str = "policy.core.wasm";

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The folder has no policy.
    #[error(
        "there is no policy in {}: none of Cargo.toml, policy.c, package.json and policy.py; `runtime policy new NAME` makes a folder",
        .0.display()
    )]
    NoPolicy(PathBuf),
    /// A tool of the language is missing.
    #[error("{what}; in {}, run: {install}", .folder.display())]
    Missing {
        /// What is missing.
        what: &'static str,
        /// What installs it.
        install: &'static str,
        /// Where.
        folder: PathBuf,
    },
    /// A tool does not start, or a file cannot be read or written.
    #[error("{what}")]
    Io {
        /// What cannot be done.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A tool ran and failed; it printed why.
    #[error("{0} failed; its output is above")]
    Failed(String),
    /// A tool succeeded, and what it made is not there or not what it should be.
    #[error("{0}")]
    Nothing(&'static str),
}

/// Builds the policy in `folder` with the tool of its language; returns the component's path. The tools write what they say
/// to this process's standard error.
///
/// # Errors
/// There is no policy, a tool is missing, or the build fails.
pub fn build_folder(folder: &Path) -> Result<PathBuf, BuildError> {
    let language = Language::of_folder(folder).ok_or_else(|| BuildError::NoPolicy(folder.to_owned()))?;
    let component = folder.join(COMPONENT);
    match language {
        Language::Rust => build_rust(folder, &component),
        Language::C => build_c(folder, &component),
        Language::Js => build_js(folder),
        Language::Python => build_python(folder),
    }?;
    Ok(component)
}

fn build_rust(folder: &Path, component: &Path) -> Result<(), BuildError> {
    let cargo = tools::cargo().map_err(|missing| missing_in(folder, missing))?;
    let has_target = wasm_library(folder).is_none_or(|library| library.is_dir());
    if !has_target {
        return Err(missing_in(folder, WASM_TARGET));
    }
    // Not the flags and the target of whoever calls: those of `.cargo/config.toml`.
    let output = Command::new(cargo)
        .args(["build", "--release", "--message-format=json-render-diagnostics"])
        .current_dir(folder)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| not_started("cargo", source))?;
    if !output.status.success() {
        return Err(BuildError::Failed("cargo build".into()));
    }
    let built = built_component(&String::from_utf8_lossy(&output.stdout)).ok_or(BuildError::Nothing(
        "cargo built no component: the crate needs `crate-type = [\"cdylib\"]` and the target wasm32-unknown-unknown",
    ))?;
    let copied = fs::copy(&built, component).map(drop);
    copied.map_err(|source| not_written(component, source))
}

/// Where the toolchain that builds `folder` has its library for WebAssembly. `None` if it cannot be asked.
fn wasm_library(folder: &Path) -> Option<PathBuf> {
    let rustc = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(folder)
        .output();
    let sysroot = String::from_utf8(rustc.ok()?.stdout).ok()?;
    let sysroot = Path::new(sysroot.trim());
    (!sysroot.as_os_str().is_empty()).then(|| sysroot.join("lib/rustlib/wasm32-unknown-unknown"))
}

/// The last `.wasm` file that cargo's messages name: dependencies come first.
fn built_component(messages: &str) -> Option<PathBuf> {
    let artifacts = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact");
    let mut files = Vec::new();
    for message in artifacts {
        let names = message["filenames"].as_array().into_iter().flatten();
        files.extend(names.filter_map(|name| name.as_str().map(PathBuf::from)));
    }
    files
        .into_iter()
        .rfind(|file| file.extension() == Some(OsStr::new("wasm")))
}

fn build_c(folder: &Path, component: &Path) -> Result<(), BuildError> {
    let compiler = tools::c_compiler(folder).map_err(|missing| missing_in(folder, missing))?;
    let (name, mut command) = match &compiler {
        CCompiler::Zig(zig) => {
            let mut command = Command::new(zig);
            command.args(["cc", "--target=wasm32-freestanding"]);
            ("zig cc", command)
        }
        CCompiler::Clang(clang) => {
            let mut command = Command::new(clang);
            command.arg("--target=wasm32-unknown-unknown");
            ("clang", command)
        }
    };
    command
        .args([
            "-std=c11",
            "-O3",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-msimd128",
        ])
        .args(["-ffreestanding", "-nostdlib", "-Isdk"])
        .args(["-Wl,--no-entry", "-Wl,--strip-all"])
        .args(["policy.c", "-o", CORE_MODULE]);
    run(name, command, folder)?;
    let core_module = folder.join(CORE_MODULE);
    let module = fs::read(&core_module).map_err(|source| BuildError::Io {
        what: format!("cannot read {}", core_module.display()),
        source,
    })?;
    // A build without it is complete; the file is ignored by git.
    let _ = fs::remove_file(&core_module);
    let made = component_of(&module).ok_or(BuildError::Nothing("the C compiler made no core module"))?;
    fs::write(component, made).map_err(|source| not_written(component, source))
}

fn build_js(folder: &Path) -> Result<(), BuildError> {
    let tool = tools::componentize_qjs(folder).map_err(|missing| missing_in(folder, missing))?;
    let mut command = Command::new(tool);
    command
        .args(["--wit", "wit", "--world", WORLD, "--js", "component.js", "--module-root", "."])
        // Without WASI and without asynchronous calls, neither of which a policy has.
        .args(["--stub-wasi", "--sync", "--output", COMPONENT]);
    run("componentize-qjs", command, folder)
}

fn build_python(folder: &Path) -> Result<(), BuildError> {
    let tool = tools::componentize_py(folder).map_err(|missing| missing_in(folder, missing))?;
    let mut command = Command::new(tool);
    command
        .args([
            "--wit-path",
            "wit",
            "--world",
            WORLD,
            "componentize",
            "--stub-wasi",
        ])
        .args(["component", "--output", COMPONENT]);
    run("componentize-py", command, folder)
}

fn run(name: &str, mut command: Command, folder: &Path) -> Result<(), BuildError> {
    let output = command
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| not_started(name, source))?;
    if output.status.success() {
        return Ok(());
    }
    // Some tools write their errors there.
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    Err(BuildError::Failed(name.to_owned()))
}

fn missing_in(folder: &Path, Missing { what, install }: Missing) -> BuildError {
    BuildError::Missing {
        what,
        install,
        folder: folder.to_owned(),
    }
}

fn not_started(name: &str, source: io::Error) -> BuildError {
    BuildError::Io {
        what: format!("{name} does not start"),
        source,
    }
}

fn not_written(path: &Path, source: io::Error) -> BuildError {
    BuildError::Io {
        what: format!("cannot write {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_component_is_the_last_one_that_cargo_names() {
        let messages = r#"{"reason":"compiler-artifact","filenames":["/t/libsdk.rlib"]}
{"reason":"compiler-artifact","filenames":["/t/deps/mine.wasm.d","/t/mine.wasm"]}
{"reason":"build-finished","success":true}
not JSON"#;
        assert_eq!(built_component(messages), Some("/t/mine.wasm".into()));
        assert_eq!(built_component("{}"), None);
    }

    #[test]
    fn a_folder_without_a_policy_and_one_without_its_tool_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = build_folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains("runtime policy new"), "{error}");
        let error = missing_in(Path::new("mine"), WASM_TARGET);
        assert_eq!(
            error.to_string(),
            "this Rust has no target wasm32-unknown-unknown; in mine, run: rustup target add wasm32-unknown-unknown"
        );
    }
}

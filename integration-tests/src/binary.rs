//! Paths: the binary under test, and the checkout.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The program under test.
///
/// # Errors
/// The program does not exist; the error names the command that builds it.
pub fn binary() -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os("SIGNALBOX_BINARY") {
        Some(path) => PathBuf::from(path),
        None => beside_this_test()?,
    };
    if !path.is_file() {
        bail!(
            "{} does not exist: build it with `cargo build` in the same profile (`make test` does), or name another \
             binary in SIGNALBOX_BINARY",
            path.display()
        );
    }
    Ok(path)
}

/// Tests are in `target/<profile>/deps`, binaries in `target/<profile>`.
fn beside_this_test() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("the path of this test is unknown")?;
    let profile = test
        .ancestors()
        .nth(2)
        .context("this test is not in a target directory")?;
    Ok(profile.join("runtime"))
}

/// The top of the checkout.
pub fn workspace_root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

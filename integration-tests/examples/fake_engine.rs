//! Runs a fake engine until Ctrl-C, to try `runtime up --upstream` and `runtime doctor` without a GPU:
//! `cargo run -p signalbox-integration-tests --example fake_engine [sglang]`.

use signalbox_integration_tests::fake_engine::{EngineOptions, FakeEngine, ModelFolder};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the address is the program's output")]
async fn main() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let options = match std::env::args().nth(1).as_deref() {
        None | Some("vllm") => EngineOptions::default(),
        Some("sglang") => EngineOptions::sglang(),
        Some(other) => anyhow::bail!("{other:?} is no engine; give vllm or sglang"),
    };
    let engine = FakeEngine::start(folder.serve(options)?).await?;
    println!("{}", engine.url());
    tokio::signal::ctrl_c().await?;
    Ok(())
}

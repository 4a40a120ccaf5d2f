//! `runtime doctor` says of each fake engine what is right and wrong with it, and ends with the verdict.

use signalbox_integration_tests::{
    Worker,
    fake_engine::{EngineOptions, FakeEngine, ModelFolder},
    hub::FakeHub,
    process::Process,
};

/// Runs `runtime doctor`; returns the exit code and the page.
async fn doctor(arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let mut process = Process::start(&[&["doctor"], arguments].concat())?;
    let end = process.ended().await?;
    Ok((end.status.code(), format!("{}{}", end.stdout, end.stderr)))
}

/// Examines an engine with these settings, which names `folder` as its model's root.
async fn examine(folder: &ModelFolder, options: EngineOptions) -> anyhow::Result<(Option<i32>, String)> {
    let engine = FakeEngine::start(EngineOptions {
        root: folder.path().display().to_string(),
        ..options
    })
    .await?;
    doctor(&["--upstream", &engine.url()]).await
}

#[tokio::test]
async fn an_engine_with_everything_on_is_exact() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    for options in [EngineOptions::default(), EngineOptions::sglang()] {
        let flavour = options.flavour;
        let (code, page) = examine(&folder, folder.serve(options)?).await?;
        assert_eq!(code, Some(0), "{flavour:?}: {page}");
        assert!(page.contains("verdict     exact"), "{page}");
        for kind in ["a chat with tools", "a chat of several turns", "a completion"] {
            assert!(page.contains(kind), "{page}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn each_fault_is_named_with_its_mend() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let own = folder.serve(EngineOptions::default())?;
    let template =
        ModelFolder::with_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")?;
    let tokenizer = ModelFolder::with_another_tokenizer()?;
    for (fault, options, code, named) in [
        (
            "events off",
            EngineOptions {
                events: false,
                ..own.clone()
            },
            2,
            "--kv-events-config",
        ),
        (
            "prefix caching off",
            EngineOptions {
                prefix_caching: false,
                ..own.clone()
            },
            2,
            "--no-enable-prefix-caching",
        ),
        (
            "another template",
            EngineOptions {
                artifacts: template.artifacts()?,
                ..own.clone()
            },
            2,
            "differ from token",
        ),
        (
            "another tokenizer",
            EngineOptions {
                artifacts: tokenizer.artifacts()?,
                ..own.clone()
            },
            2,
            "--tokenizer",
        ),
        (
            "another block size",
            EngineOptions {
                stated_block_size: Some(32),
                ..own.clone()
            },
            2,
            "--block-size 16",
        ),
        (
            "no replay",
            EngineOptions {
                replay: false,
                ..own.clone()
            },
            1,
            "replay_endpoint",
        ),
        (
            "cached tokens not reported",
            EngineOptions {
                reports_cached_tokens: false,
                ..own.clone()
            },
            1,
            "--enable-prompt-tokens-details",
        ),
        (
            "no tokenizer",
            EngineOptions {
                root: "nobody/nothing".into(),
                ..own.clone()
            },
            2,
            "--tokenizer",
        ),
    ] {
        let engine = FakeEngine::start(options).await?;
        let (found, page) = doctor(&["--upstream", &engine.url()]).await?;
        assert_eq!(found, Some(code), "{fault}: {page}");
        assert!(page.contains(named), "{fault}: {page}");
    }
    Ok(())
}

#[tokio::test]
async fn stopped_events_and_an_absent_engine_are_blind() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let mut engine = FakeEngine::start(folder.serve(EngineOptions::default())?).await?;
    engine.set_faults(|faults| faults.events_stopped = true);
    let (code, page) = doctor(&["--upstream", &engine.url()]).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(page.contains("no KV event reported a block"), "{page}");
    engine.kill().await;
    let (code, page) = doctor(&["--upstream", &engine.url()]).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(page.contains("cannot connect to the engine"), "{page}");
    Ok(())
}

#[tokio::test]
async fn several_engines_have_the_worst_verdict_of_all() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let good = FakeEngine::start(folder.serve(EngineOptions::default())?).await?;
    let blind = FakeEngine::start(folder.serve(EngineOptions {
        events: false,
        ..EngineOptions::default()
    })?)
    .await?;
    let (code, page) = doctor(&["--upstream", &good.url(), "--upstream", &blind.url()]).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(
        page.contains("verdict     exact") && page.contains("overall     blind"),
        "{page}"
    );
    Ok(())
}

#[tokio::test]
async fn a_tokenizer_that_only_the_hub_has_is_fetched_once() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let engine = FakeEngine::start(EngineOptions {
        root: "org/name".into(),
        ..folder.serve(EngineOptions::default())?
    })
    .await?;
    let home = tempfile::TempDir::new()?;
    let hub = FakeHub::start(folder.path().into()).await?;
    let arguments = [
        format!("--upstream={}", engine.url()),
        format!("--hf-home={}", home.path().display()),
        format!("--hf-endpoint={}", hub.url),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (code, page) = doctor(&[arguments.as_slice(), &["--hf-hub-offline"]].concat()).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(page.contains("no tokenizer of org/name"), "{page}");
    let (code, page) = doctor(&arguments).await?;
    assert_eq!(code, Some(0), "{page}");
    drop(hub);
    let (code, page) = doctor(&arguments).await?;
    assert_eq!(code, Some(0), "{page}");
    Ok(())
}

#[tokio::test]
async fn the_workers_of_a_cluster_are_read() -> anyhow::Result<()> {
    let sim = Worker::sim("sim-1", &["--speedup=0"]).await?;
    let address = format!("--discovery=static://{}", sim.address);
    let (code, page) = doctor(&[&address]).await?;
    assert_eq!(code, Some(0), "{page}");
    assert!(
        page.contains("sim-1 at") && page.contains("verdict     exact"),
        "{page}"
    );
    let with_a_dead_one = format!("{address},127.0.0.1:1");
    let (code, page) = doctor(&[&with_a_dead_one]).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(page.contains("no worker answers"), "{page}");
    Ok(())
}

#[tokio::test]
async fn without_an_address_it_says_what_to_give() -> anyhow::Result<()> {
    let (code, page) = doctor(&[]).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(
        page.contains("--upstream") && page.contains("--discovery"),
        "{page}"
    );
    let (code, page) = doctor(&["--discovery=nowhere"]).await?;
    assert_eq!(code, Some(2), "{page}");
    assert!(page.contains("static://host:port"), "{page}");
    Ok(())
}

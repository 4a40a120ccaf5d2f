//! One thing is broken at an engine: within twenty requests the router shows the right state, with the cause.

use serde_json::json;
use signalbox_integration_tests::{
    NextDoor, eventually,
    fake_engine::{EngineOptions, FakeEngine, ModelFolder},
    workload::Workload,
};

const CHAT: &str = "/v1/chat/completions";

/// Sends twenty chats, of which some repeat. None fails because something else is broken.
async fn twenty_requests(door: &NextDoor) -> anyhow::Result<()> {
    let mut workload = Workload::new(7);
    let texts: Vec<String> = (0..5).map(|_| workload.text(120)).collect();
    for number in 0..20 {
        let mut body = door.chat(&texts[number % 5]);
        body["stream"] = json!(number % 2 == 0);
        let reply = door.cluster.api.post(CHAT, &body).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    Ok(())
}

/// Starts the engine of `options` behind a router that finds the tokenizer in `folder`, sends twenty requests, and checks
/// the state and the words of its cause.
async fn broken(
    folder: ModelFolder,
    options: EngineOptions,
    state: &str,
    words: &[&str],
) -> anyhow::Result<NextDoor> {
    let engine = FakeEngine::start(EngineOptions {
        root: folder.path().display().to_string(),
        ..options
    })
    .await?;
    let door = NextDoor::in_front_of(vec![engine], folder, &[]).await?;
    twenty_requests(&door).await?;
    names(&door, state, words).await?;
    Ok(door)
}

/// Waits for the state, and checks that its cause has these words, and that answers and health show it.
async fn names(door: &NextDoor, state: &str, words: &[&str]) -> anyhow::Result<()> {
    let cause = door.reaches(0, state).await?;
    for word in words {
        assert!(cause.contains(word), "{word:?} is not in {cause:?}");
    }
    let reply = door.cluster.api.post(CHAT, &door.chat("Hello")).await?;
    assert_eq!(reply.header("x-signalbox-kv"), state);
    let health = door.cluster.api.get("/health").await?;
    assert_eq!(health.status, 200, "an engine that is not exact still serves");
    assert!(health.text().contains(state), "{}", health.text());
    let series = [("state", state), ("model", "fake")];
    let shown = door
        .cluster
        .metrics()
        .await?
        .sum("signalbox_worker_kv_state", &series);
    assert_eq!(shown, 1.0, "the metric of {state}");
    Ok(())
}

fn own(folder: &ModelFolder) -> anyhow::Result<EngineOptions> {
    folder.serve(EngineOptions::default())
}

#[tokio::test]
async fn nothing_broken_is_exact() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let options = own(&folder)?;
    let door = broken(folder, options, "exact", &[]).await?;
    assert_eq!(door.parity(0).await?.1, "", "no cause");
    Ok(())
}

#[tokio::test]
async fn events_off_is_fallback() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let options = EngineOptions {
        events: false,
        ..own(&folder)?
    };
    let door = broken(folder, options, "fallback", &["--kv-events-config"]).await?;
    // The router learns from its own decisions.
    let body = door.chat(&Workload::new(8).text(200));
    let first = door.cluster.api.post(CHAT, &body).await?;
    let again = eventually("the router has learned the prompt", || async {
        let again = door.cluster.api.post(CHAT, &body).await?;
        Ok((again.header("x-signalbox-overlap-blocks") != "0").then_some(again))
    })
    .await?;
    assert_eq!(
        again.header("x-signalbox-worker"),
        first.header("x-signalbox-worker")
    );
    Ok(())
}

#[tokio::test]
async fn prefix_caching_off_is_fallback() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let options = EngineOptions {
        prefix_caching: false,
        ..own(&folder)?
    };
    broken(folder, options, "fallback", &["prefix caching is off"]).await?;
    Ok(())
}

#[tokio::test]
async fn another_chat_template_at_the_engine_is_named() -> anyhow::Result<()> {
    let template =
        ModelFolder::with_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")?;
    let folder = ModelFolder::new()?;
    let options = EngineOptions {
        artifacts: template.artifacts()?,
        ..own(&folder)?
    };
    broken(folder, options, "fallback", &["token"]).await?;
    Ok(())
}

#[tokio::test]
async fn another_tokenizer_at_the_engine_is_named() -> anyhow::Result<()> {
    let tokenizer = ModelFolder::with_another_tokenizer()?;
    let folder = ModelFolder::new()?;
    let options = EngineOptions {
        artifacts: tokenizer.artifacts()?,
        ..own(&folder)?
    };
    broken(folder, options, "fallback", &["token"]).await?;
    Ok(())
}

#[tokio::test]
async fn another_block_size_than_stated_is_named() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let options = EngineOptions {
        stated_block_size: Some(32),
        ..own(&folder)?
    };
    broken(folder, options, "fallback", &["--block-size"]).await?;
    Ok(())
}

#[tokio::test]
async fn without_a_tokenizer_is_fallback() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let engine = FakeEngine::start(EngineOptions {
        root: "nobody/nothing".into(),
        ..own(&folder)?
    })
    .await?;
    let door = NextDoor::in_front_of(vec![engine], folder, &[]).await?;
    twenty_requests(&door).await?;
    names(&door, "fallback", &["--tokenizer"]).await
}

#[tokio::test]
async fn events_that_stop_midway_are_noticed_and_events_that_return_are_trusted_again() -> anyhow::Result<()>
{
    let folder = ModelFolder::new()?;
    let options = own(&folder)?;
    let mut door = broken(folder, options, "exact", &[]).await?;
    door.engines[0].set_faults(|faults| faults.events_stopped = true);
    let mut workload = Workload::new(9);
    for _ in 0..20 {
        let reply = door
            .cluster
            .api
            .post(CHAT, &door.chat(&workload.text(100)))
            .await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    names(&door, "fallback", &["event"]).await?;
    // A restart of the engine mends it: its events begin anew.
    let epoch = door.worker_view(0).await?["card"]["epoch"].clone();
    door.engines[0].set_faults(|faults| faults.events_stopped = false);
    door.engines[0].restart().await?;
    eventually("the engine is another incarnation", || async {
        let now = door.worker_view(0).await?["card"]["epoch"].clone();
        Ok((now != epoch && now.is_number()).then_some(()))
    })
    .await?;
    door.reaches(0, "exact").await?;
    twenty_requests(&door).await?;
    names(&door, "exact", &[]).await
}

#[tokio::test]
async fn lost_and_doubled_batches_are_repaired() -> anyhow::Result<()> {
    let folder = ModelFolder::new()?;
    let options = own(&folder)?;
    let door = broken(folder, options, "exact", &[]).await?;
    door.engines[0].set_faults(|faults| {
        faults.batches_not_sent = 2;
        faults.events_doubled = true;
    });
    twenty_requests(&door).await?;
    let mut workload = Workload::new(10);
    for _ in 0..5 {
        door.cluster
            .api
            .post(CHAT, &door.chat(&workload.text(100)))
            .await?;
    }
    door.indexed().await?;
    door.reaches(0, "exact").await?;
    Ok(())
}

//! The ends of requests, engines and threads, and that they do not affect other engines.

use super::*;

#[tokio::test]
async fn a_closed_stream_frees_the_engine_during_a_long_step() {
    // The prefill takes minutes. The runner must check for closed streams during the step to free the engine in time.
    let runner = start(sim(SimConfig {
        speedup: 1e-3,
        ..SimConfig::default()
    }));
    let answer = submit(&runner, &request(true, SamplingParams::default()), prompt(64));
    answer.cancelled.store(true, Ordering::Release);
    let outcome = tokio::task::spawn_blocking({
        let answer = answer.clone();
        move || answer.wait()
    });
    assert_eq!(outcome.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(answer.pieces.lock().unwrap().queues, 0);
    runner.stop().await;
    assert_eq!(*runner.state().borrow(), RunnerState::Stopped);
}

#[test]
fn an_answer_that_takes_too_long_fails_at_its_deadline() {
    let runner = start(sim(SimConfig {
        speedup: 1e-3,
        ..SimConfig::default()
    }));
    let late = GenerateRequest {
        deadline_ms: 30,
        ..request(true, SamplingParams::default())
    };
    let error = submit(&runner, &late, prompt(64)).wait().unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(error.message.contains("30 ms"), "{error}");
}

#[tokio::test]
async fn an_engine_that_panics_fails_every_request_and_has_the_state_failed() {
    let runner = start(ScriptedEngine {
        panics: true,
        ..ScriptedEngine::default()
    });
    let answer = submit(&runner, &request(true, SamplingParams::default()), prompt(4));
    let outcome = tokio::task::spawn_blocking(move || answer.wait()).await.unwrap();
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Unavailable);
    runner
        .state()
        .wait_for(|state| *state == RunnerState::Failed)
        .await
        .unwrap();
    let later = submit(&runner, &request(true, SamplingParams::default()), prompt(4));
    assert_eq!(later.wait().unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn stopping_an_engine_fails_its_open_requests() {
    let runner = start(sim(SimConfig {
        speedup: 1e-3,
        ..SimConfig::default()
    }));
    let answer = submit(&runner, &request(true, SamplingParams::default()), prompt(64));
    runner.stop().await;
    assert_eq!(answer.wait().unwrap_err().kind, ErrorKind::Unavailable);
}

/// One of the engines is in a long step and one panics. `--sim-workers` also puts many engines on one thread.
#[tokio::test]
async fn engines_on_one_thread_do_not_affect_one_another() {
    let thread = EngineThread::start("test").unwrap();
    let run = |engine: Box<dyn StepEngine>| thread.run(engine, "m", text(), log());
    let slow = run(Box::new(sim(SimConfig {
        speedup: 1e-3,
        ..SimConfig::default()
    })));
    let faulty = run(Box::new(ScriptedEngine {
        panics: true,
        ..ScriptedEngine::default()
    }));
    let quick: Vec<_> = (0..100).map(|_| run(Box::new(sim(fast())))).collect();
    let sampling = || SamplingParams {
        max_tokens: 20,
        ..SamplingParams::default()
    };
    let never = submit(&slow, &request(true, sampling()), prompt(64));
    let fault = submit(&faulty, &request(true, sampling()), prompt(64));
    let answers: Vec<_> = quick
        .iter()
        .map(|runner| submit(runner, &request(true, sampling()), prompt(64)))
        .collect();
    tokio::task::spawn_blocking(move || {
        assert_eq!(fault.wait().unwrap_err().kind, ErrorKind::Unavailable);
        let answers: Vec<_> = answers
            .iter()
            .map(|answer| (answer.wait().unwrap().completion_tokens, answer.choice(0)))
            .collect();
        assert_eq!(answers[0].0, 20);
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "the same request gets the same answer"
        );
    })
    .await
    .unwrap();
    assert_eq!(*slow.state().borrow(), RunnerState::Running);
    assert_eq!(*faulty.state().borrow(), RunnerState::Failed);

    quick[0].stop().await;
    let refused = submit(&quick[0], &request(true, sampling()), prompt(64));
    let answered = submit(&quick[1], &request(true, sampling()), prompt(64));
    tokio::task::spawn_blocking(move || {
        assert_eq!(refused.wait().unwrap_err().kind, ErrorKind::Unavailable);
        answered.wait().unwrap();
    })
    .await
    .unwrap();
    slow.stop().await;
    assert_eq!(never.wait().unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_thread_without_handles_finishes_open_requests_and_ends() {
    let thread = EngineThread::start("test").unwrap();
    let runners = [(); 2].map(|()| thread.run(Box::new(sim(fast())), "m", text(), log()));
    let mut states = runners.each_ref().map(RunnerHandle::state);
    let open = runners
        .each_ref()
        .map(|runner| submit(runner, &request(true, SamplingParams::default()), prompt(64)));
    drop((thread, runners));
    for state in &mut states {
        state
            .wait_for(|state| *state == RunnerState::Stopped)
            .await
            .unwrap();
    }
    assert!(open.iter().all(|answer| answer.wait().is_ok()));
}

#[test]
fn an_answer_does_not_end_before_its_least_length() {
    // The engine is one that ends too early all the same: the runner does not let it.
    let sampling = |min_tokens| SamplingParams {
        max_tokens: 20,
        min_tokens,
        stop: vec!["STOP".into()],
        ..SamplingParams::default()
    };
    for (min_tokens, expected) in [
        (0, ("a", "stop")),
        (4, ("a", "stop")),
        (5, ("aSTOPb", "stop")),
        (9, ("aSTOPb", "stop")),
        (10, ("aSTOPbSTOP", "length")),
    ] {
        let runner = start(ScriptedEngine::generating(&["aSTOPbSTOP"]));
        let answer = submit(&runner, &request(true, sampling(min_tokens)), prompt(3));
        answer.wait().unwrap();
        let (text, finish) = answer.choice(0);
        assert_eq!((&*text, &*finish), expected, "{min_tokens}");
    }
}

#[test]
fn a_stop_token_ends_the_answer_and_is_named() {
    let engine = ScriptedEngine::generating(&["abc"]);
    let stop = engine.tokens[1];
    let sampling = SamplingParams {
        max_tokens: 20,
        stop_token_ids: vec![stop],
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let answer = submit(&start(engine), &request(true, sampling), prompt(3));
    assert_eq!(
        answer.wait().unwrap().completion_tokens,
        2,
        "the stop token counts"
    );
    assert_eq!(answer.choice(0), ("a".into(), "stop".into()));
    let last = answer.events().pop().unwrap();
    assert_eq!(last["choices"][0]["stop_reason"], stop);
}

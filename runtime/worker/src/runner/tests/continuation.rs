//! An answer that is cut behind any of its pieces and continued is the same answer, byte for byte.

use signalbox_protocol::Continuation;

use super::*;

/// Requests whose answers end in different ways, with what generates them.
fn answers() -> Vec<(&'static str, GenerateRequest, RunnerHandle)> {
    let sampling = |max_tokens, stop: &[&str]| SamplingParams {
        max_tokens,
        stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
        ..SamplingParams::default()
    };
    let simulated = || start(sim(fast()));
    // As many tokens as the engine has.
    let scripted = |pieces: &[&str], stop: &[&str]| {
        let engine = ScriptedEngine::generating(pieces);
        let request = request(true, sampling(engine.tokens.len() as u32, stop));
        (request, start(engine))
    };
    let mut answers = vec![
        ("max_tokens", request(true, sampling(20, &[])), simulated()),
        (
            "a seed",
            request(
                true,
                SamplingParams {
                    seed: Some(7),
                    ..sampling(20, &[])
                },
            ),
            simulated(),
        ),
    ];
    for (name, pieces, stop) in [
        ("characters of several tokens", &["aé漢🙂 end"][..], &[][..]),
        (
            "text held back for a stop text that does not come",
            &["a stop and a stoppi, no more"],
            &["stopping"],
        ),
        ("a stop text", &["one STO two STOP three"], &["STOP"]),
        ("the end of the sequence", &["one two", "<eos>", "three"], &[]),
    ] {
        let (request, runner) = scripted(pieces, stop);
        answers.push((name, request, runner));
    }
    let mut echo = request(true, sampling(20, &[]));
    echo.format.endpoint = Endpoint::Completions;
    echo.format.echo = Some("the prompt: ".into());
    answers.push(("echo", echo, simulated()));
    for (_, request, _) in &mut answers {
        request.wants_token_ids = true;
        request.format.include_usage = true;
    }
    answers
}

#[test]
fn an_answer_continued_behind_any_piece_has_the_same_bytes() {
    for (name, request, runner) in answers() {
        let whole = submit(&runner, &request, prompt(30));
        let summary = whole.wait().unwrap();
        let (bytes, pieces) = {
            let pieces = whole.pieces.lock().unwrap();
            (pieces.queued.clone(), pieces.ids.clone())
        };
        assert!(pieces.len() > 2, "{name}");
        let ids: Vec<u32> = pieces.iter().flat_map(|(ids, _)| ids.clone()).collect();
        assert_eq!(ids.len() as u32, summary.completion_tokens, "{name}");
        let mut delivered = Vec::new();
        for (ids, end) in pieces {
            delivered.extend(ids);
            let mut rest = request.clone();
            rest.continuation = Some(Continuation {
                delivered_tokens: delivered.len() as u32,
                first_piece: String::new(),
            });
            let tokens = [prompt(30), delivered.clone()].concat();
            let continued = submit(&runner, &rest, tokens);
            let end_of_rest = continued.wait().unwrap();
            assert_eq!(end_of_rest.completion_tokens, summary.completion_tokens, "{name}");
            assert_eq!(end_of_rest.prompt_tokens, 30, "{name}");
            let text = |bytes: &[u8]| {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                // What the cache held differs.
                let (before, after) = text.split_once("\"cached_tokens\":").unwrap_or((&text, ""));
                format!(
                    "{before}{}",
                    after.trim_start_matches(|c: char| c.is_ascii_digit())
                )
            };
            let rest = continued.pieces.lock().unwrap().queued.clone();
            assert_eq!(text(&rest), text(&bytes[end..]), "{name}, behind {delivered:?}");
        }
    }
}

#[test]
fn a_continuation_of_several_choices_or_without_a_prompt_is_refused() {
    let runner = start(sim(fast()));
    let continuation = |delivered_tokens| Continuation {
        delivered_tokens,
        first_piece: String::new(),
    };
    let mut several = request(true, SamplingParams::default());
    several.sampling.n = 2;
    several.continuation = Some(continuation(2));
    let error = submit(&runner, &several, prompt(10)).wait().unwrap_err();
    assert_eq!(error.param.as_deref(), Some("n"), "{error}");
    let mut none = request(true, SamplingParams::default());
    none.continuation = Some(continuation(10));
    let error = submit(&runner, &none, prompt(10)).wait().unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest, "{error}");
}

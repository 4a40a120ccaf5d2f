//! Prompts with log probabilities, and answers that are a part of one.

use signalbox_protocol::AnswerPart;

use super::*;

/// A request to score a prompt, which the answer repeats as this text.
fn scoring(stream: bool, max_tokens: u32) -> GenerateRequest {
    let mut request = request(
        stream,
        SamplingParams {
            max_tokens,
            logprobs: Some(2),
            prompt_logprobs: true,
            ..SamplingParams::default()
        },
    );
    request.format.endpoint = Endpoint::Completions;
    request.format.echo = Some("the prompt".into());
    request
}

fn document(answer: &AnswerRecord) -> Value {
    serde_json::from_slice(&answer.pieces.lock().unwrap().queued).unwrap()
}

#[test]
fn a_prompt_is_scored_alone_or_before_its_answer_whatever_the_cache_holds() {
    let runner = start(sim(fast()));
    let alone = submit(&runner, &scoring(false, 0), prompt(50));
    assert_eq!(alone.wait().unwrap().completion_tokens, 0);
    let alone = document(&alone)["choices"][0].clone();
    assert_eq!(
        (&alone["text"], &alone["finish_reason"]),
        (&"the prompt".into(), &"length".into())
    );
    let scores = alone["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(scores.len(), 50);
    assert!(scores[0].is_null() && scores[1..].iter().all(|score| score.as_f64().unwrap() < 0.0));
    let top = alone["logprobs"]["top_logprobs"].as_array().unwrap();
    assert!(top[0].is_null() && top[1].as_object().unwrap().len() >= 2);
    assert_eq!(alone["logprobs"]["text_offset"][0], 0);
    // The prompt's blocks are cached by now, and its tokens are computed all the same.
    let followed = submit(&runner, &scoring(false, 3), prompt(50));
    let summary = followed.wait().unwrap();
    assert_eq!((summary.cached_tokens, summary.completion_tokens), (0, 3));
    let followed = document(&followed)["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(followed.as_array().unwrap().len(), 53);
    assert_eq!(followed.as_array().unwrap()[..50], scores[..]);
}

#[test]
fn a_stream_has_the_scores_in_its_first_event() {
    let runner = start(sim(fast()));
    let answer = submit(&runner, &scoring(true, 1), prompt(5));
    answer.wait().unwrap();
    let pieces = answer.pieces.lock().unwrap();
    let first = String::from_utf8_lossy(&pieces.queued);
    let first = first.lines().next().unwrap().strip_prefix("data: ").unwrap();
    let first: Value = serde_json::from_str(first).unwrap();
    let tokens = first["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 6);
    assert!(
        first["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("the prompt")
    );
}

#[test]
fn a_part_of_an_answer_has_its_choices_and_no_end() {
    let runner = start(sim(fast()));
    for stream in [false, true] {
        let mut request = scoring(stream, 1);
        request.sampling.n = 2;
        request.format.part = Some(AnswerPart { first_choice: 6 });
        let answer = submit(&runner, &request, prompt(5));
        answer.wait().unwrap();
        let pieces = answer.pieces.lock().unwrap();
        let text = String::from_utf8_lossy(&pieces.queued).into_owned();
        assert!(
            text.contains("{\"index\":6,") && text.contains("{\"index\":7,"),
            "{text}"
        );
        assert!(!text.contains("[DONE]") && !text.contains("usage"), "{text}");
        if !stream {
            assert!(
                serde_json::from_str::<Value>(&format!("{text}]}}")).is_ok(),
                "{text}"
            );
        }
    }
}

#[test]
fn nothing_is_generated_only_if_the_answer_repeats_the_prompt() {
    let runner = start(sim(fast()));
    let mut request = scoring(false, 0);
    request.format.echo = None;
    let error = submit(&runner, &request, prompt(5)).wait().unwrap_err();
    assert_eq!(error.param.as_deref(), Some("max_tokens"));
}

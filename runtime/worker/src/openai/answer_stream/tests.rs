use proptest::prelude::*;

use super::*;

const CHAT: &str = include_str!("../captures/stream-chat.txt");
const CHAT_IDS: &str = include_str!("../captures/stream-chat-ids-usage.txt");
const CHAT_LOGPROBS: &str = include_str!("../captures/stream-chat-logprobs-interval4.txt");
const COMPLETIONS_IDS: &str = include_str!("../captures/stream-completions-tokenids.txt");
const TOOL_CALL: &str = include_str!("../captures/stream-tool-call.txt");

const NOTHING: Added = Added {
    token_ids: false,
    usage: false,
    continuable: false,
};
const EVERYTHING: Added = Added {
    token_ids: true,
    usage: true,
    continuable: false,
};

/// What the client gets, and how the stream ended.
fn filtered(
    endpoint: Endpoint,
    added: Added,
    pieces: &[&[u8]],
) -> (String, Result<StreamSummary, StreamFault>, AnswerFilter<'static>) {
    let (mut filter, mut out) = (AnswerFilter::new(endpoint, added), Vec::new());
    let mut fault = None;
    for piece in pieces {
        if let Err(error) = filter.push(piece, &mut out) {
            fault = Some(error);
            break;
        }
    }
    let end = match fault {
        Some(fault) => Err(fault),
        None => filter.end(&mut out, 26),
    };
    (String::from_utf8(out).unwrap(), end, filter)
}

fn summary(prompt: u32, completion: u32) -> StreamSummary {
    StreamSummary {
        prompt_tokens: prompt,
        cached_tokens: 0,
        completion_tokens: completion,
    }
}

#[test]
fn a_stream_to_which_nothing_was_added_passes_byte_for_byte() {
    for (endpoint, text, tokens) in [
        (Endpoint::Chat, CHAT, 6),
        (Endpoint::Chat, CHAT_IDS, 6),
        (Endpoint::Chat, CHAT_LOGPROBS, 6),
        (Endpoint::Completions, COMPLETIONS_IDS, 3),
    ] {
        let (out, end, _) = filtered(endpoint, NOTHING, &[text.as_bytes()]);
        assert_eq!(out.trim_end(), text.trim_end());
        assert_eq!(end, Ok(summary(26, tokens)));
    }
}

#[test]
fn what_was_added_is_taken_out_again() {
    let (out, end, mut filter) = filtered(Endpoint::Chat, EVERYTHING, &[CHAT_LOGPROBS.as_bytes()]);
    assert_eq!(end, Ok(summary(26, 6)));
    assert_eq!(filter.cached_tokens(), Some(0));
    let ids = filter.take_prompt_ids().unwrap();
    assert_eq!((ids.len(), &ids[..3]), (26, &[1, 9690, 198][..]));
    assert!(
        !out.contains("usage") && out.contains("\"prompt_token_ids\":null"),
        "{out}"
    );
    assert_eq!(out.matches("\"token_ids\":null").count(), 3, "{out}");
    assert!(out.ends_with("data: [DONE]\n\n"), "{out}");

    let (out, end, mut filter) = filtered(Endpoint::Completions, EVERYTHING, &[COMPLETIONS_IDS.as_bytes()]);
    assert_eq!(end, Ok(summary(26, 3)));
    assert_eq!(filter.take_prompt_ids().unwrap().len(), 26);
    assert!(!out.contains('[') || !out.contains("token_ids\":["), "{out}");
}

/// The events of a stream without their ids and times.
fn events(text: &str) -> Vec<String> {
    let after_time = |event: &str| match event.find("\"model\"") {
        Some(place) => event[place..].to_owned(),
        None => event.to_owned(),
    };
    text.trim_end().split("\n\n").map(after_time).collect()
}

#[test]
fn the_answer_is_the_one_that_the_engine_gives_when_nothing_is_added() {
    let stream = usage_at_the_end(CHAT_IDS);
    let (out, end, _) = filtered(Endpoint::Chat, EVERYTHING, &[stream.as_bytes()]);
    assert_eq!(events(&out), events(CHAT));
    assert_eq!(end, Ok(summary(26, 6)));
}

/// The capture was made with usage in every chunk; this is the stream with usage in the last one only.
fn usage_at_the_end(text: &str) -> String {
    let mut kept = String::new();
    for event in text.split_inclusive("\n\n") {
        match (event.find(",\"usage\":{"), event.contains("\"choices\":[]")) {
            (Some(at), false) => {
                let length = value_length(&event.as_bytes()[at + 9..]).unwrap();
                kept.push_str(&event[..at]);
                kept.push_str(&event[at + 9 + length..]);
            }
            _ => kept.push_str(event),
        }
    }
    kept
}

#[test]
fn chunks_that_only_token_ids_bring_about_are_dropped_and_counted() {
    let (out, end, _) = filtered(
        Endpoint::Chat,
        Added {
            token_ids: true,
            usage: false,
            continuable: false,
        },
        &[TOOL_CALL.as_bytes()],
    );
    assert!(
        out.contains("\"delta\":{}") && out.matches("\"delta\":{}").count() == 1,
        "{out}"
    );
    assert!(end.unwrap().completion_tokens >= 25);
}

#[test]
fn nothing_reaches_the_client_before_the_first_data() {
    let (mut filter, mut out) = (AnswerFilter::new(Endpoint::Chat, NOTHING), Vec::new());
    filter
        .push(b": keep-alive\n\ndata: {\"choices\":[", &mut out)
        .unwrap();
    assert!(out.is_empty());
    filter
        .push(b"{\"finish_reason\":null}]}\n\n: keep-alive\n\n", &mut out)
        .unwrap();
    assert!(out.ends_with(b": keep-alive\n\n") && out.starts_with(b"data: "));
}

#[test]
fn an_error_in_the_stream_is_no_end_of_an_answer() {
    let error = r#"data: {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}"#;
    let stream = format!(
        "{}\n\n{error}\n\ndata: [DONE]\n\n",
        CHAT.split("\n\n").next().unwrap()
    );
    let (out, end, _) = filtered(Endpoint::Chat, NOTHING, &[stream.as_bytes()]);
    assert!(out.contains("assistant") && !out.contains("DONE"), "{out}");
    let Err(StreamFault::Engine { message, body }) = end else {
        panic!("{end:?}")
    };
    assert_eq!(message, "EngineCore encountered an issue.");
    assert!(body.starts_with("{\"error\""), "{body}");

    let sglang = "data: {\"error\":{\"object\":\"error\",\"message\":\"aborted\"}}\n\n";
    let (.., end, _) = filtered(Endpoint::Chat, NOTHING, &[sglang.as_bytes()]);
    assert!(matches!(end, Err(StreamFault::Engine { message, .. }) if message == "aborted"));
    let anthropic =
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"x\",\"message\":\"down\"}}\n\n";
    let (.., end, _) = filtered(Endpoint::Messages, NOTHING, &[anthropic.as_bytes()]);
    assert!(matches!(end, Err(StreamFault::Engine { message, .. }) if message == "down"));
}

#[test]
fn text_that_reads_like_an_error_is_text() {
    let chunk = "data: {\"choices\":[{\"delta\":{\"content\":\"{\\\"error\\\": 1, \\\"finish_reason\\\":\\\"stop\\\"}\"},\"finish_reason\":null}],\"error\":null}\n\n";
    let (out, end, _) = filtered(Endpoint::Chat, NOTHING, &[chunk.as_bytes(), b"data: [DONE]\n\n"]);
    assert!(out.starts_with(chunk));
    assert_eq!(end, Err(StreamFault::Incomplete), "no choice is finished");
}

#[test]
fn an_answer_is_whole_with_a_finish_reason_and_the_end_mark() {
    let finish = "data: {\"choices\":[{\"delta\":{},\"finish_reason\": \"stop\"}]}\n\n";
    let done = "data: [DONE]\n\n";
    let end = |endpoint, text: &str| filtered(endpoint, NOTHING, &[text.as_bytes()]).1.is_ok();
    assert!(end(Endpoint::Chat, &format!("{finish}{done}")));
    assert!(
        end(Endpoint::Chat, &format!("{finish}data: [DONE]")),
        "an end without an empty line"
    );
    assert!(!end(Endpoint::Chat, finish));
    assert!(!end(Endpoint::Chat, done));
    assert!(!end(Endpoint::Chat, ""));
    let typed = |kind: &str| format!("event: {kind}\ndata: {{\"type\":\"{kind}\"}}\n\n");
    assert!(end(Endpoint::Messages, &typed("message_stop")));
    assert!(!end(Endpoint::Messages, &typed("message_delta")));
    assert!(end(Endpoint::Responses, &typed("response.completed")));
    assert!(!end(Endpoint::Responses, &typed("response.created")));
}

#[test]
fn counts_of_typed_events_are_read() {
    let events = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":0}}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"a\"}}\n\n\
        event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":4}}\n\n\
        event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let (out, end, _) = filtered(Endpoint::Messages, NOTHING, &[events.as_bytes()]);
    assert_eq!(out, events);
    assert_eq!(end, Ok(summary(9, 4)));
}

#[test]
fn an_event_without_an_end_is_refused() {
    let (mut filter, mut out) = (AnswerFilter::new(Endpoint::Chat, NOTHING), Vec::new());
    let piece = vec![b'x'; MAX_EVENT_BYTES];
    filter.push(&piece, &mut out).unwrap();
    assert_eq!(filter.push(b"x", &mut out), Err(StreamFault::TooLong));
}

proptest! {
    #[test]
    fn the_cuts_of_the_network_change_nothing(
        cuts in prop::collection::vec(0..TOOL_CALL.len(), 0..8),
        token_ids in any::<bool>(),
        usage in any::<bool>(),
    ) {
        let added = Added {
            token_ids,
            usage,
            continuable: false,
        };
        for text in [TOOL_CALL, CHAT_IDS] {
            let mut places: Vec<usize> = cuts.iter().map(|cut| *cut.min(&text.len())).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let (cut, whole) = (
                filtered(Endpoint::Chat, added, &pieces),
                filtered(Endpoint::Chat, added, &[text.as_bytes()]),
            );
            prop_assert_eq!((cut.0, cut.1), (whole.0, whole.1));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in "(data: |\\{|\\}|\\[|\\]|\"token_ids\":|\"usage\":|\"error\":|\"finish_reason\":|\n|,|1| ){0,40}") {
        for endpoint in Endpoint::ALL {
            let _ = filtered(endpoint, EVERYTHING, &[bytes.as_bytes()]);
        }
    }
}

/// The pieces of a stream of which the router gets ids: the bytes of each event's piece, and its ids.
fn pieces_with_ids(text: &str, prompt: &[u32]) -> Vec<(String, Option<Vec<u32>>)> {
    let mut filter = AnswerFilter::new(Endpoint::Chat, EVERYTHING).with_ids(prompt);
    let mut pieces = Vec::new();
    for event in text.split_inclusive("\n\n") {
        let mut out = Vec::new();
        filter.push(event.as_bytes(), &mut out).unwrap();
        if !out.is_empty() {
            pieces.push((String::from_utf8(out).unwrap(), filter.take_ids()));
        }
    }
    pieces
}

/// The tokens of the prompt in a capture.
fn prompt_of(capture: &str) -> Vec<u32> {
    TokenLists::find(capture.as_bytes()).prompt.unwrap()
}

#[test]
fn ids_travel_with_their_events_and_the_last_ones_with_the_end() {
    let pieces = pieces_with_ids(CHAT_IDS, &prompt_of(CHAT_IDS));
    let ids: Vec<_> = pieces.iter().map(|(_, ids)| ids.clone().unwrap()).collect();
    assert!(ids[0].is_empty(), "the role");
    assert_eq!(ids[1..3], [[504], [6376]]);
    let all = TokenLists::find(CHAT_IDS.as_bytes()).generated;
    assert_eq!(ids.concat(), all);
    let (last, last_ids) = pieces.last().unwrap();
    assert!(
        last.contains("\"finish_reason\":\"length\"") && last.ends_with("data: [DONE]\n\n"),
        "{last}"
    );
    assert_eq!(last_ids.as_deref(), Some(&all[all.len() - 1..]));
}

#[test]
fn ids_end_where_the_engine_parses_the_text_or_read_another_prompt() {
    let ends = |text: &str, prompt: &[u32]| pieces_with_ids(text, prompt).last().unwrap().1.is_none();
    assert!(ends(TOOL_CALL, &prompt_of(TOOL_CALL)), "a tool call");
    assert!(ends(CHAT_IDS, &[1, 2, 3]), "another prompt");
    assert!(ends(CHAT, &[1]), "an engine that sends no ids");
    let reasoning = CHAT_IDS.replace(
        "\"delta\":{\"content\":\" sky\"",
        "\"delta\":{\"reasoning\":\" sky\"",
    );
    assert!(ends(&reasoning, &prompt_of(CHAT_IDS)), "reasoning");
}

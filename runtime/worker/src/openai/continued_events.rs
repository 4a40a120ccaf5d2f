//! Turns an engine's completion into the rest of an answer that another engine began.
//!
//! The client reads one answer: the chunks keep the id, the date and the object of the first one, and the counts of
//! tokens are those of the whole. What comes out is what the engine would have written had it begun the answer itself,
//! so [`AnswerFilter`](super::answer_stream::AnswerFilter) treats it like any other answer.

use serde_json::{Map, Value, json};
use signalbox_protocol::{Continuation, Endpoint};

use super::sse::{EventSplitter, EventTooLong, data_of};

/// The events of one continued answer.
#[derive(Debug)]
pub(crate) struct ContinuedEvents {
    is_chat: bool,
    delivered: u32,
    /// The members of the first chunk that later ones repeat: `id`, `created`, `model`.
    head: Map<String, Value>,
    events: EventSplitter,
}

impl ContinuedEvents {
    /// The rest of an answer at `endpoint`. If the first piece has no readable event, the chunks keep the engine's own id.
    pub(crate) fn new(endpoint: Endpoint, delivered: &Continuation) -> Self {
        let piece = delivered.first_piece.as_bytes();
        let first = data_of(piece)
            .and_then(|place| serde_json::from_slice::<Map<String, Value>>(&piece[place]).ok())
            .unwrap_or_default();
        let head = ["id", "created", "model"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), first.get(name)?.clone())))
            .collect();
        Self {
            is_chat: endpoint == Endpoint::Chat,
            delivered: delivered.delivered_tokens,
            head,
            events: EventSplitter::default(),
        }
    }

    /// Takes bytes of the engine; returns whole events of the answer.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, EventTooLong> {
        self.events.push(bytes)?;
        let mut out = Vec::with_capacity(bytes.len());
        let mut events = std::mem::take(&mut self.events);
        while let Some(event) = events.next_event() {
            match data_of(event).and_then(|place| serde_json::from_slice(&event[place]).ok()) {
                Some(Value::Object(chunk)) => self.write(chunk, &mut out),
                // `[DONE]`, and comments.
                _ => out.extend_from_slice(event),
            }
        }
        self.events = events;
        Ok(out)
    }

    fn write(&self, mut chunk: Map<String, Value>, out: &mut Vec<u8>) {
        for (name, value) in &self.head {
            chunk.insert(name.clone(), value.clone());
        }
        if let Some(usage) = chunk.get_mut("usage") {
            self.count_whole(usage);
        }
        if self.is_chat && chunk.contains_key("choices") {
            chunk.insert("object".into(), "chat.completion.chunk".into());
            let mut prompt = None;
            if let Some(Value::Array(choices)) = chunk.get_mut("choices") {
                for choice in choices {
                    let shown = into_chat_choice(choice);
                    prompt = prompt.or(shown);
                }
            }
            if let Some(prompt) = prompt {
                chunk.insert("prompt_token_ids".into(), prompt);
            }
        }
        out.extend_from_slice(b"data: ");
        // Writing to memory cannot fail, and the keys are text.
        let _ = serde_json::to_writer(&mut *out, &chunk);
        out.extend_from_slice(b"\n\n");
    }

    /// Moves the delivered tokens from the prompt to the answer.
    fn count_whole(&self, usage: &mut Value) {
        let delivered = i64::from(self.delivered);
        for (name, more) in [("prompt_tokens", -delivered), ("completion_tokens", delivered)] {
            if let Some(count) = usage.get(name).and_then(Value::as_i64) {
                usage[name] = json!((count + more).max(0));
            }
        }
        let prompt = usage.get("prompt_tokens").and_then(Value::as_u64);
        if let Some(cached) = usage.pointer_mut("/prompt_tokens_details/cached_tokens")
            && let (Some(count), Some(prompt)) = (cached.as_u64(), prompt)
        {
            *cached = json!(count.min(prompt));
        }
    }
}

/// Makes a choice of a completion one of a chat. Returns the tokens of the prompt, which a chat has beside its choices.
fn into_chat_choice(choice: &mut Value) -> Option<Value> {
    let members = choice.as_object_mut()?;
    let text = members.remove("text").unwrap_or(Value::Null);
    members.insert("delta".into(), json!({ "content": text }));
    members
        .remove("prompt_token_ids")
        .filter(|prompt| !prompt.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\",\
        \"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";

    fn continued(endpoint: Endpoint, first_piece: &str) -> Vec<Value> {
        let delivered = Continuation {
            delivered_tokens: 3,
            first_piece: first_piece.into(),
        };
        let mut events = ContinuedEvents::new(endpoint, &delivered);
        let engine = concat!(
            "data: {\"id\":\"cmpl-2\",\"object\":\"text_completion\",\"created\":9,\"model\":\"x\",\"choices\":[{\"index\":0,",
            "\"text\":\" sky\",\"logprobs\":null,\"finish_reason\":null,\"prompt_token_ids\":[1,2],\"token_ids\":[5]}]}\n\n",
            "data: {\"id\":\"cmpl-2\",\"choices\":[],\"usage\":{\"prompt_tokens\":26,\"total_tokens\":30,",
            "\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":25}}}\n\n",
            "data: [DONE]\n\n"
        );
        let (mut out, cut) = (Vec::new(), 40);
        for piece in [&engine.as_bytes()[..cut], &engine.as_bytes()[cut..]] {
            out.extend(events.push(piece).unwrap());
        }
        let out = String::from_utf8(out).unwrap();
        let chunks = out.strip_suffix("data: [DONE]\n\n").unwrap();
        let json = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        chunks.split_terminator("\n\n").map(json).collect()
    }

    #[test]
    fn a_completion_becomes_the_rest_of_a_chat() {
        let chunks = continued(Endpoint::Chat, FIRST);
        assert_eq!(
            chunks[0],
            json!({"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[
                {"index":0,"delta":{"content":" sky"},"logprobs":null,"finish_reason":null,"token_ids":[5]}],
                "prompt_token_ids":[1,2]})
        );
        assert_eq!(
            chunks[1]["usage"],
            json!({"prompt_tokens":23,"total_tokens":30,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":23}})
        );
        assert_eq!(chunks[1]["id"], "chatcmpl-1");
    }

    #[test]
    fn a_completion_stays_one() {
        let chunks = continued(Endpoint::Completions, "no event");
        assert_eq!(chunks[0]["choices"][0]["text"], " sky");
        assert_eq!(
            (&chunks[0]["id"], &chunks[0]["object"]),
            (&json!("cmpl-2"), &json!("text_completion"))
        );
    }
}

//! Whether the router's tokens of a prompt are those of the engine: the samples, and the judgement.

use serde_json::{Value, json};

use super::verdict::Finding;

/// A prompt that both sides turn into tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// What kind of prompt it is.
    pub(crate) name: &'static str,
    /// The prompt.
    pub(crate) prompt: SamplePrompt,
}

/// A chat or a plain text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SamplePrompt {
    /// The `messages` of a chat, and its `tools`, which may be null.
    Chat {
        /// `messages`
        messages: Value,
        /// `tools`
        tools: Value,
    },
    /// The `prompt` of a completion.
    Text(&'static str),
}

/// The tokens of one sample, by the router and by the engine. An error is a fragment that says why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compared {
    /// The sample's name.
    pub(crate) name: &'static str,
    /// Whether it is a chat.
    pub(crate) is_chat: bool,
    /// The router's tokens.
    pub(crate) router: Result<Vec<u32>, String>,
    /// The engine's tokens.
    pub(crate) engine: Result<Vec<u32>, String>,
}

/// The prompts that are compared.
pub(crate) fn samples() -> Vec<Sample> {
    let system = json!({"role": "system", "content": "You are a signalman of few words."});
    let question = json!({"role": "user", "content": "May the 8:15 to Zürich pass?  It is\n3 minutes late."});
    let chat = |name, messages: &[&Value], tools| Sample {
        name,
        prompt: SamplePrompt::Chat {
            messages: json!(messages),
            tools,
        },
    };
    let answer = json!({"role": "assistant", "content": "Yes. Signal 4 is green."});
    let thanks = json!({"role": "user", "content": "And the goods train behind it?"});
    let tool = json!({"type": "function", "function": {
        "name": "set_signal",
        "description": "Sets a signal to red or green.",
        "parameters": {
            "type": "object",
            "properties": {"signal": {"type": "integer"}, "green": {"type": "boolean"}},
            "required": ["signal", "green"],
        },
    }});
    vec![
        chat("a chat", &[&question], Value::Null),
        chat("a chat with a system message", &[&system, &question], Value::Null),
        chat(
            "a chat of several turns",
            &[&system, &question, &answer, &thanks],
            Value::Null,
        ),
        chat("a chat with tools", &[&system, &question], json!([tool])),
        Sample {
            name: "a completion",
            prompt: SamplePrompt::Text("The 8:15 to Zürich passes signal 4.\nThe signalman"),
        },
    ]
}

/// What the comparisons show.
pub(crate) fn judge(compared: &[Compared]) -> Vec<Finding> {
    let chats: Vec<&Compared> = compared.iter().filter(|one| one.is_chat).collect();
    // A router whose tokens of every chat are wrong finds no chat in its index.
    let has_lost_chats = !chats.is_empty() && chats.iter().all(|one| difference(one).is_some());
    let mut findings = Vec::new();
    let equal: Vec<&str> = compared
        .iter()
        .filter(|one| difference(one).is_none())
        .map(|one| one.name)
        .collect();
    if !equal.is_empty() {
        findings.push(Finding::good(format!(
            "the router's tokens equal the engine's: {}",
            equal.join(", ")
        )));
    }
    for one in compared {
        let Some(difference) = difference(one) else {
            continue;
        };
        let what = format!("{}: {difference}", one.name);
        findings.push(if has_lost_chats && one.is_chat {
            Finding::blind(what, MEND)
        } else {
            Finding::degraded(what, MEND)
        });
    }
    findings
}

const MEND: &str = "give --tokenizer FOLDER with the tokenizer.json, tokenizer_config.json and chat template that the engine \
                    was started with (vLLM: its model folder, and what --tokenizer and --chat-template name)";

/// How the two sides differ, if they do.
fn difference(one: &Compared) -> Option<String> {
    match (&one.router, &one.engine) {
        (Err(reason), _) => Some(format!("the router has no tokens of it: {reason}")),
        (_, Err(reason)) => Some(format!("the engine gives no tokens of it: {reason}")),
        (Ok(router), Ok(engine)) if router == engine => None,
        (Ok(router), Ok(engine)) => {
            let equal = router
                .iter()
                .zip(engine)
                .take_while(|(one, other)| one == other)
                .count();
            Some(format!(
                "the router's {} tokens and the engine's {} differ from token {equal} on: {} and {}",
                router.len(),
                engine.len(),
                excerpt(router, equal),
                excerpt(engine, equal),
            ))
        }
    }
}

/// A few tokens from `start` on.
fn excerpt(tokens: &[u32], start: usize) -> String {
    let end = (start + 4).min(tokens.len());
    let more = if end < tokens.len() { ", …" } else { "" };
    let shown: Vec<String> = tokens[start.min(end)..end].iter().map(u32::to_string).collect();
    format!("[{}{more}]", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{super::verdict::Verdict, *};

    fn compared(name: &'static str, router: &[u32], engine: &[u32]) -> Compared {
        Compared {
            name,
            is_chat: name != "a completion",
            router: Ok(router.to_vec()),
            engine: Ok(engine.to_vec()),
        }
    }

    #[test]
    fn equal_tokens_are_one_line() {
        let findings = judge(&[
            compared("a chat", &[1, 2], &[1, 2]),
            compared("a completion", &[3], &[3]),
        ]);
        assert_eq!(
            findings,
            [Finding::good(
                "the router's tokens equal the engine's: a chat, a completion"
            )]
        );
    }

    #[test]
    fn one_kind_of_prompt_that_differs_degrades_and_all_chats_blind() {
        let good = compared("a chat", &[1, 2], &[1, 2]);
        let tools = compared("a chat with tools", &[1, 2, 3], &[1, 9, 3, 4, 5, 6, 7]);
        let findings = judge(&[good, tools.clone()]);
        assert_eq!(findings[1].allows, Verdict::Degraded);
        assert_eq!(
            findings[1].what,
            "a chat with tools: the router's 3 tokens and the engine's 7 differ from token 1 on: [2, 3] and [9, 3, 4, 5, …]"
        );
        assert!(findings[1].mend.contains("--tokenizer"));
        let findings = judge(&[tools, compared("a completion", &[1], &[2])]);
        let allowed: Vec<Verdict> = findings.iter().map(|finding| finding.allows).collect();
        assert_eq!(allowed, [Verdict::Blind, Verdict::Degraded]);
    }

    #[test]
    fn tokens_that_one_side_lacks_are_a_difference() {
        let mut chat = compared("a chat", &[1], &[1]);
        chat.engine = Err("404 Not Found".into());
        assert_eq!(
            judge(&[chat])[0].what,
            "a chat: the engine gives no tokens of it: 404 Not Found"
        );
    }
}

//! What an engine states about itself, judged.

use signalbox_worker::openai::{DEFAULT_BLOCK_SIZE, EngineFacts};

use super::verdict::Finding;

/// The engine in one line.
pub(crate) fn describe(facts: &EngineFacts) -> String {
    let version = if facts.version.is_empty() {
        String::new()
    } else {
        format!(" {}", facts.version)
    };
    let mut parts = vec![
        format!("{}{version}", facts.flavour),
        format!("model {}", facts.model),
    ];
    let mut number = |count: Option<u32>, what: &str| {
        if let Some(count) = count {
            parts.push(format!("{what} {count}"));
        }
    };
    number(facts.context_length, "context");
    number(facts.block_size, "block size");
    number(facts.kv_blocks, "KV blocks");
    if facts.ranks > 1 {
        parts.push(format!("{} data-parallel ranks", facts.ranks));
    }
    if !facts.adapters.is_empty() {
        parts.push(format!("LoRA adapters {}", facts.adapter_names().join(", ")));
    }
    parts.join(", ")
}

/// What is on, off and unknown.
pub(crate) fn judge(facts: &EngineFacts) -> Vec<Finding> {
    let mut findings = vec![match facts.prefix_caching {
        Some(true) => Finding::good("prefix caching is on"),
        Some(false) => Finding::blind("prefix caching is off", facts.caching_mend()),
        None => Finding::good("the engine does not state whether prefix caching is on"),
    }];
    match facts.events.first() {
        None => findings.push(match &facts.unusable_events {
            Some(problem) => Finding::blind(
                format!("the engine's KV events cannot be read: {problem}"),
                "give --kv-events tcp://host:port",
            ),
            None => Finding::blind("the engine publishes no KV events", facts.events_mend()),
        }),
        Some(first) => {
            let replay = match &first.replay {
                Some(replay) => format!(", replayed at {replay}"),
                None => String::new(),
            };
            let others = match facts.events.len() {
                1 => String::new(),
                ranks => format!(" (rank 0 of {ranks})"),
            };
            findings.push(Finding::good(format!(
                "KV events at {}{replay}{others}",
                first.events
            )));
            if facts.events.iter().any(|endpoint| endpoint.replay.is_none()) {
                findings.push(Finding::degraded(
                    "lost KV events cannot be asked for again: after a lost connection, and for all blocks of before \
                     Signalbox's start, the KV cache is unknown",
                    "set replay_endpoint in the engine's --kv-events-config, or give --kv-replay",
                ));
            }
        }
    }
    if facts.block_size.is_none() && !facts.events.is_empty() {
        findings.push(Finding::degraded(
            format!(
                "the engine does not state the size of its KV blocks; {DEFAULT_BLOCK_SIZE} tokens are assumed"
            ),
            "give --block-size",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use signalbox_worker::openai::{EngineFlavour, EventEndpoint};

    use super::{super::verdict::Verdict, *};

    fn facts() -> EngineFacts {
        EngineFacts {
            flavour: EngineFlavour::Vllm,
            version: "0.32.0".into(),
            model: "m".into(),
            model_root: None,
            adapters: Vec::new(),
            context_length: Some(4096),
            block_size: Some(32),
            kv_blocks: Some(100),
            prefix_caching: Some(true),
            events: vec![EventEndpoint {
                rank: 0,
                events: "tcp://h:1".into(),
                replay: Some("tcp://h:2".into()),
                topic: String::new(),
            }],
            unusable_events: None,
            ranks: 1,
            max_sequences: None,
            started_at: None,
        }
    }

    #[test]
    fn each_thing_that_is_off_is_named_with_its_mend() {
        let worst = |facts: &EngineFacts| {
            let findings = judge(facts);
            findings.into_iter().max_by_key(|finding| finding.allows).unwrap()
        };
        assert_eq!(worst(&facts()).allows, Verdict::Exact);
        for (change, allows, mend) in [
            (
                (|facts| facts.prefix_caching = Some(false)) as fn(&mut EngineFacts),
                Verdict::Blind,
                "--no-enable-prefix-caching",
            ),
            (|facts| facts.events.clear(), Verdict::Blind, "--kv-events-config"),
            (
                |facts| facts.events[0].replay = None,
                Verdict::Degraded,
                "replay_endpoint",
            ),
            (|facts| facts.block_size = None, Verdict::Degraded, "--block-size"),
        ] {
            let mut facts = facts();
            change(&mut facts);
            let worst = worst(&facts);
            assert_eq!(worst.allows, allows, "{worst:?}");
            assert!(worst.mend.contains(mend), "{worst:?}");
        }
    }

    #[test]
    fn an_engine_is_described_by_what_it_states() {
        assert_eq!(
            describe(&facts()),
            "vLLM 0.32.0, model m, context 4096, block size 32, KV blocks 100"
        );
    }
}

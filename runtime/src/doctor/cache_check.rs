//! Whether the KV events of an engine agree with what it takes from its KV cache: the judgement of one prompt that was
//! sent twice.

use super::verdict::Finding;

/// What was seen of a prompt that the engine had never computed before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheTrial {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Tokens of a KV block.
    pub(crate) block_size: u32,
    /// Leading blocks of the prompt that KV events reported after it was sent once.
    pub(crate) reported_blocks: u32,
    /// Tokens that the engine then took from its KV cache for the same prompt; `None` if it does not tell.
    pub(crate) cached_tokens: Option<u32>,
    /// Sizes of blocks in the KV events.
    pub(crate) event_block_sizes: Vec<u32>,
    /// What turns the report of cached tokens on.
    pub(crate) cached_tokens_mend: &'static str,
}

impl CacheTrial {
    /// What the trial shows.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let Self {
            prompt_tokens,
            block_size,
            reported_blocks,
            ..
        } = *self;
        if let Some(other) = self.event_block_sizes.iter().find(|size| **size != block_size) {
            return vec![Finding::blind(
                format!("KV events have blocks of {other} tokens, and the engine states {block_size}"),
                format!("give --block-size {other}"),
            )];
        }
        // The last token of a prompt is computed even if its block is cached, and its block may be reported later.
        let expected = prompt_tokens.saturating_sub(1) / block_size.max(1);
        if reported_blocks == 0 && expected > 0 {
            return vec![Finding::blind(
                format!(
                    "no KV event reported a block of a prompt of {prompt_tokens} tokens that the engine computed"
                ),
                "check that the event endpoint above is the engine's and can be reached from here (the engine binds it only \
                 if it has a `*`), and that the router's tokens equal the engine's",
            )];
        }
        let mut findings = Vec::new();
        if reported_blocks < expected {
            findings.push(Finding::degraded(
                format!("KV events reported {reported_blocks} of {expected} blocks of a prompt that the engine computed"),
                "look for lost events in the engine's log, and for other tokens above",
            ));
        }
        findings.push(match self.cached_tokens {
            None => Finding::degraded(
                "the engine does not say how many tokens it takes from its KV cache, so credits cannot be checked",
                self.cached_tokens_mend,
            ),
            Some(cached) if (cached / block_size.max(1)).abs_diff(reported_blocks) > 1 => Finding::degraded(
                format!(
                    "sent again, {cached} tokens of the prompt came from the engine's KV cache, and KV events led to {}",
                    reported_blocks * block_size
                ),
                "send the engine less work while this runs: its cache may have lost the prompt between the two requests",
            ),
            Some(cached) => Finding::good(format!(
                "sent again, {cached} of {prompt_tokens} prompt tokens came from the engine's KV cache, as its KV events led to \
                 expect"
            )),
        });
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::{super::verdict::Verdict, *};

    fn trial() -> CacheTrial {
        CacheTrial {
            prompt_tokens: 200,
            block_size: 16,
            reported_blocks: 12,
            cached_tokens: Some(192),
            event_block_sizes: vec![16],
            cached_tokens_mend: "start vLLM with --enable-prompt-tokens-details",
        }
    }

    #[test]
    fn events_and_cached_tokens_that_agree_are_good() {
        for (reported_blocks, cached, prompt_tokens) in [(12, 192, 200), (12, 176, 192), (11, 176, 192)] {
            let findings = CacheTrial {
                reported_blocks,
                cached_tokens: Some(cached),
                prompt_tokens,
                ..trial()
            }
            .judge();
            assert_eq!(
                (findings.len(), findings[0].allows),
                (1, Verdict::Exact),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn each_disagreement_is_named() {
        for (trial, allows, what) in [
            (
                CacheTrial {
                    event_block_sizes: vec![32],
                    ..trial()
                },
                Verdict::Blind,
                "blocks of 32 tokens",
            ),
            (
                CacheTrial {
                    reported_blocks: 0,
                    ..trial()
                },
                Verdict::Blind,
                "no KV event reported a block",
            ),
            (
                CacheTrial {
                    reported_blocks: 5,
                    cached_tokens: Some(80),
                    ..trial()
                },
                Verdict::Degraded,
                "5 of 12 blocks",
            ),
            (
                CacheTrial {
                    cached_tokens: None,
                    ..trial()
                },
                Verdict::Degraded,
                "does not say",
            ),
            (
                CacheTrial {
                    cached_tokens: Some(0),
                    ..trial()
                },
                Verdict::Degraded,
                "sent again, 0 tokens",
            ),
        ] {
            let first = &trial.judge()[0];
            assert_eq!(first.allows, allows, "{first:?}");
            assert!(first.what.contains(what) && !first.mend.is_empty(), "{first:?}");
        }
    }
}

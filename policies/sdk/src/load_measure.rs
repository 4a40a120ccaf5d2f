//! What counts as a worker's load, for policies that compare nothing else.

use crate::{Candidates, Count, Settings};

/// A measure of load: one column of all routers' requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadMeasure {
    /// Requests in flight.
    #[default]
    Requests,
    /// Prompt tokens that wait for their first output token.
    PrefillTokens,
    /// KV blocks of the requests.
    DecodeBlocks,
}

impl LoadMeasure {
    /// The setting `load`: `requests`, `prefill_tokens` or `decode_blocks`; by default `requests`.
    ///
    /// # Errors
    /// The setting is something else.
    pub fn from_settings(settings: &mut Settings) -> Result<Self, String> {
        match settings.text("load")?.as_deref() {
            None | Some("requests") => Ok(Self::Requests),
            Some("prefill_tokens") => Ok(Self::PrefillTokens),
            Some("decode_blocks") => Ok(Self::DecodeBlocks),
            Some(other) => Err(format!(
                "the setting \"load\" must be \"requests\", \"prefill_tokens\" or \"decode_blocks\", not {other:?}"
            )),
        }
    }

    /// The column to name in `describe`.
    #[must_use]
    pub const fn column(self) -> Count {
        match self {
            Self::Requests => Count::RequestsAll,
            Self::PrefillTokens => Count::PrefillTokensAll,
            Self::DecodeBlocks => Count::DecodeBlocksAll,
        }
    }

    /// The load of each candidate.
    #[must_use]
    pub fn of(self, candidates: &Candidates) -> &[u32] {
        candidates.counts(self.column())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_names_a_column() {
        let read = |text: &str| LoadMeasure::from_settings(&mut Settings::parse(text).expect("JSON"));
        assert_eq!(read(""), Ok(LoadMeasure::Requests));
        assert_eq!(
            read(r#"{"load": "decode_blocks"}"#),
            Ok(LoadMeasure::DecodeBlocks)
        );
        assert_eq!(
            read(r#"{"load": "prefill_tokens"}"#).map(LoadMeasure::column),
            Ok(Count::PrefillTokensAll)
        );
        assert!(
            read(r#"{"load": "moon"}"#)
                .expect_err("unknown")
                .contains("\"moon\"")
        );
        assert!(read(r#"{"load": 1}"#).is_err());
    }
}

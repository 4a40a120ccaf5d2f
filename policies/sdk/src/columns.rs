//! The names of what a policy can read, and where it finds each in what it receives.
//!
//! A policy names what it reads in its [`Info`]. From then on each name has a place: a look-up is one access to a table,
//! and reading what was not named is a panic that says so.

use crate::Info;

macro_rules! define_names {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            const NAMES: &'static [&'static str] = &[$($name),*];

            /// Its name in `wit/types.wit`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.name().into()
            }
        }
    };
}

define_names! {
    /// A column of whole numbers; `wit/types.wit` (`info.counts`) says what each one holds.
    Count {
        /// Leading KV blocks of the prompt in device memory.
        OverlapDevice = "overlap-device",
        /// KV blocks of the prompt after those, in host memory.
        OverlapHost = "overlap-host",
        /// KV blocks of the prompt after those two, on disk.
        OverlapDisk = "overlap-disk",
        /// Prompt tokens of this router's requests that wait for their first output token.
        PrefillTokens = "prefill-tokens",
        /// KV blocks of this router's requests.
        DecodeBlocks = "decode-blocks",
        /// This router's requests in flight.
        Requests = "requests",
        /// As `PrefillTokens`, for all routers together.
        PrefillTokensAll = "prefill-tokens-all",
        /// As `DecodeBlocks`, for all routers together.
        DecodeBlocksAll = "decode-blocks-all",
        /// As `Requests`, for all routers together.
        RequestsAll = "requests-all",
        /// KV blocks that fit in device memory; 0 when unknown.
        KvBlocksTotal = "kv-blocks-total",
        /// KV blocks in use, cached ones included.
        KvBlocksUsed = "kv-blocks-used",
        /// KV blocks of running sequences, as the worker last reported.
        KvBlocksActive = "kv-blocks-active",
        /// KV blocks in use that no running sequence needs, as the worker last reported.
        KvBlocksEvictable = "kv-blocks-evictable",
        /// Sequences in prefill or decode, as the worker last reported.
        Running = "running",
        /// Requests that wait in the engine, as the worker last reported.
        QueueDepth = "queue-depth",
        /// Sequences that the worker computes at once.
        MaxRunning = "max-running",
        /// Requests that the worker takes, running and waiting together.
        MaxRequests = "max-requests",
        /// Tokens of the worker's context.
        ContextLength = "context-length",
        /// Bits of [`traits`].
        Traits = "traits",
    }
}

define_names! {
    /// A column of numbers; `wit/types.wit` (`info.numbers`) says what each one holds. A label of the workers as a number is
    /// named `number:LABEL` ([`Candidates::numbers_named`](crate::Candidates::numbers_named)).
    Number {
        /// The used share of the worker's KV blocks.
        KvUse = "kv-use",
        /// The share of the prompt's KV blocks that the worker holds on any tier.
        OverlapShare = "overlap-share",
        /// 1 when the overlap is approximate.
        Approximate = "approximate",
        /// The mean time to the first token, in ms.
        TtftMs = "ttft-ms",
        /// The mean prompt tokens that were computed for it.
        UncachedPromptTokens = "uncached-prompt-tokens",
        /// The mean time between two tokens of an answer, in ms.
        ItlMs = "itl-ms",
        /// Prompt tokens that the worker computes in a second of prefill.
        PrefillTokensPerS = "prefill-tokens-per-s",
        /// The mean prompt tokens of the steps that this rate was measured on.
        PrefillStepTokens = "prefill-step-tokens",
        /// How long one of the worker's decode steps takes, in ms.
        DecodeStepMs = "decode-step-ms",
        /// The mean KV blocks of running sequences in those steps.
        DecodeStepBlocks = "decode-step-blocks",
        /// Milliseconds since the worker's last report; 0 before the first.
        ReportAgeMs = "report-age-ms",
        /// Milliseconds since this router last placed a request of the same session there; 0 for never.
        AffinityAgeMs = "affinity-age-ms",
    }
}

define_names! {
    /// A column of keys. A label of the workers is named `label:LABEL`
    /// ([`Candidates::keys_named`](crate::Candidates::keys_named)).
    Key {
        /// The worker's id.
        Worker = "worker",
        /// The worker's label `zone`.
        Zone = "zone",
    }
}

define_names! {
    /// A whole number of the request.
    RequestCount {
        /// Most output tokens of all choices together: the client's limit or the default, times the choices.
        ExpectedOutputTokens = "expected-output-tokens",
        /// The choices that the client wants.
        Choices = "choices",
        /// The number of other routers.
        OtherRouters = "other-routers",
    }
}

define_names! {
    /// A number of the request.
    RequestNumber {
        /// Milliseconds until the request's deadline.
        DeadlineMs = "deadline-ms",
    }
}

define_names! {
    /// A key of the request. A header is named `header:NAME` ([`Request::key_named`](crate::Request::key_named)).
    RequestKey {
        /// The client's session, or what stands for it.
        Session = "session",
        /// The member `user`.
        User = "user",
        /// The member `prompt_cache_key`.
        CacheKey = "cache-key",
        /// The member `safety_identifier`.
        SafetyIdentifier = "safety-identifier",
        /// The header by which clients name their tenant: `x-tenant-id` by default.
        Tenant = "tenant",
        /// The LoRA adapter.
        Lora = "lora",
        /// The member `cache_salt`.
        CacheSalt = "cache-salt",
        /// How the prompt begins.
        Prefix = "prefix",
    }
}

/// Bits of [`Count::Traits`].
pub mod traits {
    /// The worker takes prefills.
    pub const PREFILL: u32 = 1;
    /// The worker takes decodes.
    pub const DECODE: u32 = 2;
    /// The overlap is approximate: the router does not use the worker's KV events, and learned it from its own decisions.
    pub const APPROXIMATE: u32 = 4;
    /// The router is rebuilding its index of the worker, so the overlap may be too low.
    pub const PARTIAL: u32 = 8;
}

/// More names than any of the lists above has.
const MAX_KNOWN: usize = 32;
/// The place of a name that the policy did not name.
const ABSENT: u8 = u8::MAX;

/// The places of the names in one list of an [`Info`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Places {
    /// By the number of the known name.
    known: [u8; MAX_KNOWN],
    names: Vec<String>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            known: [ABSENT; MAX_KNOWN],
            names: Vec::new(),
        }
    }
}

impl Places {
    fn new(names: &[String], known_names: &[&str]) -> Self {
        let mut places = Self::default();
        for name in names {
            places.add(name, known_names);
        }
        places
    }

    /// Gives a name the next place.
    fn add(&mut self, name: &str, known_names: &[&str]) {
        let place = u8::try_from(self.names.len()).unwrap_or(ABSENT);
        if let Some(known) = known_names.iter().position(|known| *known == name) {
            self.known[known] = place;
        }
        self.names.push(name.into());
    }

    fn known(&self, number: u8, name: &str) -> usize {
        match self.known[number as usize] {
            ABSENT => not_named(name),
            place => place as usize,
        }
    }

    fn named(&self, name: &str) -> usize {
        let place = self.names.iter().position(|known| known == name);
        place.unwrap_or_else(|| not_named(name))
    }
}

#[cold]
fn not_named(name: &str) -> ! {
    panic!("the policy reads `{name}`, which its `describe` does not name")
}

/// The places of everything that a policy reads.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Layout {
    counts: Places,
    numbers: Places,
    keys: Places,
    request_counts: Places,
    request_numbers: Places,
    request_keys: Places,
}

macro_rules! define_places {
    ($($list:ident: $type:ident, $known:ident, $named:ident, $add:ident;)*) => {
        impl Layout {
            pub(crate) fn new(info: &Info) -> Self {
                Self {
                    $($list: Places::new(&info.$list, $type::NAMES),)*
                }
            }

            $(
                pub(crate) fn $known(&self, name: $type) -> usize {
                    self.$list.known(name as u8, name.name())
                }

                pub(crate) fn $named(&self, name: &str) -> usize {
                    self.$list.named(name)
                }

                pub(crate) fn $add(&mut self, name: &str) {
                    self.$list.add(name, $type::NAMES);
                }
            )*
        }
    };
}

define_places! {
    counts: Count, count, count_named, add_count;
    numbers: Number, number, number_named, add_number;
    keys: Key, key, key_named, add_key;
    request_counts: RequestCount, request_count, request_count_named, add_request_count;
    request_numbers: RequestNumber, request_number, request_number_named, add_request_number;
    request_keys: RequestKey, request_key, request_key_named, add_request_key;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_has_room_for_its_names() {
        for names in [
            Count::NAMES,
            Number::NAMES,
            Key::NAMES,
            RequestCount::NAMES,
            RequestNumber::NAMES,
            RequestKey::NAMES,
        ] {
            assert!(names.len() <= MAX_KNOWN);
        }
    }
}

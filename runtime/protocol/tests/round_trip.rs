//! Everything that crosses a process boundary as JSON is read as it was sent, whatever its members hold.
//!
//! Each strategy names every member of its type, so that a new member does not compile until it is tested here. KV events
//! are not JSON: `event-plane/src/codec/tests.rs` tests their bytes, `request-plane/src/frame/tests.rs` those of frames.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;

use proptest::{collection, option, prelude::*, sample::select};
use serde::{Serialize, de::DeserializeOwned};
use signalbox_protocol::{
    Ability, AnswerFormat, AnswerPart, Call, Constraint, ConstraintKind, Continuation, Endpoint, EngineError,
    ErrorKind, FinishReason, GenerateRequest, KvDigest, LoadReport, LoraAdapter, Parity, ParityState,
    PlaneState, PlaneStatus, ReplicaLoad, ReplicaMessage, ReplicaUpdate, RequestId, RouterCard,
    SamplingParams, SequenceHash, StreamSummary, ToolOutput, WireError, WorkerCapacity, WorkerCard,
    WorkerEpoch, WorkerId, WorkerReport, WorkerRole, WorkerShare,
};

/// Text with quotes, control characters and characters of several bytes.
fn text() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn worker_id() -> impl Strategy<Value = WorkerId> {
    "[a-zA-Z0-9_-]{1,64}".prop_map(|name| name.parse().unwrap())
}

fn epoch() -> impl Strategy<Value = WorkerEpoch> {
    any::<u64>().prop_map(WorkerEpoch)
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let choice = (
        any::<u32>(),
        any::<f32>(),
        any::<f32>(),
        any::<u32>(),
        option::of(any::<u64>()),
    );
    let rest = (
        collection::vec(text(), 0..4),
        any::<u32>(),
        any::<f32>(),
        any::<f32>(),
        collection::btree_map(any::<u32>(), any::<f32>(), 0..5),
        option::of(any::<u32>()),
        any::<[bool; 2]>(),
    );
    let limits = (
        any::<u32>(),
        collection::vec(any::<u32>(), 0..4),
        collection::vec(text(), 0..4),
        any::<f32>(),
        any::<f32>(),
    );
    (choice, rest, limits).prop_map(
        |(
            (max_tokens, temperature, top_p, top_k, seed),
            (
                stop,
                n,
                presence_penalty,
                frequency_penalty,
                logit_bias,
                logprobs,
                [ignore_eos, prompt_logprobs],
            ),
            (min_tokens, stop_token_ids, bad_words, min_p, repetition_penalty),
        )| SamplingParams {
            max_tokens,
            temperature,
            top_p,
            top_k,
            seed,
            stop,
            n,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            logprobs,
            ignore_eos,
            min_tokens,
            stop_token_ids,
            bad_words,
            min_p,
            repetition_penalty,
            prompt_logprobs,
        },
    )
}

fn format() -> impl Strategy<Value = AnswerFormat> {
    let endpoint = select(Endpoint::ALL.to_vec());
    (
        endpoint,
        any::<bool>(),
        any::<bool>(),
        option::of(text()),
        (any::<(bool, bool, u64)>(), option::of(tools())),
        option::of(any::<u32>().prop_map(|first_choice| AnswerPart { first_choice })),
    )
        .prop_map(
            |(
                endpoint,
                stream,
                include_usage,
                echo,
                ((return_token_ids, continuous_usage, created), tools),
                part,
            )| {
                AnswerFormat {
                    endpoint,
                    stream,
                    include_usage,
                    echo,
                    return_token_ids,
                    continuous_usage,
                    tools,
                    created,
                    part,
                }
            },
        )
}

fn continuation() -> impl Strategy<Value = Continuation> {
    (any::<u32>(), text()).prop_map(|(delivered_tokens, first_piece)| Continuation {
        delivered_tokens,
        first_piece,
    })
}

fn constraint() -> impl Strategy<Value = Constraint> {
    let kind = prop_oneof![
        Just(ConstraintKind::JsonObject),
        text().prop_map(ConstraintKind::JsonSchema),
        text().prop_map(ConstraintKind::Regex),
        collection::vec(text(), 0..3).prop_map(ConstraintKind::Choice),
        text().prop_map(ConstraintKind::Grammar),
    ];
    (text(), kind).prop_map(|(param, kind)| Constraint { param, kind })
}

fn tools() -> impl Strategy<Value = ToolOutput> {
    prop_oneof![
        any::<bool>().prop_map(|one_call| ToolOutput::Auto { one_call }),
        any::<bool>().prop_map(|one_call| ToolOutput::Required { one_call }),
        text().prop_map(|name| ToolOutput::Named { name }),
    ]
}

fn generate() -> impl Strategy<Value = GenerateRequest> {
    let id = "[!-~]{1,64}".prop_map(|id| RequestId::from_client(&id).unwrap());
    let names = (id, text(), any::<u64>(), text(), text());
    let rest = (
        any::<i32>(),
        any::<u32>(),
        any::<bool>(),
        option::of(continuation()),
        option::of(constraint()),
        sampling(),
        format(),
    );
    (names, rest).prop_map(
        |(
            (id, model, deadline_ms, lora, cache_salt),
            (priority, overlap_blocks, wants_token_ids, continuation, constraint, sampling, format),
        )| GenerateRequest {
            id,
            model,
            deadline_ms,
            lora,
            cache_salt,
            priority,
            overlap_blocks,
            wants_token_ids,
            continuation,
            constraint,
            sampling,
            format,
        },
    )
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        4 => generate().prop_map(Call::Generate),
        1 => text().prop_map(|digest| Call::FetchArtifacts { digest }),
        1 => option::of((epoch(), any::<u64>())).prop_map(|from| Call::WatchKvEvents { from }),
        1 => Just(Call::FetchKvSnapshot),
        1 => any::<u64>().prop_map(|interval_ms| Call::WatchLoad { interval_ms }),
    ]
}

fn error() -> impl Strategy<Value = WireError> {
    let kind = select(vec![
        ErrorKind::InvalidRequest,
        ErrorKind::ContextLengthExceeded,
        ErrorKind::NotFound,
        ErrorKind::ModelNotFound,
        ErrorKind::MethodNotAllowed,
        ErrorKind::RequestTimeout,
        ErrorKind::Conflict,
        ErrorKind::TooLarge,
        ErrorKind::UnsupportedMedia,
        ErrorKind::Unprocessable,
        ErrorKind::Unauthorized,
        ErrorKind::Overloaded,
        ErrorKind::Unavailable,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Cancelled,
        ErrorKind::StorageFull,
        ErrorKind::Internal,
    ]);
    let engine = (any::<u16>(), text()).prop_map(|(status, body)| Box::new(EngineError { status, body }));
    let rest = (option::of(text()), option::of(any::<u32>()), option::of(engine));
    (kind, text(), rest).prop_map(|(kind, message, (param, retry_after_s, engine))| WireError {
        kind,
        message,
        param,
        retry_after_s,
        engine,
    })
}

fn report() -> impl Strategy<Value = WorkerReport> {
    let load = any::<([u32; 9], u64)>().prop_map(
        |(
            [
                running,
                waiting,
                active_kv_blocks,
                used_kv_blocks,
                total_kv_blocks,
                prefill_tokens_per_s,
                decode_step_us,
                prefill_step_tokens,
                decode_step_blocks,
            ],
            steps_done,
        )| LoadReport {
            running,
            waiting,
            active_kv_blocks,
            used_kv_blocks,
            total_kv_blocks,
            prefill_tokens_per_s,
            decode_step_us,
            prefill_step_tokens,
            decode_step_blocks,
            steps_done,
        },
    );
    let state = select(vec![
        ParityState::Exact,
        ParityState::Degraded,
        ParityState::Fallback,
    ]);
    let parity = (state, text()).prop_map(|(state, cause)| Parity { state, cause });
    let adapter = (text(), option::of(text())).prop_map(|(name, root)| LoraAdapter { name, root });
    let adapters = option::of(collection::vec(adapter, 0..3));
    let digest = option::of(any::<(u64, u64)>().prop_map(|(blocks, sum)| KvDigest { blocks, sum }));
    (load, any::<u64>(), digest, parity, adapters).prop_map(
        |(load, next_kv_batch, kv_digest, parity, adapters)| WorkerReport {
            load,
            next_kv_batch,
            kv_digest,
            parity,
            adapters,
        },
    )
}

fn share() -> impl Strategy<Value = WorkerShare> {
    (worker_id(), epoch(), any::<(u32, u32, u32)>()).prop_map(
        |(worker, epoch, (prefill_tokens, decode_blocks, requests))| WorkerShare {
            worker,
            epoch,
            load: ReplicaLoad {
                prefill_tokens,
                decode_blocks,
                requests,
            },
        },
    )
}

fn replica_message() -> impl Strategy<Value = ReplicaMessage> {
    let shares = || collection::vec(share(), 0..4);
    let update = prop_oneof![
        (any::<u64>(), shares()).prop_map(|(sequence, workers)| ReplicaUpdate::Changes { sequence, workers }),
        (any::<u64>(), shares()).prop_map(|(sequence, workers)| ReplicaUpdate::State { sequence, workers }),
        any::<(u64, u64)>().prop_map(|(sequence, digest)| ReplicaUpdate::Digest { sequence, digest }),
        option::of(worker_id()).prop_map(|of| ReplicaUpdate::Ask { of }),
    ];
    (worker_id(), update).prop_map(|(origin, update)| ReplicaMessage { origin, update })
}

fn worker_card() -> impl Strategy<Value = WorkerCard> {
    let names = (worker_id(), epoch(), text(), text(), text(), text());
    let abilities = collection::vec(
        select(vec![
            Ability::SamplingLimits,
            Ability::Constraints,
            Ability::ToolCalls,
        ]),
        0..3,
    );
    let model = (
        any::<bool>(),
        any::<bool>(),
        abilities,
        any::<u32>(),
        any::<u32>(),
        text(),
        any::<bool>(),
    );
    let role = select(vec![
        WorkerRole::Aggregated,
        WorkerRole::Prefill,
        WorkerRole::Decode,
    ]);
    let capacity =
        any::<(u32, u32, u32)>().prop_map(|(kv_blocks, max_sequences, max_waiting)| WorkerCapacity {
            kv_blocks,
            max_sequences,
            max_waiting,
        });
    let labels = collection::btree_map(text(), text(), 0..4);
    (names, model, role, capacity, labels).prop_map(
        |(
            (id, epoch, model, address, engine, engine_version),
            (
                reads_body,
                continues_answers,
                abilities,
                block_size,
                context_length,
                artifacts_digest,
                kv_events,
            ),
            role,
            capacity,
            labels,
        )| WorkerCard {
            id,
            epoch,
            model,
            address,
            engine,
            engine_version,
            reads_body,
            continues_answers,
            abilities,
            block_size,
            context_length,
            artifacts_digest,
            role,
            capacity,
            kv_events,
            labels,
        },
    )
}

fn router_card() -> impl Strategy<Value = RouterCard> {
    (worker_id(), text(), text(), text()).prop_map(|(id, http, admin, version)| RouterCard {
        id,
        http,
        admin,
        version,
    })
}

/// Written and read again, `sent` is equal to itself. A reader of another release sees members that it does not know: they
/// are skipped.
fn is_read_as_sent<T>(sent: &T) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let json = serde_json::to_vec(sent).unwrap();
    let read: T = serde_json::from_slice(&json)
        .map_err(|error| TestCaseError::fail(format!("{}: {error}", String::from_utf8_lossy(&json))))?;
    prop_assert_eq!(&read, sent);
    if let Some(members) = json.strip_prefix(b"{\"") {
        let later = [&b"{\"of_a_later_release\":{\"1\":[2]},\""[..], members].concat();
        let read: T = serde_json::from_slice(&later).unwrap();
        prop_assert_eq!(&read, sent, "with a member that is not known");
    }
    Ok(())
}

proptest! {
    #[test]
    fn calls_are_read_as_sent(call in call()) {
        is_read_as_sent(&call)?;
    }

    #[test]
    fn ends_of_calls_are_read_as_sent(error in error(), counts: (u32, u32, u32)) {
        is_read_as_sent(&error)?;
        let (prompt_tokens, cached_tokens, completion_tokens) = counts;
        is_read_as_sent(&StreamSummary { prompt_tokens, cached_tokens, completion_tokens })?;
        for reason in [FinishReason::Stop, FinishReason::Length] {
            is_read_as_sent(&reason)?;
        }
    }

    #[test]
    fn reports_of_workers_are_read_as_sent(report in report()) {
        is_read_as_sent(&report)?;
    }

    #[test]
    fn messages_of_routers_are_read_as_sent(message in replica_message()) {
        is_read_as_sent(&message)?;
    }

    #[test]
    fn cards_are_read_as_sent(worker in worker_card(), router in router_card()) {
        is_read_as_sent(&worker)?;
        is_read_as_sent(&router)?;
    }

    #[test]
    fn hashes_and_planes_are_read_as_sent(hash: u64, kind in text(), detail in text()) {
        is_read_as_sent(&SequenceHash(hash))?;
        for state in [PlaneState::Connecting, PlaneState::Up, PlaneState::Down] {
            is_read_as_sent(&PlaneStatus { kind: kind.clone(), state, detail: detail.clone() })?;
        }
    }
}

/// A token that is no number is an error that names it, not a bias that is lost.
#[test]
fn a_bias_for_no_token_is_refused() {
    let call = Call::Generate(GenerateRequest {
        id: RequestId::from_random(1),
        model: "m".into(),
        deadline_ms: 1,
        lora: String::new(),
        cache_salt: String::new(),
        priority: 0,
        overlap_blocks: 0,
        wants_token_ids: false,
        continuation: None,
        constraint: None,
        sampling: SamplingParams {
            logit_bias: [(5, 1.0)].into(),
            ..SamplingParams::default()
        },
        format: AnswerFormat {
            endpoint: Endpoint::Chat,
            stream: false,
            include_usage: false,
            echo: None,
            return_token_ids: false,
            continuous_usage: false,
            tools: None,
            created: 0,
            part: None,
        },
    });
    let json = serde_json::to_string(&call).unwrap();
    for key in ["x", "-1", "4294967296", ""] {
        let changed = json.replace("\"5\":", &format!("\"{key}\":"));
        assert_ne!(changed, json);
        let error = serde_json::from_str::<Call>(&changed).unwrap_err().to_string();
        assert!(error.contains(&format!("{key:?}")), "{error}");
    }
}

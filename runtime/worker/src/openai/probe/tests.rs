use signalbox_protocol::LoraAdapter;

use super::*;
use crate::openai::facts::EventEndpoint;

const MODELS: &str = include_str!("../captures/get_v1_models.json");
const EVENT_SOURCES: &str = include_str!("../captures/get_kv_event_sources.json");
const METRICS: &str = include_str!("../captures/metrics.txt");

fn body(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

#[test]
fn everything_that_vllm_states_is_found() {
    let answers = Answers {
        version: body(r#"{"version":"0.32.0"}"#),
        metrics: body(METRICS),
        server_info: None,
        event_sources: body(EVENT_SOURCES),
    };
    let facts = answers.facts(ModelList::parse(MODELS.as_bytes()).unwrap(), "gpu-1");
    assert_eq!(
        facts,
        EngineFacts {
            flavour: EngineFlavour::Vllm,
            version: "0.32.0".into(),
            model: "smollm2".into(),
            model_root: Some("/models/SmolLM2-135M-Instruct".into()),
            adapters: Vec::new(),
            context_length: Some(4_096),
            block_size: Some(32),
            kv_blocks: Some(1_456),
            prefix_caching: Some(true),
            events: vec![EventEndpoint {
                rank: 0,
                events: "tcp://gpu-1:5557".into(),
                replay: Some("tcp://gpu-1:5558".into()),
                topic: "kv-events".into(),
            }],
            unusable_events: None,
            ranks: 1,
            max_sequences: None,
            started_at: StartTime::from_seconds(1.795_784_911_56e9),
        }
    );
}

#[test]
fn what_vllm_has_turned_off_is_found() {
    let answers = Answers {
        version: body(r#"{"version":"0.9.1"}"#),
        metrics: body(&METRICS.replace(
            "enable_prefix_caching=\"True\"",
            "enable_prefix_caching=\"False\"",
        )),
        server_info: body(r#"{"vllm_config":{"scheduler_config":{"max_num_seqs":8}}}"#),
        event_sources: body(r#"{"0":{"enable_kv_cache_events":false,"publisher":"null"}}"#),
    };
    let facts = answers.facts(ModelList::parse(MODELS.as_bytes()).unwrap(), "h");
    assert_eq!(
        (facts.prefix_caching, facts.max_sequences),
        (Some(false), Some(8))
    );
    assert!(facts.events.is_empty() && facts.unusable_events.is_none());
    let ipc = Answers {
        event_sources: body(&EVENT_SOURCES.replace("tcp://*:5557", "ipc:///tmp/kv")),
        ..answers
    };
    let facts = ipc.facts(ModelList::parse(MODELS.as_bytes()).unwrap(), "h");
    assert!(facts.events.is_empty() && facts.unusable_events.unwrap().contains("ipc:///tmp/kv"));
}

#[test]
fn everything_that_sglang_states_is_found() {
    let answers = Answers {
        server_info: body(
            r#"{"model_path":"/m/Qwen3","page_size":16,"dp_size":2,"max_running_requests":64,"max_total_num_tokens":3200,
                "max_req_input_len":32767,"disable_radix_cache":false,"version":"0.5.23","startup_time":12.5,
                "kv_events":{"publisher":"zmq","endpoint_host":"*","endpoint_port_base":5557,"topic":"","block_size":16,
                "dp_size":2,"replay_endpoint_port_base":5567}}"#,
        ),
        ..Answers::default()
    };
    let models =
        br#"{"data":[{"id":"qwen","owned_by":"sglang","root":"qwen","parent":null,"max_model_len":32768}]}"#;
    let facts = answers.facts(ModelList::parse(models).unwrap(), "gpu");
    assert_eq!(
        (facts.flavour, facts.version.as_str()),
        (EngineFlavour::Sglang, "0.5.23")
    );
    assert_eq!(
        (facts.block_size, facts.kv_blocks, facts.ranks),
        (Some(16), Some(200), 2)
    );
    assert_eq!(
        (facts.context_length, facts.max_sequences),
        (Some(32_768), Some(64))
    );
    assert_eq!(facts.model_root.as_deref(), Some("/m/Qwen3"));
    let events: Vec<_> = facts
        .events
        .iter()
        .map(|rank| (rank.events.as_str(), rank.replay.as_deref().unwrap()))
        .collect();
    assert_eq!(
        events,
        [
            ("tcp://gpu:5557", "tcp://gpu:5567"),
            ("tcp://gpu:5558", "tcp://gpu:5568")
        ]
    );
}

#[test]
fn another_engine_is_taken_as_it_is() {
    let models = br#"{"object":"list","data":[{"id":"m","object":"model"},{"id":"lora-a","parent":"m"}]}"#;
    let facts = Answers::default().facts(ModelList::parse(models).unwrap(), "h");
    assert_eq!(
        (facts.flavour, facts.model.as_str()),
        (EngineFlavour::OpenAi, "m")
    );
    let adapter = LoraAdapter {
        name: "lora-a".into(),
        root: None,
    };
    assert_eq!(facts.adapters, [adapter]);
    assert_eq!(ModelList::parse(br#"{"data":[]}"#), None);
    assert_eq!(ModelList::parse(b"<html>"), None);
}

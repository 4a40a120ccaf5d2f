//! What an engine says about itself.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use serde_json::{Map, Value, json};

use super::{
    engine::{Engine, Rank, now},
    identity::random_id,
    options::Flavour,
    publisher::{EventPorts, TOPIC},
};

/// `/v1/models`
pub(super) fn models(engine: &Engine) -> Value {
    let options = &engine.options;
    let created = now() as u64;
    let max_model_len = |parent: &Value| parent.is_null().then_some(options.context_length);
    let model = |id: &str, root: &str, parent: Value| match options.flavour {
        Flavour::Vllm => json!({
            "id": id,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": max_model_len(&parent),
            "permission": [{
                "id": format!("modelperm-{}", random_id()),
                "object": "model_permission",
                "created": created,
                "allow_create_engine": false,
                "allow_sampling": true,
                "allow_logprobs": true,
                "allow_search_indices": false,
                "allow_view": true,
                "allow_fine_tuning": false,
                "organization": "*",
                "group": null,
                "is_blocking": false,
            }],
        }),
        Flavour::Sglang => json!({
            "id": id,
            "object": "model",
            "created": created,
            "owned_by": "sglang",
            "root": root,
            "parent": parent,
            "max_model_len": max_model_len(&parent),
        }),
    };
    let root = match options.flavour {
        Flavour::Vllm => options.root.as_str(),
        // SGLang repeats the served name.
        Flavour::Sglang => options.model.as_str(),
    };
    let base = model(&options.model, root, Value::Null);
    let names = engine.adapters.names();
    let adapters = names
        .iter()
        .map(|adapter| model(adapter, &format!("/adapters/{adapter}"), json!(options.model)));
    let data: Vec<Value> = std::iter::once(base).chain(adapters).collect();
    json!({"object": "list", "data": data})
}

/// `/kv_event_sources` of vLLM: one entry per rank, none if events are off.
pub(super) fn event_sources(engine: &Engine, ports: &[EventPorts]) -> Value {
    let source = |(rank, ports): (usize, &EventPorts)| {
        let replay = ports.replay.map(|port| format!("tcp://*:{port}"));
        let source = json!({
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": format!("tcp://*:{}", ports.live),
            "replay_endpoint": replay,
            "buffer_steps": engine.options.event_buffer,
            "hwm": 100_000,
            "max_queue_size": 100_000,
            "topic": TOPIC,
        });
        (rank.to_string(), source)
    };
    let sources: Map<String, Value> = ports.iter().enumerate().map(source).collect();
    Value::Object(sources)
}

/// `/server_info` of SGLang. Its ranks count ports up from the first one, so that only one rank's ports can be stated.
pub(super) fn server_info(engine: &Engine, ports: &[EventPorts]) -> Value {
    let options = &engine.options;
    let events = ports.first().map(|ports| {
        let mut events = json!({
            "publisher": "zmq",
            "endpoint_host": "*",
            "endpoint_port_base": ports.live,
            "topic": TOPIC,
            "block_size": options.stated_block_size(),
            "dp_size": options.ranks,
        });
        if let Some(replay) = ports.replay {
            events["replay_endpoint_port_base"] = json!(replay);
        }
        events
    });
    json!({
        "model_path": options.root,
        "tokenizer_path": options.root,
        "served_model_name": options.model,
        "context_length": options.context_length,
        "page_size": options.stated_block_size(),
        "dp_size": options.ranks,
        "disaggregation_mode": "null",
        "disaggregation_bootstrap_port": 8998,
        "max_running_requests": options.max_sequences,
        "disable_radix_cache": !options.prefix_caching,
        "enable_cache_report": options.reports_cached_tokens,
        "max_total_num_tokens": options.kv_blocks * options.block_size,
        "max_req_input_len": options.context_length - 1,
        "internal_states": [],
        "version": options.version,
        "startup_time": engine.started,
        "kv_events": events,
    })
}

/// `/model_info` of SGLang.
pub(super) fn model_info(engine: &Engine) -> Value {
    json!({
        "model_path": engine.options.root,
        "tokenizer_path": engine.options.root,
        "is_generation": true,
        "served_model_name": engine.options.model,
        "weight_version": "default",
        "reasoning_parser": null,
        "tool_call_parser": null,
        "disaggregation_mode": "null",
    })
}

/// `/v1/loads` of SGLang.
pub(super) fn loads(engine: &Engine) -> Value {
    let load = |(rank, state): (usize, &Arc<Rank>)| {
        let total = engine.options.kv_blocks * engine.options.block_size;
        let used = (state.usage() * f64::from(total)) as u64;
        json!({
            "dp_rank": rank,
            "num_running_reqs": state.running.load(Ordering::Relaxed),
            "num_waiting_reqs": state.waiting.load(Ordering::Relaxed),
            "num_waiting_uncached_tokens": 0,
            "num_used_tokens": used,
            "num_total_tokens": used,
            "max_total_num_tokens": total,
            "max_running_requests": engine.options.max_sequences,
            "token_usage": state.usage(),
        })
    };
    let loads: Vec<Value> = engine.ranks.iter().enumerate().map(load).collect();
    json!({"timestamp": now(), "version": engine.options.version, "dp_rank_count": loads.len(), "loads": loads})
}

/// `/metrics`: the series of a real one that a router may read, with its help lines and labels.
pub(super) fn metrics(engine: &Engine) -> String {
    let mut text = String::new();
    let options = &engine.options;
    gauge(
        &mut text,
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        &[("", exponential(engine.started))],
    );
    let prefix = match options.flavour {
        Flavour::Vllm => "vllm",
        Flavour::Sglang => "sglang",
    };
    let of_ranks = |name: &str, extra: &str, value: &dyn Fn(&Rank) -> f64| {
        let sample = |(rank, state): (usize, &Arc<Rank>)| {
            let labels = match options.flavour {
                Flavour::Vllm => format!("{{engine=\"{rank}\",model_name=\"{}\"{extra}}}", options.model),
                Flavour::Sglang => format!("{{dp_rank=\"{rank}\",model_name=\"{}\"{extra}}}", options.model),
            };
            format!("{prefix}:{name}{labels} {:?}\n", value(state))
        };
        engine.ranks.iter().enumerate().map(sample).collect::<String>()
    };
    let running = |rank: &Rank| f64::from(rank.running.load(Ordering::Relaxed));
    let waiting = |rank: &Rank| f64::from(rank.waiting.load(Ordering::Relaxed));
    match options.flavour {
        Flavour::Vllm => {
            text += &of_ranks("num_requests_running", "", &running);
            text += &of_ranks("num_requests_waiting", "", &waiting);
            text += &of_ranks("engine_sleep_state", ",sleep_state=\"awake\"", &|_| 1.0);
            text += &of_ranks("kv_cache_usage_perc", "", &Rank::usage);
            text += &of_ranks("prefix_cache_queries_total", "", &|rank| {
                rank.queried_tokens.load(Ordering::Relaxed) as f64
            });
            text += &of_ranks("prefix_cache_hits_total", "", &|rank| {
                rank.hit_tokens.load(Ordering::Relaxed) as f64
            });
            text += &of_ranks("num_preemptions_total", "", &|_| 0.0);
            text += &cache_config(engine);
        }
        Flavour::Sglang => {
            text += &of_ranks("num_running_reqs", "", &running);
            text += &of_ranks("num_queue_reqs", "", &waiting);
            text += &of_ranks("token_usage", "", &Rank::usage);
            text += &of_ranks("page_size", "", &|_| f64::from(options.stated_block_size()));
        }
    }
    text
}

fn cache_config(engine: &Engine) -> String {
    let options = &engine.options;
    let size = options.stated_block_size();
    let caching = if options.prefix_caching { "True" } else { "False" };
    let tokens = options.kv_blocks * options.block_size;
    let mut text = String::from(
        "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n# TYPE vllm:cache_config_info gauge\n",
    );
    for rank in 0..engine.ranks.len() {
        let _ = writeln!(
            text,
            "vllm:cache_config_info{{_block_size_resolved=\"True\",block_size=\"{size}\",cache_dtype=\"auto\",\
             effective_attention_block_size=\"{size}\",enable_prefix_caching=\"{caching}\",engine=\"{rank}\",\
             gpu_memory_utilization=\"0.92\",kv_cache_size_tokens=\"{tokens}\",num_cpu_blocks=\"None\",\
             num_gpu_blocks=\"{}\",prefix_caching_hash_algo=\"sha256\",sliding_window=\"None\",\
             user_specified_block_size=\"True\"}} 1.0",
            options.kv_blocks
        );
    }
    text
}

fn gauge(text: &mut String, name: &str, help: &str, samples: &[(&str, String)]) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// As Python prints it: `1.79578491156e+09`, in steps of 10 ms.
fn exponential(seconds: f64) -> String {
    let text = format!("{:e}", (seconds * 100.0).round() / 100.0);
    text.replace("e9", "e+09")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_is_printed_as_prometheus_client_prints_it() {
        assert_eq!(exponential(1_795_784_911.563), "1.79578491156e+09");
    }
}

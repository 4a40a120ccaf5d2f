//! Drives an engine next door: vLLM, SGLang, or another server that speaks the OpenAI API.

pub mod kv_events;

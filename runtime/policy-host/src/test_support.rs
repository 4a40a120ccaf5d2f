//! Shared by the tests of this crate: one engine, the guests, and candidates.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
};

use crate::{
    Candidates, ColumnGroups, PolicyComponent, PolicyEngine, PolicyLimits, RequestFeatures, builtin_policies,
};

/// The one engine for all tests of the process.
pub(crate) fn engine() -> PolicyEngine {
    static ENGINE: OnceLock<PolicyEngine> = OnceLock::new();
    ENGINE
        .get_or_init(|| PolicyEngine::new(PolicyLimits::default()).expect("engine"))
        .clone()
}

/// The component of a guest of `policies/misbehaving`.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration-tests/guests");
    fs::read(guests.join(name).with_extension("wasm")).expect(name)
}

/// A built-in policy or a guest by name, with its default settings. It is admitted once for all tests, since an
/// unoptimised compiler is slow.
pub(crate) fn admitted(name: &str) -> Arc<PolicyComponent> {
    static ADMITTED: OnceLock<Mutex<HashMap<String, Arc<PolicyComponent>>>> = OnceLock::new();
    let mut admitted = ADMITTED
        .get_or_init(Mutex::default)
        .lock()
        .expect("no test panics while it admits a policy");
    let admit = || {
        let builtin = builtin_policies()
            .into_iter()
            .find(|(builtin, _)| *builtin == name);
        let wasm = builtin.map_or_else(|| guest(name), |(_, wasm)| wasm.to_vec());
        engine().admit(&wasm, "").expect(name)
    };
    Arc::clone(admitted.entry(name.to_owned()).or_insert_with(admit))
}

/// The built-in policies.
pub(crate) fn builtin() -> Vec<(&'static str, Arc<PolicyComponent>)> {
    builtin_policies()
        .into_iter()
        .map(|(name, _)| (name, admitted(name)))
        .collect()
}

/// The same component with another digest, as if its bytes were others.
pub(crate) fn variant(component: &PolicyComponent, salt: u8) -> Arc<PolicyComponent> {
    Arc::new(PolicyComponent {
        engine: component.engine.clone(),
        exports: component.exports.clone(),
        description: component.description.clone(),
        digest: format!("{salt:02x}").repeat(32).into(),
        settings: component.settings.clone(),
        size_bytes: component.size_bytes,
    })
}

/// Workers 1, 2, … with empty caches and without load.
pub(crate) fn idle(workers: u32) -> Candidates {
    let mut candidates = Candidates {
        worker: (1..=workers).collect(),
        ..Candidates::default()
    };
    candidates.resize(workers as usize);
    candidates.resize_groups(ColumnGroups::ALL);
    candidates.worker_key = (1..=u64::from(workers)).collect();
    candidates
}

/// A request for 10 blocks of 16 tokens.
pub(crate) fn request(decision_number: u64) -> RequestFeatures {
    RequestFeatures {
        prompt_tokens: 160,
        prompt_blocks: 10,
        block_size: 16,
        decision_number,
        ..Default::default()
    }
}

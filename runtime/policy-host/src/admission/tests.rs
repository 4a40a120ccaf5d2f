use super::*;
use crate::{Candidates, ColumnGroups, PolicyLimits, RequestFeatures, builtin_policies, test_support};

fn refusal(wasm: &[u8], settings: &str) -> String {
    test_support::engine()
        .admit(wasm, settings)
        .expect_err("refused")
        .to_string()
}

fn check_refused(guest: &str, settings: &str, reasons: &[&str]) {
    let refusal = refusal(&test_support::guest(guest), settings);
    for reason in reasons {
        assert!(
            refusal.contains(reason),
            "{guest}: {refusal:?} does not contain {reason:?}"
        );
    }
}

#[test]
fn the_built_in_policies_are_admitted_with_their_names_and_versions() {
    for (name, wasm) in builtin_policies() {
        let component = test_support::engine().admit(wasm, "").expect(name);
        assert_eq!((component.name(), component.version()), (name, "1.0.0"));
        assert_eq!(component.size_bytes(), wasm.len());
        assert_eq!(component.digest().len(), 64);
        assert!(wasm.len() < 160 << 10, "{name} has {} bytes", wasm.len());
    }
}

#[test]
fn a_refusal_names_what_the_upload_is() {
    let check = |wasm: &[u8], reason: &str| {
        let refusal = refusal(wasm, "");
        assert!(refusal.contains(reason), "{refusal}");
    };
    check(b"", "empty");
    check(b"<html>no such file</html>", "not WebAssembly");
    check(b"(component)", "text");
    check(&test_support::guest("core-module"), "core WebAssembly module");
    let mut cut_short = builtin_policies()[0].1.to_vec();
    cut_short.truncate(20_000);
    check(&cut_short, "not valid");
    let mut broken = builtin_policies()[0].1.to_vec();
    broken[30_000..30_100].fill(0xff);
    check(&broken, "not valid");
}

#[test]
fn a_component_larger_than_the_limit_is_refused_before_anything_is_read() {
    let limits = PolicyLimits {
        max_component_bytes: 1000,
        ..PolicyLimits::default()
    };
    let error = PolicyEngine::new(limits)
        .expect("engine")
        .admit(&[0; 1001], "")
        .expect_err("too large");
    assert_eq!(error, AdmissionError::TooLarge { limit: 1000 });
}

#[test]
fn a_refusal_names_foreign_imports_and_other_exports() {
    check_refused(
        "foreign-import",
        "",
        &[
            "wasi:clocks/monotonic-clock@0.2.0",
            "has no WASI",
            "wit/policy.wit",
        ],
    );
    check_refused(
        "other-world",
        "",
        &["example:greeter/greeter@1.0.0", "signalbox:policy/routing@0.2.0"],
    );
}

#[test]
fn an_interface_with_the_right_name_and_other_types_is_refused() {
    // A `decide` without arguments and with another result.
    let wat = r#"(component
        (core module $m
            (memory (export "memory") 1)
            (func (export "f") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $f (result u32) (canon lift (core func $i "f")))
        (instance $routing (export "configure" (func $f)) (export "describe" (func $f)) (export "decide" (func $f)))
        (export "signalbox:policy/routing@0.2.0" (instance $routing)))"#;
    let refusal = refusal(&wat::parse_str(wat).expect("wat"), "");
    assert!(
        refusal.contains("starting") && refusal.contains("type"),
        "{refusal}"
    );
}

#[test]
fn a_component_that_takes_too_long_to_compile_is_refused_before() {
    let body = "(drop (i32.const 1000000))".repeat(40_000);
    let wat = format!("(component (core module (func {body})))");
    let refusal = refusal(&wat::parse_str(wat).expect("wat"), "");
    assert!(refusal.contains("a function of the component has"), "{refusal}");
    let functions = "(func)".repeat(10_001);
    let wat = format!("(component (core module {functions}))");
    let refusal = self::refusal(&wat::parse_str(wat).expect("wat"), "");
    assert!(refusal.contains("10000 functions"), "{refusal}");
}

/// Two components that call each other, which need code with the memories of both. The compiler panicked.
#[test]
fn a_component_of_components_is_refused() {
    let wat = include_str!("../../tests/two-memories.wat");
    let wasm = wat::parse_str(wat).expect("wat");
    let refusal = refusal(&wasm, "");
    assert!(refusal.contains("a policy is a single component"), "{refusal}");
    // The compiler itself, if a component like this one passes the inspection.
    let AdmissionError::Unsound(refusal) = caught(|| test_support::engine().compile_and_try(&wasm, ""))
        .expect_err("the compiler has no multiple memories")
    else {
        panic!("another kind of error")
    };
    assert!(refusal.contains("cannot be compiled"), "{refusal}");
}

/// A component with the interface of a policy, whose types are wrong, and with these memories, in pages of 64 KiB.
fn with_memories(pages: &[u32]) -> Vec<u8> {
    let modules: String = pages
        .iter()
        .enumerate()
        .map(|(number, pages)| {
            format!("(core module $m{number} (memory {pages})) (core instance (instantiate $m{number}))")
        })
        .collect();
    let wat = format!(
        r#"(component
        {modules}
        (core module $m (func (export "f") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $f (result u32) (canon lift (core func $i "f")))
        (instance $routing (export "configure" (func $f)) (export "describe" (func $f)) (export "decide" (func $f)))
        (export "signalbox:policy/routing@0.2.0" (instance $routing)))"#
    );
    wat::parse_str(wat).expect("wat")
}

#[test]
fn the_memories_of_an_instance_have_one_limit_together() {
    let limit = test_support::engine().limits().max_memory_bytes;
    let pages = u32::try_from(limit >> 16).expect("pages");
    for memories in [vec![pages], vec![pages / 2; 2], vec![pages / 4; 4]] {
        let refusal = refusal(&with_memories(&memories), "");
        assert!(refusal.contains("type"), "{memories:?}: {refusal}");
    }
    for memories in [vec![pages / 2 + 1, pages / 2], vec![pages, 0, 0, 1]] {
        let refusal = refusal(&with_memories(&memories), "");
        let bytes = limit + (1 << 16);
        assert!(
            refusal.contains(&format!(
                "requested {bytes} bytes of memory; the limit is {limit}"
            )),
            "{memories:?}: {refusal}"
        );
    }
    let refusal = refusal(&with_memories(&[1; 50]), "");
    assert!(refusal.contains("memories") && refusal.contains('4'), "{refusal}");
}

#[test]
fn a_panic_while_a_component_is_compiled_is_a_refusal() {
    let refusal = |outcome: Result<(), AdmissionError>| outcome.expect_err("refused").to_string();
    assert!(refusal(caught(|| panic!("because"))).ends_with("the compiler failed: because"));
    assert!(refusal(caught(|| panic!("number {}", 7))).ends_with("number 7"));
    assert!(refusal(caught(|| std::panic::panic_any(7))).contains("no reason"));
    assert_eq!(caught(|| Ok(3)), Ok(3));
}

#[test]
fn guests_that_misbehave_from_the_start_fail_their_trial() {
    let always = r#"{"always": true}"#;
    check_refused("trap", always, &["trial decision on 1 candidates", "trapped"]);
    check_refused("loop-in-decide", always, &["ran past its budget of 2 ms"]);
    check_refused("memory-hog", always, &["the limit is 16777216"]);
    check_refused("deep-recursion", always, &["out of stack"]);
    check_refused("wrong-count", always, &["2 costs for 1 candidates"]);
    check_refused("nan-costs", always, &["is NaN"]);
    check_refused("excludes-all", always, &["rules out all 1 candidates"]);
    check_refused("pick-out-of-range", always, &["picked row 1 of 1"]);
    check_refused(
        "loop-in-configure",
        "",
        &["reading its settings", "budget of 20 ms"],
    );
    check_refused(
        "unknown-column",
        "",
        &["phase-of-the-moon", "known: kv-use, overlap-share"],
    );
    check_refused(
        "answers",
        r#"{"always": true, "answer": "forgotten-column"}"#,
        &["reads `queue-depth`, which its `describe` does not name"],
    );
    check_refused(
        "answers",
        r#"{"always": true, "answer": "wait"}"#,
        &["does not hold requests back"],
    );
}

#[test]
fn settings_are_refused_in_the_policys_own_words() {
    let (_, kv_aware) = builtin_policies()[1];
    let refusal = |settings: &str| {
        test_support::engine()
            .admit(kv_aware, settings)
            .expect_err("refused")
    };
    let check = |settings: &str, reason: &str| match refusal(settings) {
        AdmissionError::Settings(sentence) => assert!(sentence.contains(reason), "{sentence}"),
        other => panic!("{other}"),
    };
    check(
        r#"{"pressure_ms": -1}"#,
        "\"pressure_ms\" must be a number from 0 to 1000",
    );
    check(r#"{"overlap": 1}"#, "no setting \"overlap\"");
    // The policy does not receive settings that are not a JSON object.
    check("[]", "must be a JSON object");
    check("{", "not JSON");
    check(
        &format!("{{\"x\": \"{}\"}}", "x".repeat(70_000)),
        "at most 65536 are possible",
    );
    // Short as they are given, and long as they are stored.
    check(
        &format!("{{\"x\": [{}1]}}", "1e15,".repeat(10_000)),
        "at most 65536 are possible",
    );
}

#[test]
fn a_component_is_reconfigured_without_its_bytes() {
    let (_, kv_linear) = builtin_policies()[2];
    let engine = test_support::engine();
    let component = engine.admit(kv_linear, "").expect("kv-linear");
    let other = engine
        .reconfigure(&component, r#"{"prefill_load_scale": 0}"#)
        .expect("settings");
    assert_eq!(other.digest(), component.digest());
    let request = RequestFeatures {
        prompt_tokens: 160,
        prompt_blocks: 10,
        block_size: 16,
        ..Default::default()
    };
    let candidates = test_support::idle(2);
    let costs = |component: &Arc<PolicyComponent>| {
        let mut decision = Decision::default();
        let mut instance = component.instantiate().expect("instance");
        instance
            .decide(&request, &candidates, &mut decision)
            .expect("decision");
        decision.costs
    };
    assert_eq!(costs(&component), [20.0, 20.0]);
    assert_eq!(costs(&other), [10.0, 10.0]);
    assert!(engine.reconfigure(&component, r#"{"no": 1}"#).is_err());
}

#[test]
fn trial_requests_are_the_same_every_time_and_have_even_columns() {
    let trials: Vec<(RequestFeatures, Candidates)> = trial_requests(&[1, 9], 8).collect();
    assert_eq!(trials, trial_requests(&[1, 9], 8).collect::<Vec<_>>());
    let rows: usize = trials.iter().map(|(_, candidates)| candidates.len()).sum();
    assert_eq!(rows, 80);
    for (_, candidates) in &trials {
        assert_eq!(candidates.uneven_column(ColumnGroups::ALL), None);
    }
}

/// A change of the trial values changes what every policy is tried, recorded and measured on.
#[test]
fn trial_requests_are_the_recorded_snapshots() {
    let recorded: Vec<(RequestFeatures, Candidates)> = include_str!("../../tests/snapshots.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let generated: Vec<_> = trial_requests(&[1, 2, 3, 8, 21, 64], 16).collect();
    assert!(
        generated == recorded,
        "the trial values differ from those of tests/snapshots.jsonl"
    );
}

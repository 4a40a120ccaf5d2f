use proptest::prelude::*;

use super::*;
use crate::test_support;

const MODEL: &str = "model";

fn registry() -> PolicyRegistry {
    PolicyRegistry::for_tests("kv-aware").expect("registry")
}

fn learner(salt: u8) -> Arc<PolicyComponent> {
    test_support::variant(&test_support::admitted("learner"), salt)
}

fn active(registry: &PolicyRegistry) -> String {
    registry
        .active(MODEL)
        .map_or_else(String::new, |activation| activation.label.to_string())
}

#[test]
fn a_version_that_is_taken_gets_a_part_of_the_digest() {
    let registry = registry();
    let first = registry.store("mine", learner(1), None).expect("first");
    let second = registry.store("mine", learner(2), None).expect("second");
    assert_eq!(first.version, "1.0.0");
    assert_eq!(second.version, format!("1.0.0+{}", &second.digest[..8]));
    // Under another name the version is free.
    assert_eq!(
        registry
            .store("yours", learner(2), None)
            .expect("other name")
            .version,
        "1.0.0"
    );
    // The name means the newest version, `name@version` that version.
    registry.activate(MODEL, "mine", None).expect("activate");
    assert_eq!(active(&registry), format!("mine@{}", second.version));
    registry.activate(MODEL, "mine@1.0.0", None).expect("activate");
    assert_eq!(active(&registry), "mine@1.0.0");
}

#[test]
fn the_same_bytes_again_are_the_same_record() {
    let registry = registry();
    let upload = |settings: &str| {
        let uploaded = registry.upload("mine", &test_support::guest("learner"), settings);
        uploaded.expect("upload")
    };
    let first = upload("");
    assert!(first.is_new());
    let again = upload("");
    assert!(!again.is_new());
    let (first, again) = (first.record, again.record);
    assert_eq!(again, first);
    let other = upload(r#"{"forget": true}"#).record;
    assert_eq!(other.version, first.version);
    assert_eq!(other.settings["forget"], true);
    assert_eq!(registry.list().len(), builtin_policies().len() + 1);
}

#[test]
fn settings_belong_to_the_activation() {
    let registry = registry();
    registry
        .activate(MODEL, "kv-aware", Some(r#"{"pressure_ms": 2}"#))
        .expect("activate");
    registry.activate("other", "kv-aware", None).expect("activate");
    let settings = |model| {
        registry
            .active(model)
            .expect("active")
            .component
            .settings()
            .to_owned()
    };
    assert_eq!(
        (settings(MODEL).as_str(), settings("other").as_str()),
        (r#"{"pressure_ms": 2}"#, "")
    );
    // To activate the active version with equal settings changes nothing, even when they are spelled differently.
    assert_eq!(
        registry
            .activate(MODEL, "kv-aware", Some(r#"{ "pressure_ms":2 }"#))
            .expect("activate")
            .number,
        2
    );
    assert_eq!(registry.active(MODEL).expect("active").number, 2);
    assert_eq!(
        registry
            .activate("other", "kv-aware", None)
            .expect("activate")
            .number,
        1
    );
    assert_eq!(registry.active("other").expect("active").number, 1);
}

#[test]
fn refusals_change_nothing() {
    let registry = registry();
    registry.activate(MODEL, "round-robin", None).expect("activate");
    let refused = |result: Result<Arc<Activation>, RegistryError>| result.expect_err("refused").to_string();
    let unknown = refused(registry.activate(MODEL, "nobody", None));
    assert!(
        unknown.contains("\"nobody\"") && unknown.contains("kv-aware@1.0.0"),
        "{unknown}"
    );
    refused(registry.activate(MODEL, "kv-aware@9", None));
    let settings = refused(registry.activate(MODEL, "kv-aware", Some(r#"{"x": 1}"#)));
    assert!(settings.contains("no setting \"x\""), "{settings}");
    let json = refused(registry.activate(MODEL, "kv-aware", Some("{")));
    assert!(json.contains("not JSON"), "{json}");
    assert!(refused(registry.activate(MODEL, "kv-aware", Some("3"))).contains("JSON object"));
    for name in ["", "Mine", "-x", "a b", "a@1", &"x".repeat(65)] {
        let refusal = registry
            .upload(name, &test_support::guest("learner"), "")
            .expect_err(name)
            .to_string();
        assert!(refusal.contains("cannot name a policy"), "{refusal}");
    }
    assert_eq!(active(&registry), "round-robin@1.0.0");
    assert_eq!(registry.list().len(), builtin_policies().len());
    assert!(matches!(
        PolicyRegistry::for_tests("nobody"),
        Err(RegistryError::Unknown { .. })
    ));
}

#[test]
fn the_name_of_a_built_in_policy_is_for_that_policy_only() {
    let registry = registry();
    let refusal = |outcome: Result<PolicyRecord, RegistryError>| match outcome {
        Err(RegistryError::Conflict(refusal)) => refusal,
        other => panic!("{other:?} instead of a conflict"),
    };
    let learner = learner(1);
    for name in ["kv-aware", "kv-linear", "round-robin", "replica-synced"] {
        let refusal = refusal(registry.store(name, Arc::clone(&learner), None));
        assert!(
            refusal.contains(name) && refusal.contains("another name"),
            "{refusal}"
        );
        // As from another router.
        refusal_is_equal(
            &refusal,
            registry.store(name, Arc::clone(&learner), Some("9.9.9")),
        );
    }
    assert_eq!(registry.list().len(), builtin_policies().len());
    let (_, own) = test_support::builtin()
        .into_iter()
        .find(|(name, _)| *name == "kv-aware")
        .expect("built in");
    let again = registry.store("kv-aware", own, None).expect("its own bytes");
    assert!(again.builtin);
    assert_eq!(registry.deciding("new").label.as_ref(), "kv-aware@1.0.0");
}

#[track_caller]
fn refusal_is_equal(refusal: &str, outcome: Result<PolicyRecord, RegistryError>) {
    assert_eq!(outcome.expect_err("refused").to_string(), refusal);
}

#[test]
fn an_upload_that_is_taken_back_leaves_what_was_there() {
    let registry = registry();
    let before = registry.list();
    let new = registry.keep("mine", learner(1), None).expect("new");
    registry.take_back(new);
    assert_eq!(registry.list(), before);

    registry.store("mine", learner(1), None).expect("kept");
    registry.store("mine", learner(2), None).expect("kept");
    let before = registry.list();
    let other_settings = registry
        .0
        .engine
        .reconfigure(&learner(1), r#"{"forget": true}"#)
        .expect("settings");
    let again = registry.keep("mine", other_settings, None).expect("again");
    assert!(!again.is_new());
    assert_eq!(again.record.settings["forget"], true);
    registry.take_back(again);
    assert_eq!(
        registry.list(),
        before,
        "and the newest version is the newest again"
    );
}

/// Activates an earlier policy again, as a rollback does.
fn roll_back(registry: &PolicyRegistry, policy: &str) -> Result<Arc<Activation>, RegistryError> {
    let record = registry.find(policy)?;
    let prepared = registry.prepare(MODEL, &record.name, &record.digest, "")?;
    registry.publish(prepared, Succession::Back)
}

#[test]
fn a_quarantine_does_not_return_to_a_version_that_a_rollback_left() {
    for (succession, expected) in [
        (Succession::Forward, "replica-synced"),
        (Succession::Back, "kv-aware"),
    ] {
        let registry = registry();
        registry.activate(MODEL, "round-robin", None).expect("activate");
        let before = registry
            .activate(MODEL, "replica-synced", None)
            .expect("activate");
        assert_eq!(&*before.label, "round-robin@1.0.0");
        match succession {
            Succession::Forward => registry.activate(MODEL, "round-robin", None).expect("activate"),
            Succession::Back => roll_back(&registry, "round-robin").expect("rollback"),
        };
        let activation = registry.active(MODEL).expect("active");
        assert_eq!((&*activation.label, activation.number), ("round-robin@1.0.0", 4));
        for _ in 0..3 {
            registry.note_fault(MODEL, &activation, &PolicyFault::Stack);
        }
        assert_eq!(active(&registry), format!("{expected}@1.0.0"));
    }
}

#[test]
fn a_prepared_policy_decides_nothing_before_it_is_published() {
    let registry = registry();
    let _runner = registry.runner(MODEL);
    let digest = registry.find("round-robin").expect("built in").digest;
    let prepare = || {
        registry
            .prepare(MODEL, "round-robin", &digest, "")
            .expect("prepare")
    };
    drop(prepare());
    assert_eq!(active(&registry), "kv-aware@1.0.0");
    let prepared = prepare();
    registry.publish(prepare(), Succession::Forward).expect("publish");
    assert_eq!(active(&registry), "round-robin@1.0.0");
    assert_eq!(registry.active(MODEL).expect("active").warm_left(), 1);
    // A version that was put in quarantine after it was prepared is not published.
    let activation = registry.active(MODEL).expect("active");
    for _ in 0..3 {
        registry.note_fault(MODEL, &activation, &PolicyFault::Stack);
    }
    let refusal = registry
        .publish(prepared, Succession::Forward)
        .expect_err("quarantined");
    assert!(matches!(refusal, RegistryError::Conflict(_)), "{refusal}");
    assert!(matches!(
        registry.prepare(MODEL, "round-robin", "0000", ""),
        Err(RegistryError::Unknown { .. })
    ));
}

#[test]
fn a_component_of_another_router_keeps_its_version() {
    let registry = registry();
    let restored = |name: &str, version| {
        registry
            .restore(name, version, &test_support::guest("learner"), "")
            .expect("restore")
            .version
    };
    assert_eq!(restored("mine", "1.0.0+0a1b2c3d"), "1.0.0+0a1b2c3d");
    assert_eq!(
        restored("mine", "9.9.9"),
        "1.0.0+0a1b2c3d",
        "the same bytes are the same record"
    );
    registry.store("yours", learner(1), None).expect("upload");
    let digest = registry.by_digest("mine", registry.find("mine").expect("mine").digest.as_str());
    let digest = digest.expect("the same").digest;
    assert_eq!(restored("yours", "1.0.0"), format!("1.0.0+{}", &digest[..8]));
}

#[test]
fn records_list_the_models_that_a_version_decides_for() {
    let registry = registry();
    registry.activate("a", "round-robin", None).expect("activate");
    registry.activate("b", "round-robin", None).expect("activate");
    let records = registry.list();
    let mut expected = builtin_policies().map(|(name, _)| match name {
        "round-robin" => (name, "active"),
        _ => (name, "stored"),
    });
    expected.sort_unstable();
    let names: Vec<_> = records
        .iter()
        .map(|record| (record.name.as_str(), record.state.as_str()))
        .collect();
    assert_eq!(names, expected);
    let deciding = records.iter().find(|record| record.name == "round-robin");
    let deciding = deciding.expect("it is built in");
    assert_eq!(deciding.models, ["a", "b"]);
    let json = serde_json::to_value(deciding).expect("JSON");
    assert_eq!(json["settings"], serde_json::json!({}));
    assert!(json.get("reason").is_none());
}

#[test]
fn a_full_store_drops_the_oldest_unneeded_version() {
    let registry = registry();
    let keep = registry.store("mine", learner(0), None).expect("upload");
    let keep = format!("mine@{}", keep.version);
    registry.activate(MODEL, &keep, None).expect("activate");
    for salt in 1..64 {
        registry.store("mine", learner(salt), None).expect("upload");
    }
    let records = registry.list();
    assert_eq!(records.len(), 64);
    let labels: Vec<_> = records
        .iter()
        .map(|record| format!("{}@{}", record.name, record.version))
        .collect();
    assert!(labels.contains(&keep) && labels.contains(&"kv-aware@1.0.0".into()));
    let stored = |salt| {
        records
            .iter()
            .any(|record| record.digest == learner(salt).digest())
    };
    // Each built-in policy takes a place, and the first component has another one.
    let builtin = builtin_policies().len() as u8;
    assert!(
        (1..=builtin).all(|salt| !stored(salt)),
        "the oldest unneeded ones are still there"
    );
    assert!(stored(builtin + 1) && stored(63));
}

#[test]
fn instances_that_no_runner_took_free_their_places() {
    let registry = registry();
    // Runners that make no decision: each swap starts instances that no runner takes.
    let _runners: Vec<_> = (0..40).map(|_| registry.runner(MODEL)).collect();
    for swap in 0..60 {
        let policy = ["round-robin", "replica-synced"][swap % 2];
        registry.activate(MODEL, policy, None).expect("activate");
        assert_eq!(
            registry.active(MODEL).expect("active").warm_left(),
            40,
            "no places left at swap {swap}"
        );
    }
}

/// An action of an operator, or faults of a policy.
#[derive(Debug, Clone, Copy)]
enum Step {
    Activate(usize),
    Rollback(usize),
    Faults,
    Upload(usize),
}

const POLICIES: [&str; 3] = ["round-robin", "kv-aware", "replica-synced"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize).prop_map(Step::Activate),
        2 => (0..3_usize).prop_map(Step::Rollback),
        2 => Just(Step::Faults),
        1 => (0..3_usize).prop_map(Step::Upload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After any steps, a version in quarantine does not decide, and the numbers of activations never decrease.
    #[test]
    fn quarantined_versions_never_decide(steps in prop::collection::vec(step(), 1..30)) {
        let registry = registry();
        registry.activate(MODEL, "round-robin", None).expect("activate");
        let mut number = 0;
        for step in steps {
            match step {
                Step::Activate(policy) => drop(registry.activate(MODEL, POLICIES[policy], None)),
                Step::Rollback(policy) => drop(roll_back(&registry, POLICIES[policy])),
                Step::Faults => {
                    let activation = registry.active(MODEL).expect("active");
                    for _ in 0..3 {
                        registry.note_fault(MODEL, &activation, &PolicyFault::Stack);
                    }
                }
                Step::Upload(policy) => {
                    let name = POLICIES[policy];
                    registry.store(name, test_support::admitted(name), None).expect("upload");
                }
            }
            let activation = registry.active(MODEL).expect("active");
            prop_assert!(activation.number >= number);
            number = activation.number;
            let records = registry.list();
            let state = |label: &str| {
                let record = records.iter().find(|it| format!("{}@{}", it.name, it.version) == label);
                record.map(|it| it.state.clone()).unwrap_or_default()
            };
            // Otherwise the fallback decides until a policy is activated.
            if activation.decides() {
                prop_assert_eq!(state(&activation.label), "active");
            }
        }
    }
}

//! `runtime policy test`: recorded decisions once more, by a component. It shows where the component decides otherwise.
//!
//! Each thread of a router had an instance of its own, so each thread's decisions are replayed by an instance of their own, in
//! the order in which they were made. A component with the digest and the settings that decided then makes the same
//! decisions: a policy has no clock and no randomness beside what is recorded. One that learns from outcomes is the exception,
//! since records do not say when it received them.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{BufRead, BufReader},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use signalbox_policy_host::{
    Decision, Opinion, PolicyComponent, PolicyEngine, PolicyFault, PolicyInstance, PolicyLimits,
    builtin_policies,
};
use signalbox_router::RecordedDecision;

use crate::{cli::PolicyTestOptions, console};

/// Budget of a call, in milliseconds. What is judged here is what a policy decides, not how fast this machine is.
const BUDGET_MS: u64 = 5_000;
/// Most settings that recorded decisions may have: each is a component to compile.
const MAX_SETTINGS: usize = 64;

/// How the component decided, beside the records.
#[derive(Debug, Default)]
struct Outcome {
    same: usize,
    /// It chose another worker.
    differing: usize,
    /// Mean of the costs by which the recorded worker is dearer to the component than its own choice, summed up.
    regret: f64,
    /// It abstained, rejected the request or faulted.
    undecided: usize,
    /// Decisions of the fallback, which no component made.
    fallback: usize,
    /// The first differences.
    shown: Vec<String>,
    /// The decisions that the same component made with the same settings, and those of them that it makes otherwise now.
    own: (usize, usize),
}

/// Compares, and prints the outcome. The exit code is that of `diff`: 0 if every decision is the same, 1 otherwise.
pub(crate) fn run(options: &PolicyTestOptions) -> anyhow::Result<ExitCode> {
    let component = Components::load(&options.policy, options.settings.as_deref())?;
    let records = read(options)?;
    let outcome = compare(component, records, usize::from(options.show))?;
    console::line(format_args!("{outcome}"));
    Ok(if outcome.differing + outcome.undecided == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// The component with each of the settings that are needed.
struct Components {
    name: String,
    wasm: Vec<u8>,
    engine: PolicyEngine,
    /// Those of the command line; `None` for those of each record that this component decided, else the defaults.
    settings: Option<String>,
    admitted: BTreeMap<String, Arc<PolicyComponent>>,
}

impl Components {
    fn load(policy: &str, settings: Option<&str>) -> anyhow::Result<Self> {
        let builtin = builtin_policies().into_iter().find(|(name, _)| *name == policy);
        let wasm = match builtin {
            Some((_, wasm)) => wasm.to_vec(),
            None => std::fs::read(policy).with_context(|| format!("cannot read {policy}"))?,
        };
        let engine = PolicyEngine::new(PolicyLimits {
            decide_budget_ms: BUDGET_MS,
            configure_budget_ms: BUDGET_MS,
            ..PolicyLimits::default()
        })?;
        let mut components = Self {
            name: policy.to_owned(),
            wasm,
            engine,
            settings: settings.map(str::to_owned),
            admitted: BTreeMap::new(),
        };
        // A component that is refused ends the command before the records are read.
        components.with_settings(settings.unwrap_or_default())?;
        Ok(components)
    }

    fn with_settings(&mut self, settings: &str) -> anyhow::Result<Arc<PolicyComponent>> {
        if let Some(component) = self.admitted.get(settings) {
            return Ok(component.clone());
        }
        ensure!(
            self.admitted.len() < MAX_SETTINGS,
            "the decisions have more than {MAX_SETTINGS} different settings; choose some with --settings"
        );
        let component = self
            .engine
            .admit(&self.wasm, settings)
            .with_context(|| format!("{} is refused with the settings {settings:?}", self.name))?;
        self.admitted.insert(settings.to_owned(), component.clone());
        Ok(component)
    }

    /// The component for a record, and whether it is what decided then.
    fn of(&mut self, record: &RecordedDecision) -> anyhow::Result<(Arc<PolicyComponent>, bool)> {
        let default = self.with_settings("")?;
        let is_same_component = record.digest.as_deref() == Some(default.digest());
        let settings = match (&self.settings, &record.settings) {
            (Some(settings), _) => settings.clone(),
            (None, Some(settings)) if is_same_component => settings.clone(),
            (None, _) => String::new(),
        };
        let is_own = is_same_component && record.settings.as_ref() == Some(&settings);
        Ok((self.with_settings(&settings)?, is_own))
    }
}

fn read(options: &PolicyTestOptions) -> anyhow::Result<Vec<RecordedDecision>> {
    let path = &options.decisions;
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut records = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        if line.trim().is_empty() {
            continue;
        }
        let record = RecordedDecision::from_line(&line)
            .map_err(|what| anyhow::anyhow!("{}, line {}: {what}", path.display(), number + 1))?;
        records.push(record);
    }
    if records.is_empty() {
        bail!("{} has no decision", path.display());
    }
    Ok(records)
}

fn compare(
    mut components: Components,
    mut records: Vec<RecordedDecision>,
    show: usize,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let place = |record: &RecordedDecision| (record.router.clone(), record.thread, record.model.clone());
    records.sort_by_cached_key(|record| (place(record), record.number));
    for thread in records.chunk_by(|a, b| place(a) == place(b)) {
        let mut running: Option<PolicyInstance> = None;
        for record in thread {
            if record.digest.is_none() {
                outcome.fallback += 1;
                continue;
            }
            let (component, is_own) = components.of(record)?;
            running.take_if(|instance| !Arc::ptr_eq(instance.component(), &component));
            let instance = match &mut running {
                Some(instance) => instance,
                None => running.insert(component.instantiate().context("the component cannot start")?),
            };
            let mut decision = Decision::default();
            let decided = instance.decide(&record.features, &record.columns, &mut decision);
            if decided.is_err() {
                running = None;
            }
            outcome.note(record, is_own, &decided, &decision, show);
        }
    }
    Ok(outcome)
}

impl Outcome {
    fn note(
        &mut self,
        record: &RecordedDecision,
        is_own: bool,
        decided: &Result<Opinion, PolicyFault>,
        decision: &Decision,
        show: usize,
    ) {
        let request = record.request.as_deref().unwrap_or("?");
        let then = &record.workers[record.chosen];
        let row = record.row_of(decision);
        let difference = match (decided, row) {
            (Ok(Opinion::Decided), Some(row)) if row == record.chosen => None,
            (Ok(Opinion::Decided), Some(row)) => {
                self.differing += 1;
                let (own, others) = (decision.costs.get(row), decision.costs.get(record.chosen));
                let costs = match (own, others) {
                    (Some(own), Some(other)) => {
                        self.regret += f64::from(other - own);
                        format!("; at costs of {own} and {other}")
                    }
                    _ => String::new(),
                };
                Some(format!("{then} then, {} now{costs}", record.workers[row]))
            }
            (Ok(Opinion::Decided), None) => {
                self.undecided += 1;
                Some(format!("{then} then, rejected now"))
            }
            (Ok(Opinion::Abstained), _) => {
                self.undecided += 1;
                Some(format!("{then} then, and the policy abstains now"))
            }
            (Err(fault), _) => {
                self.undecided += 1;
                Some(format!("{then} then, and the policy fails now: it {fault}"))
            }
        };
        self.same += usize::from(difference.is_none());
        self.own.0 += usize::from(is_own);
        self.own.1 += usize::from(is_own && difference.is_some());
        if let Some(difference) = difference
            && self.shown.len() < show
        {
            self.shown.push(format!("request {request}: {difference}"));
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.shown {
            writeln!(f, "{line}")?;
        }
        let Self {
            same,
            differing,
            undecided,
            fallback,
            own: (own, own_differing),
            ..
        } = self;
        let compared = same + differing + undecided;
        write!(
            f,
            "{compared} decisions compared: {same} the same, {differing} at another worker"
        )?;
        if *undecided > 0 {
            write!(f, ", {undecided} without a decision")?;
        }
        if *differing > 0 {
            let regret = self.regret / *differing as f64;
            write!(
                f,
                "; where they differ, the recorded worker costs {regret:.3} more in the mean"
            )?;
        }
        write!(
            f,
            "\nthis component had made {own} of them with these settings; {own_differing} of these differ"
        )?;
        if *fallback > 0 {
            write!(f, "\n{fallback} decisions of the fallback are left out")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use signalbox_policy_host::trial_requests;

    use super::*;

    /// What a router records of trial decisions by a built-in policy.
    fn recorded(policy: &str, settings: &str) -> Vec<RecordedDecision> {
        let mut components = Components::load(policy, Some(settings)).unwrap();
        let component = components.with_settings(settings).unwrap();
        let mut instance = component.instantiate().unwrap();
        let sizes = [1, 3, 8, 64];
        let trials = trial_requests(&sizes, 40);
        let record = |(number, (features, columns)): (usize, (_, signalbox_policy_host::Candidates))| {
            let features: signalbox_policy_host::RequestFeatures = features;
            let mut decision = Decision::default();
            instance.decide(&features, &columns, &mut decision).unwrap();
            let line = serde_json::json!({
                "signalbox_decision": 1, "router": "r-1", "thread": 0, "number": number, "sample": 1.0,
                "at_unix_ms": 1, "took_ns": 1, "request": format!("request-{number}"), "model": "m",
                "policy": policy, "digest": component.digest(), "settings": settings,
                "features": features, "blocks": "",
                "workers": (0..columns.len()).map(|row| format!("w{row}")).collect::<Vec<_>>(),
                "columns": columns, "costs": [], "pick": null, "chosen": 0, "outcome": null,
            });
            let mut record = RecordedDecision::from_line(&line.to_string()).unwrap();
            record.costs.clone_from(&decision.costs);
            record.pick = decision.pick;
            record.chosen = record.recomputed_row().unwrap();
            record
        };
        trials.enumerate().map(record).collect()
    }

    fn tested(policy: &str, settings: Option<&str>, records: &[RecordedDecision]) -> Outcome {
        let components = Components::load(policy, settings).unwrap();
        compare(components, records.to_vec(), 5).unwrap()
    }

    #[test]
    fn the_same_component_and_settings_make_the_same_decisions_ties_included() {
        for (policy, settings) in [
            ("kv-aware", ""),
            ("kv-linear", r#"{"overlap_credit":0.5}"#),
            ("round-robin", ""),
        ] {
            let mut records = recorded(policy, settings);
            // A file has them in the order in which the requests ended.
            records.reverse();
            for record in &records {
                assert_eq!(record.recomputed_row(), Some(record.chosen));
            }
            let outcome = tested(policy, None, &records);
            assert_eq!(
                (outcome.same, outcome.own),
                (records.len(), (records.len(), 0)),
                "{policy}: {outcome}"
            );
        }
    }

    #[test]
    fn another_policy_is_shown_where_it_differs_and_a_missing_column_by_its_name() {
        let records = recorded("round-robin", "");
        let outcome = tested("kv-linear", None, &records);
        assert!(outcome.differing > records.len() / 4, "{outcome}");
        assert_eq!((outcome.own, outcome.shown.len()), ((0, 0), 5));
        assert!(outcome.shown[0].contains(" now; at costs of "), "{outcome}");
        let mut lacking = records;
        for record in &mut lacking {
            record.columns.requests_all.clear();
            record.columns.ttft_ms.clear();
            record.columns.kv_blocks_active.clear();
        }
        let outcome = tested("kv-aware", None, &lacking);
        assert_eq!(outcome.undecided, lacking.len(), "{outcome}");
        assert!(outcome.shown[0].contains("has 0 rows"), "{outcome}");
    }
}

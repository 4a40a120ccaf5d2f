//! What a search found, as a table.

use std::fmt::Write as _;

use super::{Goal, Outcome, Trial, Tuned};

/// The policy's own settings, the front and the settings that were chosen.
#[must_use]
pub fn tune_table(tuned: &Tuned, goal: Goal) -> String {
    let mut text = String::new();
    let line = |text: &mut String, name: &str, outcome: &Outcome, settings: &str| {
        let _ = writeln!(
            text,
            "{name:<12}{:>12.1}{:>12.1}{:>12.1}{:>9.3}  {settings}",
            outcome.mean_ttft_ms, outcome.p99_ttft_ms, outcome.mean_e2e_ms, outcome.largest_worker_share
        );
    };
    let header = |text: &mut String, what: &str| {
        let _ = writeln!(
            text,
            "{what:<12}{:>12}{:>12}{:>12}{:>9}  settings",
            "mean TTFT", "p99 TTFT", "end to end", "largest"
        );
    };
    header(&mut text, "searched");
    for &number in &tuned.front {
        let trial = &tuned.trials[number];
        line(&mut text, &name(tuned, number), &trial.searched, &settings(trial));
    }
    let _ = writeln!(text);
    header(&mut text, "held back");
    for (number, trial) in tuned.trials.iter().enumerate() {
        if let Some(outcome) = &trial.held_back {
            line(&mut text, &name(tuned, number), outcome, &settings(trial));
        }
    }
    let kept = tuned.trials.iter().filter(|trial| trial.keeps_guards).count();
    let _ = writeln!(
        text,
        "\n{} trials, {kept} of which keep the guards; chosen for {}: {}",
        tuned.trials.len() - 1,
        goal.name(),
        settings(&tuned.trials[tuned.chosen])
    );
    text
}

fn name(tuned: &Tuned, number: usize) -> String {
    let number_or_own = match number {
        0 => "own".to_owned(),
        number => number.to_string(),
    };
    if number == tuned.chosen {
        format!("{number_or_own} *")
    } else {
        number_or_own
    }
}

fn settings(trial: &Trial) -> String {
    serde_json::Value::Object(trial.settings.clone()).to_string()
}

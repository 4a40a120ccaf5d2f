//! `runtime doctor`: finds out whether routers can know the KV cache of engines or workers, and names what prevents it.
//!
//! With `--upstream` each engine is examined as a worker beside it would: what it states, whether the router's tokens are
//! its own, and whether its KV events are those of what it then takes from its cache. With `--discovery` the workers of a
//! cluster are read: what each has judged from its traffic. The worst verdict is the exit code of the process.

mod cache_check;
mod engine;
mod facts_check;
mod fleet;
mod text_check;
mod verdict;

use std::process::ExitCode;

use anyhow::ensure;
use signalbox_tokenize::ModelText;
use signalbox_worker::openai::{CheckedTokenizer, FoundEngine, Upstream};

use self::verdict::{Finding, Report, Verdict, overall};
use crate::{
    cli::DoctorOptions,
    console,
    settings::{DoctorSettings, EngineExam},
    tokenizer_files::TokenizerPlaces,
};

/// Examines, prints the page, and returns the exit code. What cannot be examined counts as blind.
pub(crate) async fn run(options: DoctorOptions) -> ExitCode {
    let examined = match options.try_into() {
        Ok(settings) => examine(settings).await,
        Err(error) => Err(error),
    };
    let verdict = examined.unwrap_or_else(|error| {
        console::error(&error);
        Verdict::Blind
    });
    ExitCode::from(verdict.exit_code())
}

async fn examine(settings: DoctorSettings) -> anyhow::Result<Verdict> {
    let reports = match settings {
        DoctorSettings::Engines(exam) => examine_engines(&exam).await?,
        DoctorSettings::Fleet(planes) => {
            let reports = fleet::examine(&planes).await?;
            ensure!(
                !reports.is_empty(),
                "no worker was found; check --discovery and --namespace"
            );
            for report in &reports {
                console::line(format_args!("{report}\n"));
            }
            reports
        }
    };
    let verdict = overall(&reports);
    if reports.len() > 1 {
        console::line(format_args!("overall     {verdict}"));
    }
    Ok(verdict)
}

async fn examine_engines(exam: &EngineExam) -> anyhow::Result<Vec<Report>> {
    let mut reports = Vec::new();
    for url in &exam.upstreams {
        let upstream = Upstream::new(url.clone(), exam.key.as_deref(), exam.ca.as_deref())?;
        let report = engine::examine(&upstream, &exam.stated, async |found| {
            load_text(exam, &upstream, found).await
        })
        .await;
        console::line(format_args!("{report}\n"));
        reports.push(report);
    }
    Ok(reports)
}

/// Loads the tokenizer that the engine's worker would serve to routers.
async fn load_text(
    exam: &EngineExam,
    upstream: &Upstream,
    found: &FoundEngine,
) -> Result<ModelText, Finding> {
    const MEND: &str = "give --tokenizer FOLDER with the model's tokenizer.json and tokenizer_config.json";
    let places = TokenizerPlaces {
        folder: exam.tokenizer.as_deref(),
        model_root: found.facts.model_root.as_deref(),
        model: &found.served_model,
        hub_cache: exam.hub_cache.as_deref(),
        hub: exam.hub.as_ref(),
    };
    let tokenizer = places
        .find()
        .await
        .map_err(|error| Finding::blind(format!("{error:#}"), MEND))?;
    if let Some(reason) = tokenizer.not_found {
        return Err(Finding::blind(reason, MEND));
    }
    let artifacts = tokenizer
        .artifacts
        .with_preparation(found.facts.flavour.preparation());
    match CheckedTokenizer::check(upstream, &found.served_model, artifacts).await {
        Ok(checked) => Ok(checked.text),
        Err(error) => Err(Finding::blind(
            format!("the tokenizer in {} cannot be used: {error}", tokenizer.source),
            MEND,
        )),
    }
}

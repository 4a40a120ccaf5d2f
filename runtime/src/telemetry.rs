//! Logs and metrics of a process.

use std::{io, sync::OnceLock};

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt, reload, util::SubscriberInitExt};

/// Replaces the filter of the logs; there once they are written.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Bucket bounds of the router crate's histogram, in seconds. A decision takes microseconds.
const DECISION_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 3e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 5e-2,
];

/// The client of NATS, which logs each failed attempt as an error. The connection's own state is logged when it changes.
const NATS_CLIENT: &str = "async_nats";

/// Bucket bounds of a worker's histogram, in seconds. A step takes from a millisecond to the seconds of a long prompt.
const STEP_BUCKETS: &[f64] = &[
    1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// Writes logs to standard error from now on. `filter` is a level (`info`) or `tracing` directives
/// (`warn,signalbox_router=debug`). An invalid filter counts as `info`, and a warning is logged. What the client of NATS
/// logs is left out, unless the filter names it.
pub fn start_logging(filter: &str, json: bool) {
    let (parsed, parse_error) = match complete_filter(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let logs = fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_target(false);
    // A second call in one process (tests) changes nothing.
    if json {
        let logs = logs.json().with_filter_reloading();
        let handle = logs.reload_handle();
        if logs.finish().try_init().is_ok() {
            _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter)));
        }
    } else {
        let logs = logs
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_filter_reloading();
        let handle = logs.reload_handle();
        if logs.finish().try_init().is_ok() {
            _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter)));
        }
    }
    if let Some(error) = parse_error {
        tracing::warn!(filter, %error, "the log filter is invalid; logging at info");
    }
}

/// Logs what this filter lets pass from now on.
///
/// # Errors
/// The filter is invalid, or logs are not written yet.
pub(crate) fn set_filter(filter: &str) -> anyhow::Result<()> {
    let filter = complete_filter(filter).context("the log filter is invalid")?;
    let set_filter = SET_FILTER.get().context("logs are not written yet")?;
    Ok(set_filter(filter)?)
}

/// The filter with what is left out by default.
fn complete_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    match filter.contains(NATS_CLIENT) {
        true => EnvFilter::try_new(filter),
        false => EnvFilter::try_new(format!("{filter},{NATS_CLIENT}=off")),
    }
}

/// Records metrics from now on; the handle renders them for `/metrics`.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    let histograms = signalbox_http::HISTOGRAM_BUCKETS.into_iter().chain([
        ("signalbox_decision_seconds", DECISION_BUCKETS),
        ("signalbox_worker_step_seconds", STEP_BUCKETS),
    ]);
    for (name, buckets) in histograms {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), buckets)?;
    }
    builder
        .install_recorder()
        .context("the metrics recorder cannot be installed")
}

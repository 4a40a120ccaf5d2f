//! Logs and metrics of a process.

use std::io;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt};

/// Bucket bounds of the router crate's histogram, in seconds. A decision takes microseconds.
const DECISION_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 3e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 5e-2,
];

/// The client of NATS, which logs each failed attempt as an error. The connection's own state is logged when it changes.
const NATS_CLIENT: &str = "async_nats";

/// Writes logs to standard error from now on. `filter` is a level (`info`) or `tracing` directives
/// (`warn,signalbox_router=debug`). An invalid filter counts as `info`, and a warning is logged. What the client of NATS
/// logs is left out, unless the filter names it.
pub fn start_logging(filter: &str, json: bool) {
    let complete = match filter.contains(NATS_CLIENT) {
        true => filter.to_owned(),
        false => format!("{filter},{NATS_CLIENT}=off"),
    };
    let (parsed, parse_error) = match EnvFilter::try_new(complete) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let logs = fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_target(false);
    // A second call in one process (tests) changes nothing.
    let _ = if json {
        logs.json().try_init()
    } else {
        logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .try_init()
    };
    if let Some(error) = parse_error {
        tracing::warn!(filter, %error, "the log filter is invalid; logging at info");
    }
}

/// Records metrics from now on; the handle renders them for `/metrics`.
pub(crate) fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    let histograms = signalbox_http::HISTOGRAM_BUCKETS
        .into_iter()
        .chain([("signalbox_decision_seconds", DECISION_BUCKETS)]);
    for (name, buckets) in histograms {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), buckets)?;
    }
    builder
        .install_recorder()
        .context("the metrics recorder cannot be installed")
}

//! What `runtime doctor` examines.

use std::path::PathBuf;

use anyhow::ensure;
use signalbox_worker::{
    hub::HubConfig,
    openai::{StatedFacts, UpstreamUrl},
};

use super::{
    PlaneSettings,
    from_options::{check_ca, hub, planes},
};
use crate::cli::DoctorOptions;

/// What is examined.
#[derive(Debug)]
pub(crate) enum DoctorSettings {
    /// Engines next door.
    Engines(EngineExam),
    /// The workers of a cluster.
    Fleet(PlaneSettings),
}

/// Engines next door, and what the operator states about all of them.
pub(crate) struct EngineExam {
    pub(crate) upstreams: Vec<UpstreamUrl>,
    /// Their API key.
    pub(crate) key: Option<String>,
    /// A file of certificate authorities (PEM) to trust beside the machine's.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) stated: StatedFacts,
    /// A folder with a Hugging Face tokenizer.
    pub(crate) tokenizer: Option<PathBuf>,
    /// The cache of the Hugging Face hub.
    pub(crate) hub_cache: Option<PathBuf>,
    /// Where a tokenizer that is not on this machine is fetched; `None` for nowhere.
    pub(crate) hub: Option<HubConfig>,
}

impl std::fmt::Debug for EngineExam {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineExam")
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

impl TryFrom<DoctorOptions> for DoctorSettings {
    type Error = anyhow::Error;

    fn try_from(options: DoctorOptions) -> anyhow::Result<Self> {
        if !options.discovery.is_empty() {
            let planes = planes(&options.discovery, options.planes)?;
            return Ok(Self::Fleet(planes));
        }
        ensure!(
            !options.upstream.upstream.is_empty(),
            "nothing to examine: give --upstream http://host:port of an engine, or --discovery static://host:port or \
             etcd://host:port of a cluster's workers"
        );
        let stated = options.stated();
        let upstream = options.upstream;
        check_ca(upstream.upstream_ca.as_ref(), &upstream.upstream)?;
        ensure!(
            upstream.upstream.len() == 1 || upstream.kv_events.is_none() && upstream.kv_replay.is_none(),
            "--kv-events and --kv-replay are addresses of one engine, and --upstream names {}",
            upstream.upstream.len()
        );
        Ok(Self::Engines(EngineExam {
            hub_cache: upstream.hub_cache(),
            hub: hub(&upstream)?,
            upstreams: upstream.upstream,
            key: upstream.upstream_key,
            ca: upstream.upstream_ca,
            stated,
            tokenizer: options.tokenizer,
        }))
    }
}

//! Where an engine's KV events are, and what is known about its KV cache.

use zeromq::Endpoint;

/// One stream of KV events, and what is needed to understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEventsConfig {
    /// `tcp://host:port` of the engine's PUB socket for the rank; see [`resolve_endpoint`].
    pub endpoint: String,
    /// `tcp://host:port` of the engine's ROUTER socket for replay; `None` for an engine that has none. Without it every
    /// lost batch and every lost connection costs all that is known about the KV cache.
    pub replay_endpoint: Option<String>,
    /// Receive messages whose topic begins with this; empty for all.
    pub topic: String,
    /// The data-parallel rank. Batches of another rank are dropped and counted. `None` accepts every rank.
    pub rank: Option<u32>,
    /// The model, under the name in the worker's card: part of every block hash.
    pub model: String,
    /// Tokens per KV block, as in the worker's card. Blocks of another size are dropped and counted.
    pub block_size: u32,
    /// KV blocks of the engine's device, which bound what is remembered; 0 if unknown.
    pub kv_blocks: u32,
}

/// An endpoint that cannot be connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Not a TCP endpoint with a port.
    #[error("{0:?} is no endpoint for KV events: use tcp://HOST:PORT")]
    NotTcp(String),
    /// The port of the rank lies beyond the last port.
    #[error("{endpoint:?} with {offset} added to its port lies beyond port 65535")]
    PortTooGreat {
        /// The endpoint that the engine reported.
        endpoint: String,
        /// What was added to its port.
        offset: u32,
    },
}

/// The endpoint to connect to, for one that an engine reports about itself.
///
/// Engines report what they bind, such as `tcp://*:5557`. A wildcard is replaced by `host`, where the engine's API is
/// reached. `port_offset` is added to the port: an engine that reports one endpoint for all data-parallel ranks uses the
/// port of the first rank plus the rank.
///
/// # Errors
/// The endpoint is not `tcp://HOST:PORT`, or the port is too great.
pub fn resolve_endpoint(reported: &str, host: &str, port_offset: u32) -> Result<String, InvalidEndpoint> {
    let not_tcp = || InvalidEndpoint::NotTcp(reported.to_owned());
    let (bound, port) = reported
        .strip_prefix("tcp://")
        .and_then(|address| address.rsplit_once(':'))
        .ok_or_else(not_tcp)?;
    let port: u16 = port.parse().map_err(|_| not_tcp())?;
    let port = u32::from(port)
        .checked_add(port_offset)
        .and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| InvalidEndpoint::PortTooGreat {
            endpoint: reported.to_owned(),
            offset: port_offset,
        })?;
    let host = match bound {
        "*" | "0.0.0.0" | "::" | "[::]" => host,
        bound => bound,
    };
    let endpoint = if host.contains(':') && !host.starts_with('[') {
        format!("tcp://[{host}]:{port}")
    } else {
        format!("tcp://{host}:{port}")
    };
    check_endpoint(&endpoint).map_err(|_| not_tcp())?;
    Ok(endpoint)
}

/// Checks that `endpoint` can be connected to.
pub(super) fn check_endpoint(endpoint: &str) -> Result<(), InvalidEndpoint> {
    match endpoint.parse() {
        Ok(Endpoint::Tcp(_, port)) if port > 0 => Ok(()),
        _ => Err(InvalidEndpoint::NotTcp(endpoint.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_becomes_the_host_of_the_engine_and_the_rank_moves_the_port() {
        let resolve = |reported, offset| resolve_endpoint(reported, "gpu-1", offset).unwrap();
        assert_eq!(resolve("tcp://*:5557", 0), "tcp://gpu-1:5557");
        assert_eq!(resolve("tcp://0.0.0.0:5557", 3), "tcp://gpu-1:5560");
        assert_eq!(resolve("tcp://[::]:5557", 0), "tcp://gpu-1:5557");
        assert_eq!(resolve("tcp://10.0.0.7:5557", 1), "tcp://10.0.0.7:5558");
        assert_eq!(
            resolve_endpoint("tcp://*:5557", "fe80::1", 0).unwrap(),
            "tcp://[fe80::1]:5557"
        );
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused_by_name() {
        for reported in [
            "ipc:///tmp/kv",
            "inproc://kv",
            "tcp://*",
            "tcp://*:x",
            "tcp://*:70000",
            "tcp://*:0",
            "",
        ] {
            let error = resolve_endpoint(reported, "h", 0).unwrap_err();
            assert_eq!(error, InvalidEndpoint::NotTcp(reported.to_owned()), "{reported}");
        }
        let error = resolve_endpoint("tcp://*:65535", "h", 1).unwrap_err();
        assert!(error.to_string().contains("65535"), "{error}");
    }
}

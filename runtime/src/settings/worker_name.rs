//! The name of a worker whose operator gives none: unique in a fleet, and the same after a restart where that is possible.

use anyhow::Context;
use signalbox_protocol::WorkerId;

use crate::cli::{RequestTransport, WorkerOptions};

/// Most characters of the machine's name: with a port or process number and a simulated worker's number, the name stays within
/// the 64 that a worker's may have.
const MAX_HOST_CHARS: usize = 40;

/// The given name, or one made of the machine and the port at which the worker serves routers. A worker without a port of
/// its own has its process number instead, which is another one after a restart.
pub(super) fn worker_name(options: &WorkerOptions) -> anyhow::Result<WorkerId> {
    if let Some(id) = &options.id {
        return Ok(id.clone());
    }
    let host = options.advertise_host.clone().unwrap_or_else(machine_name);
    let port = match options.request_plane {
        RequestTransport::Tcp => options.listen.port(),
        RequestTransport::Nats => 0,
    };
    named(&host, port, std::process::id())
        .parse()
        .context("no name for the worker: give --id")
}

fn named(host: &str, port: u16, process: u32) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let host: String = host
        .chars()
        .take(MAX_HOST_CHARS)
        .map(|c| if is_allowed(c) { c } else { '-' })
        .collect();
    let host = if host.is_empty() { "worker" } else { &host };
    match port {
        0 => format!("{host}-p{process}"),
        port => format!("{host}-{port}"),
    }
}

/// The name of this machine or container; empty if the system does not state it.
fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_made_of_the_machine_and_the_port() {
        assert_eq!(named("gpu-7", 7000, 1), "gpu-7-7000");
        assert_eq!(named("gpu.rack 3", 7001, 1), "gpu-rack-3-7001");
        assert_eq!(named("gpu-7", 0, 31), "gpu-7-p31");
        assert_eq!(named("", 7000, 1), "worker-7000");
    }

    #[test]
    fn every_name_is_one_that_a_worker_may_have() {
        for host in ["ü".repeat(100), "x".repeat(100), machine_name()] {
            let name = named(&host, 0, u32::MAX);
            assert!(format!("{name}-4095").parse::<WorkerId>().is_ok(), "{name}");
        }
    }
}

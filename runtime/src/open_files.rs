//! The limit on open files: raised at the start, because each connection is a file to the system.
//!
//! Many systems give a process 1,024 files unless it asks for more, and allow hundreds of thousands. A thousand slow
//! clients would then shut out all others.

use rustix::process::{Resource, getrlimit, setrlimit};
use signalbox_http::HttpConfig;

/// Connections of clients that an HTTP thread holds if there are files enough.
const CONNECTIONS_OF_A_THREAD: usize = 25_000;

/// Fewer connections than this are worth a warning although nobody asked for more: a busy service has more clients.
const FEW_CONNECTIONS: usize = 2_000;

/// Raises the limit to the highest one that the system allows this process. Children inherit it.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => tracing::debug!(?before, now = ?limit.current, "raised the limit on open files"),
        Err(error) => tracing::warn!(%error, limit = ?before, "the limit on open files stays low"),
    }
}

/// The files that this process may open; `usize::MAX` for no limit.
fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Sets how many connections of clients `http` takes. `in_all` and `of_an_address` are what the operator asks for, where 0
/// stands for no limit of an address.
pub(crate) fn limit_connections(http: &mut HttpConfig, in_all: Option<usize>, of_an_address: Option<usize>) {
    let files = limit();
    let wanted = in_all.unwrap_or_else(|| CONNECTIONS_OF_A_THREAD.saturating_mul(http.threads.max(1)));
    http.max_connections = connections(files, wanted);
    let connections = http.max_connections;
    let lowered = "the limit on open files lowers the number of clients' connections; raise the hard limit (ulimit -Hn)";
    if connections < in_all.unwrap_or(FEW_CONNECTIONS) {
        tracing::warn!(files, connections, "{lowered}");
    } else if connections < wanted {
        tracing::info!(files, connections, "{lowered}");
    }
    http.max_connections_per_address = per_address(http.max_connections, of_an_address);
}

/// Three quarters of the files may be connections of clients. Links to workers and other servers need the rest.
fn connections(files: usize, wanted: usize) -> usize {
    wanted.min(files / 4 * 3).max(1)
}

/// By default half of all connections, so that no address shuts out the others. A proxy that is the only client has enough
/// with that.
fn per_address(in_all: usize, wanted: Option<usize>) -> Option<usize> {
    match wanted {
        Some(0) => None,
        Some(connections) => Some(connections),
        None => Some(in_all.div_ceil(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_left_for_links_and_connections_for_other_addresses() {
        assert_eq!(connections(1_024, 50_000), 768);
        assert_eq!(connections(1 << 20, 50_000), 50_000);
        assert_eq!(connections(usize::MAX, 7), 7);
        assert_eq!(connections(0, 7), 1);
        assert_eq!(per_address(768, None), Some(384));
        assert_eq!(per_address(1, None), Some(1));
        assert_eq!(per_address(768, Some(10)), Some(10));
        assert_eq!(per_address(768, Some(0)), None);
    }

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}

//! The memory available for a model.

use std::fs;

/// Bytes that can be allocated without swapping: the kernel's estimate, or what the control group of the process has
/// left if that is less. `None` if neither is known.
pub(super) fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_available(&text));
    let group = group_headroom(
        fs::read_to_string("/sys/fs/cgroup/memory.max").ok().as_deref(),
        fs::read_to_string("/sys/fs/cgroup/memory.current")
            .ok()
            .as_deref(),
        fs::read_to_string("/sys/fs/cgroup/memory.stat").ok().as_deref(),
    );
    meminfo.into_iter().chain(group).min()
}

/// The bytes of a line such as `MemAvailable:   12345 kB`.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The limit minus the used bytes. Cached files do not count as used, because the kernel drops them first. `None` if
/// there is no limit (`max`).
fn group_headroom(max: Option<&str>, current: Option<&str>, stat: Option<&str>) -> Option<u64> {
    let max: u64 = max?.trim().parse().ok()?;
    let current: u64 = current?.trim().parse().ok()?;
    let cached = stat
        .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix("inactive_file ")))
        .and_then(|bytes| bytes.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_estimate_is_read_in_bytes() {
        let text = "MemTotal:       24000000 kB\nMemFree:         1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(mem_available(text), Some(2 << 20));
        assert_eq!(mem_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_control_group_has_its_limit_minus_the_memory_that_cannot_be_dropped() {
        let stat = "anon 500\ninactive_file 300\nactive_file 100\n";
        assert_eq!(
            group_headroom(Some("1000\n"), Some("900\n"), Some(stat)),
            Some(400)
        );
        assert_eq!(group_headroom(Some("max\n"), Some("900\n"), Some(stat)), None);
        assert_eq!(group_headroom(None, None, None), None);
    }
}

//! `/metrics` without the series of workers that have left.
//!
//! The recorder keeps every series that it has ever had. A worker's series say nothing once it is gone, and a fleet whose
//! workers come and go would fill the page with them.

use std::collections::HashSet;

/// Where a line names the worker that it is about, by its id or its address.
const LABEL: &str = "worker=\"";

/// The series that shows whether this process has links to an address: also to a worker known by address that has not
/// answered yet.
const LINKS: &str = "signalbox_link_state{";

/// The lines that are about no worker, or about one of `present`, or about an address that this process has links to.
pub(super) fn present_series(rendered: &str, present: &HashSet<String>) -> String {
    let has_links = |line: &&str| line.starts_with(LINKS) && !line.trim_end().ends_with(" 0");
    let linked: HashSet<&str> = rendered.lines().filter(has_links).filter_map(worker_of).collect();
    let is_present = |worker: &str| present.contains(worker) || linked.contains(worker);
    let mut kept = String::with_capacity(rendered.len());
    for line in rendered.split_inclusive('\n') {
        if worker_of(line).is_none_or(is_present) {
            kept.push_str(line);
        }
    }
    kept
}

/// The worker that a line is about.
fn worker_of(line: &str) -> Option<&str> {
    if line.starts_with('#') {
        return None;
    }
    // A label begins after the brace or a comma: other labels may end in the same letters.
    let start = line.match_indices(LABEL).map(|(at, _)| at).find(|at| {
        let before = line[..*at].bytes().next_back();
        matches!(before, Some(b'{' | b','))
    })?;
    let value = &line[start + LABEL.len()..];
    // Ids and addresses need no escapes.
    value.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_departed_workers_are_left_out_and_all_others_stay() {
        let page = "# TYPE up gauge\nup{worker=\"a\",state=\"x\"} 1\nup{state=\"x\",worker=\"10.0.0.1:7000\"} 1\n\
                    up{worker=\"gone\"} 0\ncount{coworker=\"gone\"} 2\ntotal 3\n";
        let present = HashSet::from(["a".to_owned(), "10.0.0.1:7000".to_owned()]);
        let kept = present_series(page, &present);
        assert_eq!(kept, page.replace("up{worker=\"gone\"} 0\n", ""));
        let links = "signalbox_link_state{worker=\"c:1\",state=\"up\"} 0\nsignalbox_link_state{worker=\"c:1\",state=\"backoff\"} 2\n";
        assert_eq!(
            present_series(links, &present),
            links,
            "a worker known by address that does not answer yet"
        );
        let none = present_series(page, &HashSet::new());
        assert_eq!(none, "# TYPE up gauge\ncount{coworker=\"gone\"} 2\ntotal 3\n");
    }
}

//! Reads samples out of metrics in Prometheus' text format.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>. Only what engines' metrics
//! need is read: name, labels and value of single samples. A line that is wrong is skipped.

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample<'a> {
    labels: &'a str,
    /// The value.
    pub(crate) value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label, with escapes as they are written.
    pub(crate) fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once("=\"")?;
            let end = end_of_value(after)?;
            if key.trim_start_matches([',', ' ']) == name {
                return Some(&after[..end]);
            }
            rest = &after[end + 1..];
        }
    }
}

/// The samples of one metric, in their order.
pub(crate) fn samples<'a>(text: &'a str, metric: &str) -> impl Iterator<Item = Sample<'a>> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => {
                let end = end_of_labels(rest)?;
                (&rest[..end], &rest[end + 1..])
            }
            // Another metric may begin with the same letters.
            None if rest.starts_with([' ', '\t']) => ("", rest),
            None => return None,
        };
        // A time may follow the value.
        let value = value.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Sample { labels, value })
    })
}

/// The value of a metric's first sample.
pub(crate) fn value(text: &str, metric: &str) -> Option<f64> {
    samples(text, metric).next().map(|sample| sample.value)
}

/// The place of the brace that closes the labels.
fn end_of_labels(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let next = at + text[at..].find(['"', '}'])?;
        if text.as_bytes()[next] == b'}' {
            return Some(next);
        }
        at = next + 1 + end_of_value(&text[next + 1..])? + 1;
    }
}

/// The place of the quote that ends a label's value.
fn end_of_value(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_their_whole_name() {
        let text = "# HELP a b\na 1\na_total 2\na{x=\"1\",y=\"q\\\"}\"} 3.5 1700000000\na{} +Inf\na{x=\"\na\nb{z=\"1\"}\n";
        let found: Vec<_> = samples(text, "a").collect();
        assert_eq!(
            found.iter().map(|sample| sample.value).collect::<Vec<_>>(),
            [1.0, 3.5, f64::INFINITY]
        );
        assert_eq!(
            (found[1].label("x"), found[1].label("y")),
            (Some("1"), Some("q\\\"}"))
        );
        assert_eq!((found[1].label("z"), found[0].label("x")), (None, None));
        assert_eq!(value(text, "a_total"), Some(2.0));
        assert_eq!(value(text, "b"), None);
    }
}

//! Parses `/metrics`.

use anyhow::Context;

/// The samples of one scrape, with names and labels.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    /// As written: `a="x",b="y"`.
    labels: String,
    value: f64,
}

impl Metrics {
    /// Parses Prometheus' text format.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("not a sample: {line:?}")));
        Ok(Self {
            samples: samples.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The sum of all samples of `name` that have all of `labels`; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.contains(&format!("{label}=\"{value}\"")))
        };
        // The `sum` of no floats is -0, which is confusing in a message.
        self.samples
            .iter()
            .filter(has)
            .map(|sample| sample.value)
            .fold(0.0, |sum, value| sum + value)
    }

    /// Whether there is any sample of `name`.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    Ok(Sample {
        name: name.into(),
        labels: labels.trim_end_matches('}').into(),
        value: value.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\n\nb_bucket{le=\"+Inf\"} 7\nc 1.5\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a", &[("x", "1")]), 7.0);
        assert_eq!(metrics.sum("a", &[("x", "1"), ("y", "3")]), 4.0);
        assert_eq!(metrics.sum("c", &[]), 1.5);
        assert!(metrics.has("b_bucket") && !metrics.has("b"));
    }
}

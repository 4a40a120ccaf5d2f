//! What an examination found, and the verdict on it. Pure: the examinations are in the files beside this one.

use std::fmt;

/// The verdict on an engine or a worker, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Routers know the KV cache exactly.
    Exact,
    /// Routing by the KV cache works, and part of it is wrong or cannot be checked.
    Degraded,
    /// The KV cache is unknown to routers: they route by what they learn from their own decisions, and by load.
    Blind,
}

impl Verdict {
    /// The exit code of the process.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Exact => 0,
            Self::Degraded => 1,
            Self::Blind => 2,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Degraded => "degraded",
            Self::Blind => "blind",
        })
    }
}

/// One thing that was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The best verdict that this finding allows.
    pub(crate) allows: Verdict,
    /// What was found: a lower-case fragment.
    pub(crate) what: String,
    /// What would be better, if something would.
    pub(crate) mend: String,
}

impl Finding {
    /// Something is as it should be.
    pub(crate) fn good(what: impl Into<String>) -> Self {
        Self {
            allows: Verdict::Exact,
            what: what.into(),
            mend: String::new(),
        }
    }

    /// Part of the knowledge is wrong or missing.
    pub(crate) fn degraded(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            allows: Verdict::Degraded,
            what: what.into(),
            mend: mend.into(),
        }
    }

    /// There is no knowledge.
    pub(crate) fn blind(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            allows: Verdict::Blind,
            what: what.into(),
            mend: mend.into(),
        }
    }
}

/// All findings about one engine or worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// The address or name.
    pub(crate) subject: String,
    /// What it is.
    pub(crate) description: String,
    /// What was found, in the order of the examination.
    pub(crate) findings: Vec<Finding>,
}

impl Report {
    /// The worst that a finding leads to.
    pub(crate) fn verdict(&self) -> Verdict {
        let allowed = self.findings.iter().map(|finding| finding.allows);
        allowed.max().unwrap_or(Verdict::Exact)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", self.subject, self.description)?;
        for finding in &self.findings {
            let mark = match finding.allows {
                Verdict::Exact => "ok",
                Verdict::Degraded => "degraded",
                Verdict::Blind => "blind",
            };
            writeln!(f, "  {mark:<9} {}", finding.what)?;
            if !finding.mend.is_empty() {
                writeln!(f, "  {:<9} mend: {}", "", finding.mend)?;
            }
        }
        write!(f, "verdict     {}", self.verdict())
    }
}

/// The verdict on all that were examined: the worst one.
pub(crate) fn overall(reports: &[Report]) -> Verdict {
    let verdicts = reports.iter().map(Report::verdict);
    verdicts.max().unwrap_or(Verdict::Exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report {
            subject: "http://gpu-1:8000".into(),
            description: "vLLM 0.32.0".into(),
            findings,
        }
    }

    #[test]
    fn the_worst_finding_is_the_verdict_and_the_exit_code() {
        let good = || Finding::good("prefix caching is on");
        let degraded = || Finding::degraded("there is no replay", "set replay_endpoint");
        let blind = || Finding::blind("there are no KV events", "turn them on");
        for (findings, verdict, code) in [
            (vec![good()], Verdict::Exact, 0),
            (vec![good(), degraded(), good()], Verdict::Degraded, 1),
            (vec![degraded(), blind(), good()], Verdict::Blind, 2),
        ] {
            let report = report(findings);
            assert_eq!((report.verdict(), report.verdict().exit_code()), (verdict, code));
        }
        let reports = [report(vec![good()]), report(vec![degraded()])];
        assert_eq!(overall(&reports), Verdict::Degraded);
    }

    #[test]
    fn a_report_names_each_cause_with_its_mend() {
        let report = report(vec![
            Finding::good("prefix caching is on"),
            Finding::blind("there are no KV events", "turn them on"),
        ]);
        let lines = [
            "http://gpu-1:8000  vLLM 0.32.0",
            "  ok        prefix caching is on",
            "  blind     there are no KV events",
            "            mend: turn them on",
            "verdict     blind",
        ];
        assert_eq!(report.to_string(), lines.join("\n"));
    }
}

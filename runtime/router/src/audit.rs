//! The audit log: every change of policies, who made it, and what happened to a policy by itself.
//!
//! The latest records are kept in memory, for the admin API. With a file, each record is also appended there as a line of
//! JSON, by a thread of its own: nothing waits for the disk. The file is opened for each record, so that it can be moved
//! away (rotated) at any time.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use metrics::{counter, describe_counter};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};

/// Records kept in memory: weeks of changes by hand.
const MAX_RECORDS: usize = 512;
/// Most records that wait for the file: more than all models of a router changed at once.
const MAX_WAITING: usize = 4_096;

/// The audit log of a router. Clone = handle.
#[derive(Debug, Clone, Default)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    records: Mutex<VecDeque<AuditRecord>>,
    /// To the thread that writes the file.
    file: Option<mpsc::SyncSender<String>>,
    /// The router, as it names itself to the others.
    router: String,
}

/// A change of policies, or what happened to one by itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AuditRecord {
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// `upload`, `delete`, `activate`, `rollback`, `quarantine` and so on.
    pub action: String,
    /// Who: the name that the caller gave and its address. Empty if that is not known, or for what happens by itself.
    pub by: String,
    /// Whether it was done at this router; otherwise this router received it.
    pub here: bool,
    /// The model, for changes of a model's policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `name@version`.
    pub policy: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// The settings.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    /// The revision of the change in the policy store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Why, for what happens by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AuditLog {
    /// The log of the router of this name, in memory.
    #[must_use]
    pub fn of_router(router: String) -> Self {
        Self(Arc::new(Inner {
            router,
            ..Inner::default()
        }))
    }

    /// A log that also appends to a file, which is created if it is missing.
    ///
    /// # Errors
    /// The file cannot be written, or its thread does not start.
    pub fn with_file(router: String, path: PathBuf) -> io::Result<Self> {
        describe_counter!(
            "signalbox_audit_records_lost_total",
            "Records of the audit log that could not be written to its file"
        );
        append(&path, "")?;
        let (sender, lines) = mpsc::sync_channel::<String>(MAX_WAITING);
        thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || {
                for line in lines {
                    if let Err(error) = append(&path, &line) {
                        lost();
                        tracing::error!(path = %path.display(), %error, "a record of the audit log is not in its file");
                    }
                }
            })?;
        Ok(Self(Arc::new(Inner {
            records: Mutex::default(),
            file: Some(sender),
            router,
        })))
    }

    pub(crate) fn router(&self) -> &str {
        &self.0.router
    }

    /// Adds a record.
    pub(crate) fn record(&self, record: AuditRecord) {
        if let Some(file) = &self.0.file {
            let line = serde_json::to_string(&record).unwrap_or_default();
            if file.try_send(line + "\n").is_err() {
                lost();
                tracing::error!("the audit log's file is too slow; a record is not in it");
            }
        }
        let mut records = self.0.records.lock();
        if records.len() == MAX_RECORDS {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// The latest records, the latest first.
    #[must_use]
    pub fn latest(&self) -> Vec<AuditRecord> {
        self.0.records.lock().iter().rev().cloned().collect()
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    file.write_all(line.as_bytes())
}

fn lost() {
    counter!("signalbox_audit_records_lost_total").increment(1);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;

    fn record(policy: usize) -> AuditRecord {
        AuditRecord {
            policy: format!("mine@{policy}"),
            action: "upload".into(),
            here: true,
            ..AuditRecord::default()
        }
    }

    #[test]
    fn the_latest_records_are_kept() {
        let log = AuditLog::default();
        for policy in 0..MAX_RECORDS + 5 {
            log.record(record(policy));
        }
        let latest = log.latest();
        assert_eq!(latest.len(), MAX_RECORDS);
        assert_eq!(latest[0], record(MAX_RECORDS + 4));
        assert_eq!(latest[MAX_RECORDS - 1], record(5));
    }

    #[test]
    fn a_file_gets_each_record_as_a_line_also_after_it_was_moved_away() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("audit.jsonl");
        let log = AuditLog::with_file("r".into(), path.clone()).unwrap();
        let lines = |path: &Path, count: usize| loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            if lines.len() >= count {
                return lines;
            }
            thread::sleep(Duration::from_millis(1));
        };
        log.record(record(1));
        log.record(record(2));
        assert_eq!(lines(&path, 2)[1]["policy"], "mine@2");
        let moved = folder.path().join("audit.1");
        std::fs::rename(&path, &moved).unwrap();
        log.record(record(3));
        let new = lines(&path, 1);
        assert_eq!((new.len(), &new[0]["policy"]), (1, &"mine@3".into()));
        assert_eq!(lines(&moved, 2).len(), 2);
        assert!(
            AuditLog::with_file("r".into(), folder.path().to_owned()).is_err(),
            "a folder"
        );
    }
}

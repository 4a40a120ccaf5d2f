//! What a policy reads, by name: resolved once, when the policy is admitted.
//!
//! `wit/types.wit` has the names and their meanings. A decision gathers the values into flat lists.

use std::sync::Arc;

use crate::{
    bindings::types,
    candidates::{
        Candidates, Column, ColumnGroups, LabelColumn, Space, candidate_traits, column_named, column_names,
    },
    features::RequestFeatures,
};

/// Most names of one policy: more than a policy needs, and a bound on the cost of a decision.
const MAX_NAMES: usize = 32;
/// Longest name, in bytes: a label or a header has a name of its own within it.
const MAX_NAME_BYTES: usize = 128;

/// What a policy reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    counts: Vec<Source<Column>>,
    numbers: Vec<Source<NumberSource>>,
    keys: Vec<Source<KeySource>>,
    request_counts: Vec<Source<RequestCount>>,
    request_numbers: Vec<Source<RequestNumber>>,
    request_keys: Vec<Source<RequestKey>>,
    pub(crate) groups: ColumnGroups,
    pub(crate) labels: Vec<Arc<str>>,
    pub(crate) number_labels: Vec<Arc<str>>,
}

/// `None`: a name that the policy can do without, and this host does not know. It is sent as zeroes.
type Source<T> = Option<T>;

#[derive(Debug, Clone)]
enum NumberSource {
    Column(Column),
    KvUse,
    OverlapShare,
    Approximate,
    Label(Arc<str>),
}

#[derive(Debug, Clone)]
enum KeySource {
    Column(Column),
    Label(Arc<str>),
}

#[derive(Debug, Clone, Copy)]
enum RequestCount {
    ExpectedOutputTokens,
    Choices,
    OtherRouters,
}

#[derive(Debug, Clone, Copy)]
enum RequestNumber {
    DeadlineMs,
}

#[derive(Debug, Clone)]
enum RequestKey {
    Session,
    User,
    CacheKey,
    SafetyIdentifier,
    Tenant,
    Lora,
    CacheSalt,
    Prefix,
    Header(Arc<str>),
}

/// The values of one decision in the form of the WIT. The buffers are kept from one decision to the next.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    counts: Vec<u32>,
    numbers: Vec<f32>,
    keys: Vec<u64>,
    request_counts: Vec<u32>,
    request_numbers: Vec<f32>,
    request_keys: Vec<u64>,
}

impl Names {
    /// Resolves the names of a description. An error is a sentence about the first one that is wrong.
    pub(crate) fn resolve(info: &types::Info) -> Result<Self, String> {
        let lists = [
            &info.counts,
            &info.numbers,
            &info.keys,
            &info.request_counts,
            &info.request_numbers,
            &info.request_keys,
        ];
        let total = lists.iter().map(|list| list.len()).sum::<usize>();
        if total > MAX_NAMES || info.optional.len() > MAX_NAMES {
            return Err(format!(
                "it names {total} columns and numbers; at most {MAX_NAMES} are possible"
            ));
        }
        let mut names = Self::default();
        let (mut groups, mut labels, mut number_labels) = (ColumnGroups::default(), Vec::new(), Vec::new());
        let mut column = |space, name: &str| {
            let (group, column) = column_named(space, name)?;
            groups.add(group);
            Some(column)
        };
        names.counts = sources(info, "counts", &info.counts, |name| column(Space::Counts, name))?;
        names.numbers = sources(info, "numbers", &info.numbers, |name| {
            Some(match name {
                "kv-use" => NumberSource::KvUse,
                "overlap-share" => NumberSource::OverlapShare,
                "approximate" => {
                    column(Space::Counts, "traits")?;
                    NumberSource::Approximate
                }
                _ => match label_of(name, "number:") {
                    Some(label) => NumberSource::Label(shared(label, &mut number_labels)),
                    None => NumberSource::Column(column(Space::Numbers, name)?),
                },
            })
        })?;
        names.keys = sources(info, "keys", &info.keys, |name| {
            Some(match label_of(name, "label:") {
                Some(label) => KeySource::Label(shared(label, &mut labels)),
                None => KeySource::Column(column(Space::Keys, name)?),
            })
        })?;
        names.request_counts = sources(info, "request-counts", &info.request_counts, |name| {
            Some(match name {
                "expected-output-tokens" => RequestCount::ExpectedOutputTokens,
                "choices" => RequestCount::Choices,
                "other-routers" => RequestCount::OtherRouters,
                _ => return None,
            })
        })?;
        names.request_numbers = sources(info, "request-numbers", &info.request_numbers, |name| {
            (name == "deadline-ms").then_some(RequestNumber::DeadlineMs)
        })?;
        names.request_keys = sources(info, "request-keys", &info.request_keys, |name| {
            Some(match name {
                "session" => RequestKey::Session,
                "user" => RequestKey::User,
                "cache-key" => RequestKey::CacheKey,
                "safety-identifier" => RequestKey::SafetyIdentifier,
                "tenant" => RequestKey::Tenant,
                "lora" => RequestKey::Lora,
                "cache-salt" => RequestKey::CacheSalt,
                "prefix" => RequestKey::Prefix,
                _ => RequestKey::Header(label_of(name, "header:")?.into()),
            })
        })?;
        names.groups = groups;
        names.labels = labels;
        names.number_labels = number_labels;
        Ok(names)
    }

    /// Fills `gathered` with what the policy reads.
    pub(crate) fn gather(&self, request: &RequestFeatures, candidates: &Candidates, gathered: &mut Gathered) {
        let rows = candidates.len();
        gathered.counts.clear();
        for source in &self.counts {
            match source {
                Some(Column::Counts(column)) => gathered.counts.extend_from_slice(column(candidates)),
                _ => gathered.counts.extend(std::iter::repeat_n(0, rows)),
            }
        }
        gathered.numbers.clear();
        for source in &self.numbers {
            append_numbers(source.as_ref(), request, candidates, &mut gathered.numbers);
        }
        gathered.keys.clear();
        for source in &self.keys {
            let keys = match source {
                Some(KeySource::Column(Column::Keys(column))) => Some(column(candidates)),
                Some(KeySource::Label(label)) => rows_of(&candidates.labels, label),
                _ => None,
            };
            append(keys, rows, &mut gathered.keys);
        }
        gather_request(self, request, gathered);
    }
}

impl Gathered {
    /// The request as the policy receives it.
    pub(crate) fn request<'a>(&'a self, request: &RequestFeatures) -> types::Request<'a> {
        types::Request {
            prompt_tokens: request.prompt_tokens,
            prompt_blocks: request.prompt_blocks,
            block_size: request.block_size,
            max_output_tokens: request.max_output_tokens,
            priority: request.priority,
            attempt: request.attempt,
            now_ms: request.now_ms,
            seed: request.seed,
            decision_number: request.decision_number,
            counts: &self.request_counts,
            numbers: &self.request_numbers,
            keys: &self.request_keys,
        }
    }

    /// The columns as the policy receives them.
    pub(crate) fn candidates(&self, rows: usize) -> types::Candidates<'_> {
        types::Candidates {
            count: rows as u32,
            counts: &self.counts,
            numbers: &self.numbers,
            keys: &self.keys,
        }
    }
}

/// The sources of these names. `known` finds one; a name that it does not find must be optional.
fn sources<T>(
    info: &types::Info,
    list: &str,
    names: &[String],
    mut known: impl FnMut(&str) -> Option<T>,
) -> Result<Vec<Source<T>>, String> {
    let source = |name: &String| {
        let found = known(name);
        if found.is_some() || info.optional.contains(name) {
            return Ok(found);
        }
        let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
        Err(format!(
            "`{list}` names {shown:?}, which this version does not have; known: {}",
            known_names(list).join(", ")
        ))
    };
    names.iter().map(source).collect()
}

fn known_names(list: &str) -> Vec<&'static str> {
    match list {
        "counts" => column_names(Space::Counts),
        "numbers" => {
            let computed = ["kv-use", "overlap-share", "approximate", "number:LABEL"];
            [&computed[..], &column_names(Space::Numbers)].concat()
        }
        "keys" => [&column_names(Space::Keys)[..], &["label:LABEL"]].concat(),
        "request-counts" => vec!["expected-output-tokens", "choices", "other-routers"],
        "request-numbers" => vec!["deadline-ms"],
        _ => vec![
            "session",
            "user",
            "cache-key",
            "safety-identifier",
            "tenant",
            "lora",
            "cache-salt",
            "prefix",
            "header:NAME",
        ],
    }
}

/// What follows `prefix` in a name; `None` if nothing does, or too much.
fn label_of<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    name.strip_prefix(prefix)
        .filter(|label| !label.is_empty() && name.len() <= MAX_NAME_BYTES)
}

/// The one copy of a label in `labels`.
fn shared(label: &str, labels: &mut Vec<Arc<str>>) -> Arc<str> {
    if let Some(known) = labels.iter().find(|known| ***known == *label) {
        return known.clone();
    }
    let label: Arc<str> = label.into();
    labels.push(label.clone());
    label
}

fn rows_of<'a, T>(columns: &'a [LabelColumn<T>], label: &Arc<str>) -> Option<&'a [T]> {
    let mut columns = columns.iter();
    let column = columns.find(|(name, _)| Arc::ptr_eq(name, label) || name == label);
    column.map(|(_, rows)| rows.as_slice())
}

/// Appends a column, or zeroes in its place: exactly `rows` rows.
fn append<T: Copy + Default>(column: Option<&[T]>, rows: usize, out: &mut Vec<T>) {
    let column = column.unwrap_or_default();
    let present = column.len().min(rows);
    out.extend_from_slice(&column[..present]);
    out.extend(std::iter::repeat_n(T::default(), rows - present));
}

fn append_numbers(
    source: Option<&NumberSource>,
    request: &RequestFeatures,
    candidates: &Candidates,
    out: &mut Vec<f32>,
) {
    let rows = candidates.len();
    match source {
        Some(NumberSource::Column(Column::Numbers(column))) => append(Some(column(candidates)), rows, out),
        Some(NumberSource::Label(label)) => append(rows_of(&candidates.number_labels, label), rows, out),
        Some(NumberSource::KvUse) => {
            let rows = candidates.kv_blocks_used.iter().zip(&candidates.kv_blocks_total);
            out.extend(rows.map(|(&used, &total)| share(used, total)));
        }
        Some(NumberSource::OverlapShare) => out.extend((0..rows).map(|row| {
            let held = candidates.overlap_device[row]
                .saturating_add(candidates.overlap_host[row])
                .saturating_add(candidates.overlap_disk[row]);
            share(held, request.prompt_blocks)
        })),
        Some(NumberSource::Approximate) => {
            let is_approximate = |traits: &u32| traits & candidate_traits::APPROXIMATE != 0;
            let marks = candidates.traits.iter();
            out.extend(marks.map(|traits| f32::from(is_approximate(traits))));
        }
        _ => append(None, rows, out),
    }
}

fn gather_request(names: &Names, request: &RequestFeatures, gathered: &mut Gathered) {
    gathered.request_counts.clear();
    gathered
        .request_counts
        .extend(names.request_counts.iter().map(|source| match source {
            Some(RequestCount::ExpectedOutputTokens) => request.expected_output_tokens,
            Some(RequestCount::Choices) => request.choices,
            Some(RequestCount::OtherRouters) => request.other_routers,
            None => 0,
        }));
    gathered.request_numbers.clear();
    gathered
        .request_numbers
        .extend(names.request_numbers.iter().map(|source| match source {
            Some(RequestNumber::DeadlineMs) => request.deadline_ms,
            None => 0.0,
        }));
    gathered.request_keys.clear();
    let keys = &request.keys;
    gathered
        .request_keys
        .extend(names.request_keys.iter().map(|source| match source {
            Some(RequestKey::Session) => keys.session,
            Some(RequestKey::User) => keys.user,
            Some(RequestKey::CacheKey) => keys.cache_key,
            Some(RequestKey::SafetyIdentifier) => keys.safety_identifier,
            Some(RequestKey::Tenant) => keys.tenant,
            Some(RequestKey::Lora) => keys.lora,
            Some(RequestKey::CacheSalt) => keys.cache_salt,
            Some(RequestKey::Prefix) => keys.prefix,
            Some(RequestKey::Header(name)) => {
                let mut headers = keys.headers.iter();
                headers
                    .find(|(header, _)| header == name)
                    .map_or(0, |(_, key)| *key)
            }
            None => 0,
        }));
}

/// A share from 0 to 1; 0 when `whole` is 0.
fn share(part: u32, whole: u32) -> f32 {
    if whole == 0 {
        0.0
    } else {
        (part as f32 / whole as f32).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::RequestKeys;

    fn info() -> types::Info {
        types::Info {
            name: "p".into(),
            version: "1".into(),
            counts: Vec::new(),
            numbers: Vec::new(),
            keys: Vec::new(),
            request_counts: Vec::new(),
            request_numbers: Vec::new(),
            request_keys: Vec::new(),
            optional: Vec::new(),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_name_gets_its_column_in_the_order_of_the_description() {
        let resolved = Names::resolve(&types::Info {
            counts: names(&["requests", "overlap-device"]),
            numbers: names(&["number:price", "approximate", "kv-use", "report-age-ms"]),
            keys: names(&["label:gpu", "worker"]),
            request_counts: names(&["other-routers", "choices"]),
            request_numbers: names(&["deadline-ms"]),
            request_keys: names(&["header:x-team", "session", "header:x-other", "prefix"]),
            ..info()
        })
        .unwrap();
        let candidates = Candidates {
            worker: vec![0, 1],
            overlap_device: vec![1, 2],
            requests: vec![3, 4],
            traits: vec![candidate_traits::APPROXIMATE, candidate_traits::PREFILL],
            kv_blocks_total: vec![0, 100],
            kv_blocks_used: vec![50, 200],
            report_age_ms: vec![7.0, 8.0],
            worker_key: vec![10, 11],
            labels: vec![("gpu".into(), vec![20, 21])],
            number_labels: vec![("price".into(), vec![0.5, 0.25])],
            ..Candidates::default()
        };
        let request = RequestFeatures {
            choices: 2,
            other_routers: 7,
            deadline_ms: 900.0,
            keys: RequestKeys {
                session: 5,
                prefix: 6,
                headers: vec![(Arc::from("x-team"), 9)].into(),
                ..RequestKeys::default()
            },
            ..RequestFeatures::default()
        };
        let mut gathered = Gathered::default();
        // The second time into buffers that are full.
        for _ in 0..2 {
            resolved.gather(&request, &candidates, &mut gathered);
        }
        assert_eq!(gathered.counts, [3, 4, 1, 2]);
        assert_eq!(gathered.numbers, [0.5, 0.25, 1.0, 0.0, 0.0, 1.0, 7.0, 8.0]);
        assert_eq!(gathered.keys, [20, 21, 10, 11]);
        assert_eq!(gathered.request_counts, [7, 2]);
        assert_eq!(gathered.request_numbers, [900.0]);
        assert_eq!(gathered.request_keys, [9, 5, 0, 6]);
        assert_eq!(resolved.labels, [Arc::from("gpu")]);
        assert_eq!(resolved.number_labels, [Arc::from("price")]);
    }

    #[test]
    fn only_the_groups_of_the_names_are_filled() {
        let groups = |counts: &[&str], numbers: &[&str]| {
            let info = types::Info {
                counts: names(counts),
                numbers: names(numbers),
                ..info()
            };
            Names::resolve(&info).unwrap().groups
        };
        let required = groups(&["overlap-device", "requests"], &["kv-use", "overlap-share"]);
        assert!(!required.is_any());
        assert!(groups(&["queue-depth"], &[]).load());
        assert!(groups(&[], &["approximate"]).load());
        let measured = groups(&[], &["itl-ms"]);
        assert!(measured.measured() && !measured.load() && !measured.card());
        assert!(groups(&[], &["affinity-age-ms"]).affinity());
        assert!(groups(&["kv-blocks-active"], &[]).report());
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones_unless_it_is_optional() {
        let asking = |optional: &[&str]| types::Info {
            counts: names(&["requests", "phase-of-the-moon"]),
            optional: names(optional),
            ..info()
        };
        let refusal = Names::resolve(&asking(&[])).unwrap_err();
        assert!(
            refusal.contains("phase-of-the-moon") && refusal.contains("overlap-device, overlap-host"),
            "{refusal}"
        );
        let resolved = Names::resolve(&asking(&["phase-of-the-moon"])).unwrap();
        let candidates = Candidates {
            worker: vec![0, 1],
            requests: vec![3, 4],
            ..Candidates::default()
        };
        let mut gathered = Gathered::default();
        resolved.gather(&RequestFeatures::default(), &candidates, &mut gathered);
        assert_eq!(gathered.counts, [3, 4, 0, 0]);
        let misplaced = types::Info {
            numbers: names(&["requests"]),
            ..info()
        };
        assert!(Names::resolve(&misplaced).is_err(), "a name belongs to one list");
        let many = types::Info {
            counts: vec!["requests".into(); 33],
            ..info()
        };
        assert!(Names::resolve(&many).unwrap_err().contains("at most 32"));
    }
}

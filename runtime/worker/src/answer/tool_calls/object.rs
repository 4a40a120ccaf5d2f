//! Reads the beginning of an object of JSON while the rest has not arrived: a call with its name and arguments.

/// Where a scan through JSON is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scan {
    pub(super) depth: u32,
    pub(super) in_string: bool,
    pub(super) escaped: bool,
    /// Bytes of `pending` that were scanned.
    pub(super) at: usize,
}

impl Scan {
    /// Takes the next byte. Whether the value ends with it.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        self.at += 1;
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return self.depth == 0 && !self.in_string;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// What is known of an object.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) name: Option<String>,
    /// Where the arguments begin, if they are an object.
    pub(super) arguments: Option<usize>,
}

impl Members {
    /// The arguments of a whole object, as JSON. Some models write them as a string.
    pub(super) fn whole_arguments(&self, object: &str) -> Option<String> {
        let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(object).ok()?;
        let arguments = ["arguments", "parameters"]
            .iter()
            .find_map(|name| members.get(*name))?;
        Some(match arguments {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => "{}".into(),
            other => other.to_string(),
        })
    }
}

/// The name and the place of the arguments in the beginning of an object.
pub(super) fn members(object: &str) -> Members {
    let mut found = Members::default();
    let bytes = object.as_bytes();
    let skip = |mut at: usize, skipped: &[u8]| {
        while bytes.get(at).is_some_and(|byte| skipped.contains(byte)) {
            at += 1;
        }
        at
    };
    const SPACE: &[u8] = b" \t\r\n";
    let mut at = 1;
    loop {
        at = skip(at, b" \t\r\n,");
        let Some((key, end)) = string(object, at) else {
            return found;
        };
        at = skip(end, SPACE);
        if bytes.get(at) != Some(&b':') {
            return found;
        }
        at = skip(at + 1, SPACE);
        match (key.as_str(), bytes.get(at)) {
            ("name", Some(b'"')) => {
                let Some((name, end)) = string(object, at) else {
                    return found;
                };
                (found.name, at) = (Some(name), end);
            }
            ("arguments" | "parameters", Some(b'{')) if found.name.is_some() => {
                found.arguments = Some(at);
                return found;
            }
            _ => {
                let mut scan = Scan::default();
                // A value without brackets and quotes ends where the next member begins.
                let is_next =
                    |scan: &Scan, byte| scan.depth == 0 && !scan.in_string && matches!(byte, b',' | b'}');
                let end = bytes[at..]
                    .iter()
                    .find(|byte| is_next(&scan, **byte) || scan.push(**byte));
                if end.is_none() {
                    return found;
                }
                at += scan.at;
            }
        }
    }
}

/// The string of JSON at this place, and where it ends. `None` if it is not whole.
pub(super) fn string(text: &str, at: usize) -> Option<(String, usize)> {
    let bytes = text.as_bytes();
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut scan = Scan::default();
    let length = bytes[at..].iter().position(|byte| scan.push(*byte))? + 1;
    let string = serde_json::from_str(text.get(at..at + length)?).ok()?;
    Some((string, at + length))
}

/// Whether the text begins a call without a mark: an object, or an array of them, whose first member is one of a call's.
/// `None` if that is not decided.
pub(super) fn begins_call(text: &str) -> Option<bool> {
    let inner = text.trim_start_matches(|c: char| c.is_whitespace() || c == '[');
    let Some(members) = inner.strip_prefix('{') else {
        return if inner.is_empty() { None } else { Some(false) };
    };
    let key = members.trim_start();
    let keys = ["\"name\"", "\"type\"", "\"function\""];
    if keys.iter().any(|known| key.starts_with(known)) {
        return Some(true);
    }
    if keys.iter().any(|known| known.starts_with(key)) {
        return None;
    }
    Some(false)
}

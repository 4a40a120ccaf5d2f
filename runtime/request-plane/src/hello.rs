//! The first words of a connection: versions, and what each side is.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use signalbox_protocol::{ErrorKind, WireError};

/// Versions of the request plane this build speaks. Frames of kinds and payload ends a version does not know are
/// skipped, so a new version is due only when a known frame changes its meaning.
pub(crate) const VERSIONS: RangeInclusive<u16> = 1..=1;

/// Windows a worker agrees to. Below 1 KiB a stream would stop at every token; 16 MiB is what one stream may make
/// a worker hold beside its backlog.
pub(crate) const WINDOW_BYTES: RangeInclusive<u32> = (1 << 10)..=(16 << 20);

/// What a router says of itself, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Program and version, for logs.
    pub(crate) software: String,
    /// Bytes of pieces a stream may hold that the router has not read yet.
    pub(crate) window_bytes: u32,
}

/// Why a hello was not accepted. The worker says it in a Fail frame on stream 0, so both sides know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HelloError {
    #[error(
        "no common version of the request plane: the worker speaks {}, the router {theirs}",
        span(*VERSIONS.start(), *VERSIONS.end())
    )]
    NoCommonVersion { theirs: String },
    #[error(
        "the hello's JSON is not understood: {0}; it is {{\"software\": text, \"window_bytes\": number}}"
    )]
    Json(String),
    #[error(
        "window_bytes is {0}; a window has {least} to {most} bytes",
        least = WINDOW_BYTES.start(),
        most = WINDOW_BYTES.end()
    )]
    Window(u32),
}

impl HelloError {
    /// For the Fail frame.
    pub(crate) fn to_wire(&self) -> WireError {
        WireError::new(ErrorKind::InvalidRequest, self.to_string())
    }
}

/// The worker's side: picks the highest common version and reads the rest.
pub(crate) fn accept(lowest: u16, highest: u16, json: &Bytes) -> Result<(u16, Hello), HelloError> {
    let version = highest.min(*VERSIONS.end());
    if version < lowest.max(*VERSIONS.start()) {
        return Err(HelloError::NoCommonVersion {
            theirs: span(lowest, highest),
        });
    }
    let hello: Hello = serde_json::from_slice(json).map_err(|error| HelloError::Json(error.to_string()))?;
    if !WINDOW_BYTES.contains(&hello.window_bytes) {
        return Err(HelloError::Window(hello.window_bytes));
    }
    Ok((version, hello))
}

fn span(lowest: u16, highest: u16) -> String {
    if lowest == highest {
        format!("version {lowest}")
    } else {
        format!("versions {lowest} to {highest}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(window_bytes: u32) -> Bytes {
        serde_json::to_vec(&Hello {
            software: "test".into(),
            window_bytes,
        })
        .unwrap()
        .into()
    }

    #[test]
    fn the_highest_common_version_is_chosen() {
        assert_eq!(accept(1, 1, &json(65536)).unwrap().0, 1);
        assert_eq!(accept(0, 7, &json(65536)).unwrap().0, 1);
    }

    #[test]
    fn no_common_version_names_both_ranges() {
        let error = accept(2, 3, &json(65536)).unwrap_err().to_string();
        assert!(
            error.contains("version 1,") && error.contains("versions 2 to 3"),
            "{error}"
        );
        assert!(accept(0, 0, &json(65536)).is_err());
        assert!(
            accept(3, 1, &json(65536)).is_err(),
            "an empty range has no version"
        );
    }

    #[test]
    fn a_window_out_of_range_is_refused_with_the_range() {
        let error = accept(1, 1, &json(10)).unwrap_err().to_string();
        assert!(error.contains("1024 to 16777216"), "{error}");
    }

    #[test]
    fn unknown_fields_are_skipped_and_missing_ones_named() {
        assert!(
            accept(
                1,
                1,
                &Bytes::from_static(br#"{"software":"x","window_bytes":4096,"new":1}"#)
            )
            .is_ok()
        );
        let error = accept(1, 1, &Bytes::from_static(b"{}")).unwrap_err().to_string();
        assert!(error.contains("software"), "{error}");
    }
}

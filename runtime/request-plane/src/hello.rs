//! The hello, with which a router opens a connection.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use signalbox_protocol::{ErrorKind, WireError};

/// Protocol versions that this build supports. Receivers skip unknown frames and unknown bytes at the end of a payload, so
/// only a change of a known frame needs a new version.
pub(crate) const VERSIONS: RangeInclusive<u16> = 1..=1;

/// Stream windows that a worker accepts, in bytes. With less than 1 KiB a stream would stop at every token. 16 MiB bounds
/// the memory that one stream can take at the router.
pub(crate) const WINDOW_BYTES: RangeInclusive<u32> = (1 << 10)..=(16 << 20);

/// What a router sends in its hello, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Program and version of the router, for logs.
    pub(crate) software: String,
    /// Window of each stream in bytes: how much the worker may send before the router reads it.
    pub(crate) window_bytes: u32,
}

/// Why a worker refuses a hello. The worker sends the reason in a Fail frame on stream 0, so both sides can log it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HelloError {
    #[error(
        "no common version of the request plane: the worker supports {}, the router {theirs}",
        version_range(*VERSIONS.start(), *VERSIONS.end())
    )]
    NoCommonVersion { theirs: String },
    #[error("the hello's JSON is invalid: {0}; its form is {{\"software\": text, \"window_bytes\": number}}")]
    Json(String),
    #[error(
        "window_bytes is {0}; a window is {least} to {most} bytes",
        least = WINDOW_BYTES.start(),
        most = WINDOW_BYTES.end()
    )]
    Window(u32),
}

impl HelloError {
    /// The error for the Fail frame.
    pub(crate) fn to_wire(&self) -> WireError {
        WireError::new(ErrorKind::InvalidRequest, self.to_string())
    }
}

/// Accepts a hello at the worker: chooses the highest common version and parses the JSON.
pub(crate) fn accept(lowest: u16, highest: u16, json: &Bytes) -> Result<(u16, Hello), HelloError> {
    let version = highest.min(*VERSIONS.end());
    if version < lowest.max(*VERSIONS.start()) {
        return Err(HelloError::NoCommonVersion {
            theirs: version_range(lowest, highest),
        });
    }
    let hello: Hello = serde_json::from_slice(json).map_err(|error| HelloError::Json(error.to_string()))?;
    if !WINDOW_BYTES.contains(&hello.window_bytes) {
        return Err(HelloError::Window(hello.window_bytes));
    }
    Ok((version, hello))
}

/// The versions from `lowest` to `highest` as text.
fn version_range(lowest: u16, highest: u16) -> String {
    if lowest == highest {
        format!("version {lowest}")
    } else {
        format!("versions {lowest} to {highest}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn hellos_are_read_as_sent(software: String, window_bytes in WINDOW_BYTES) {
            let sent = Hello { software, window_bytes };
            let json = serde_json::to_vec(&sent).unwrap().into();
            prop_assert_eq!(accept(1, 1, &json).unwrap().1, sent);
        }
    }

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
    fn a_window_out_of_range_is_refused_and_the_error_has_the_range() {
        let error = accept(1, 1, &json(10)).unwrap_err().to_string();
        assert!(error.contains("1024 to 16777216"), "{error}");
    }

    #[test]
    fn unknown_members_are_skipped_and_missing_ones_are_named() {
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

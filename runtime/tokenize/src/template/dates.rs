//! The date in templates: `strftime_now`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::{Error, ErrorKind};

/// The current time in UTC. The reference uses the machine's own time zone; here, routers in two zones must render
/// alike.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    formatted(format, Timestamp::now())
}

fn formatted(format: &str, now: Timestamp) -> Result<String, Error> {
    jiff::fmt::strtime::format(in_c_locale(format), &now.to_zoned(TimeZone::UTC))
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// The format with the codes that depend on a locale spelled out for Python's, the C locale. The reference's time has
/// no zone, so the codes for it print nothing.
fn in_c_locale(format: &str) -> String {
    let mut spelled = String::with_capacity(format.len());
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            spelled.push(character);
            continue;
        }
        match characters.next() {
            Some('c') => spelled.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => spelled.push_str("%m/%d/%y"),
            Some('X') => spelled.push_str("%H:%M:%S"),
            Some('z' | 'Z') => {}
            Some(other) => spelled.extend(['%', other]),
            None => spelled.push('%'),
        }
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected texts are those of CPython 3.11's `datetime.strftime` for a time without a zone.
    #[test]
    fn codes_print_as_in_python() {
        let time: Timestamp = "2026-11-07T08:05:03Z".parse().unwrap();
        for (format, expected) in [
            ("%c", "Sat Nov  7 08:05:03 2026"),
            ("%x %X", "11/07/26 08:05:03"),
            ("%Z|%z|", "||"),
            ("%d %B %Y, %j, %I %p, 100%%", "07 November 2026, 311, 08 AM, 100%"),
        ] {
            assert_eq!(formatted(format, time).unwrap(), expected);
        }
    }
}

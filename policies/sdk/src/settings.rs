//! A policy's settings: one flat JSON object of numbers, booleans and strings.
//!
//! A JSON library would double the size of a policy that reads five numbers. This parser reads what settings need and
//! refuses anything else with a sentence.

use std::{fmt::Display, ops::RangeInclusive};

/// The settings of one policy. A policy reads each setting by name, with its default and bounds.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    value: Value,
    read: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f32),
    Switch(bool),
    Text(String),
}

impl Settings {
    /// Reads a JSON object; the empty string is an empty object.
    ///
    /// # Errors
    /// The text is not a flat JSON object, or names a setting twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut reader = Reader { rest: text };
        let mut settings = Self::default();
        reader.expect('{')?;
        if !reader.take('}') {
            loop {
                let name = reader.string()?;
                reader.expect(':')?;
                let value = reader.value(&name)?;
                if settings.entries.iter().any(|entry| entry.name == name) {
                    return Err(format!("the setting {name:?} is there twice"));
                }
                settings.entries.push(Entry {
                    name,
                    value,
                    read: false,
                });
                if reader.take('}') {
                    break;
                }
                reader.expect(',')?;
            }
        }
        match reader.peek() {
            None => Ok(settings),
            Some(found) => Err(format!("settings are one JSON object; {found:?} follows it")),
        }
    }

    /// A number within bounds, or `default` when it is not set.
    ///
    /// # Errors
    /// The setting is not a number, or out of bounds.
    pub fn number(&mut self, name: &str, default: f32, bounds: RangeInclusive<f32>) -> Result<f32, String> {
        match self.read(name) {
            None => Ok(default),
            Some(Value::Number(number)) if bounds.contains(number) => Ok(*number),
            Some(_) => Err(expected(
                name,
                format_args!("a number from {} to {}", bounds.start(), bounds.end()),
            )),
        }
    }

    /// A boolean, or `default` when it is not set.
    ///
    /// # Errors
    /// The setting is neither true nor false.
    pub fn switch(&mut self, name: &str, default: bool) -> Result<bool, String> {
        match self.read(name) {
            None => Ok(default),
            Some(Value::Switch(switch)) => Ok(*switch),
            Some(_) => Err(expected(name, "true or false")),
        }
    }

    /// A string, when it is set.
    ///
    /// # Errors
    /// The setting is not a string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.read(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(_) => Err(expected(name, "a string")),
        }
    }

    /// Refuses settings that were not read: most likely they are misspelt.
    pub(crate) fn refuse_unread(&self) -> Result<(), String> {
        match self.entries.iter().find(|entry| !entry.read) {
            None => Ok(()),
            Some(entry) => Err(format!("there is no setting {:?}", entry.name)),
        }
    }

    fn read(&mut self, name: &str) -> Option<&Value> {
        let entry = self.entries.iter_mut().find(|entry| entry.name == name)?;
        entry.read = true;
        Some(&entry.value)
    }
}

fn expected(name: &str, what: impl Display) -> String {
    format!("the setting {name:?} must be {what}")
}

/// The part of the text that is not parsed yet.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) {
            return Ok(());
        }
        Err(match self.peek() {
            Some(found) => format!("settings are a flat JSON object: {wanted:?} was expected, not {found:?}"),
            None => format!("settings are a flat JSON object: it ends where {wanted:?} was expected"),
        })
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect('"')?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((offset, found)) = chars.next() {
            match found {
                '"' => {
                    self.rest = &self.rest[offset + 1..];
                    return Ok(text);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\' | '/'))) => text.push(escaped),
                    _ => return Err("strings in settings may escape only quotes and slashes".into()),
                },
                found => text.push(found),
            }
        }
        Err("a string in the settings has no end".into())
    }

    fn value(&mut self, name: &str) -> Result<Value, String> {
        if self.peek() == Some('"') {
            return Ok(Value::Text(self.string()?));
        }
        let end = self
            .rest
            .find([',', '}', ' ', '\t', '\n', '\r'])
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" => Ok(Value::Switch(true)),
            "false" => Ok(Value::Switch(false)),
            // `parse` also accepts words such as `inf`, which are not JSON.
            word if word.starts_with(|first: char| first == '-' || first.is_ascii_digit()) => word
                .parse()
                .ok()
                .filter(|number: &f32| number.is_finite())
                .map(Value::Number)
                .ok_or_else(|| format!("the setting {name:?} is {word}, which is no number")),
            _ => Err(format!(
                "the setting {name:?} must be a number, true, false or a string"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Settings::parse(text).expect_err(text)
    }

    #[test]
    fn reads_numbers_switches_and_strings() {
        let mut settings =
            Settings::parse(r#" { "weight" : 1.5e0, "on":true, "name": "a \"b\"", "below": -2 } "#)
                .expect("valid");
        assert_eq!(settings.number("weight", 0.0, 0.0..=2.0), Ok(1.5));
        assert_eq!(settings.number("below", 0.0, -2.0..=2.0), Ok(-2.0));
        assert_eq!(settings.switch("on", false), Ok(true));
        assert_eq!(settings.text("name"), Ok(Some("a \"b\"".into())));
        assert_eq!(settings.number("absent", 7.0, 0.0..=1.0), Ok(7.0));
        assert_eq!(settings.refuse_unread(), Ok(()));
    }

    #[test]
    fn empty_settings_are_the_defaults() {
        for text in ["", "  ", "{}", " { } "] {
            assert_eq!(Settings::parse(text).expect(text).switch("on", true), Ok(true));
        }
    }

    #[test]
    fn names_a_setting_that_is_unknown_out_of_bounds_or_of_another_kind() {
        let mut settings = Settings::parse(r#"{"weight": 3, "wieght": 1}"#).expect("valid");
        assert_eq!(
            settings.number("weight", 0.0, 0.0..=2.0),
            Err("the setting \"weight\" must be a number from 0 to 2".into())
        );
        assert_eq!(
            settings.switch("weight", true),
            Err("the setting \"weight\" must be true or false".into())
        );
        assert_eq!(
            settings.refuse_unread(),
            Err("there is no setting \"wieght\"".into())
        );
    }

    #[test]
    fn refuses_anything_but_a_flat_object() {
        assert!(refused("[1]").contains("'{' was expected, not '['"));
        assert!(refused(r#"{"a": 1"#).contains("ends where ','"));
        assert!(refused(r#"{"a": 1} x"#).contains("'x' follows"));
        assert!(refused(r#"{"a": [1]}"#).contains("must be a number"));
        assert!(refused(r#"{"a": {}}"#).contains("must be a number"));
        assert!(refused(r#"{"a": inf}"#).contains("must be a number"));
        assert!(refused(r#"{"a": 1e99}"#).contains("no number"));
        assert!(refused(r#"{"a": 1, "a": 2}"#).contains("twice"));
        assert!(refused(r#"{"a"#).contains("no end"));
        assert!(refused(r#"{"a":}"#).contains("must be a number"));
    }
}

//! The arguments of a call, by position or by name, as Python's functions take them.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

/// The arguments of a filter or method, the value itself aside.
pub(super) struct Arguments {
    positional: Vec<Value>,
    named: Option<Kwargs>,
}

impl Arguments {
    pub(super) fn of(mut values: Vec<Value>) -> Result<Self, Error> {
        let named = match values.last() {
            Some(last) if last.is_kwargs() => values.pop().map(Kwargs::try_from).transpose()?,
            _ => None,
        };
        Ok(Self {
            positional: values,
            named,
        })
    }

    /// Argument `index`, which may also be given as `name`. None and undefined are as good as absent.
    pub(super) fn get(&self, index: usize, name: &str) -> Result<Option<Value>, Error> {
        let given = match (self.positional.get(index), &self.named) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(named)) => named.get::<Option<Value>>(name)?,
            (None, None) => None,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    }

    /// As [`Self::get`], for a number of characters, steps or the like.
    pub(super) fn size(&self, index: usize, name: &str) -> Result<Option<usize>, Error> {
        self.get(index, name)?.map(usize::try_from).transpose()
    }

    /// As [`Self::get`], for a flag: true is what counts as true in Python.
    pub(super) fn flag(&self, index: usize, name: &str) -> Result<Option<bool>, Error> {
        Ok(self.get(index, name)?.map(|value| value.is_true()))
    }

    /// As [`Self::get`], for a text.
    pub(super) fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        let Some(value) = self.get(index, name)? else {
            return Ok(None);
        };
        let text = value.as_str().map(str::to_owned);
        text.map(Some)
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{name} should be a string")))
    }

    /// Checks that there are no arguments beyond the first `most` and the named ones asked for.
    pub(super) fn finish(&self, most: usize) -> Result<(), Error> {
        if self.positional.len() > most {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.named.as_ref().map_or(Ok(()), Kwargs::assert_all_used)
    }
}

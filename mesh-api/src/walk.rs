//! Walks a JSON value and knows at every step where it is: parsers read through it, so that every refusal
//! carries the exact path, the value and what is accepted.
//!
//! Invariants: an object's fields are declared when it is opened, and any other is refused at once; `null` is
//! absent; every list has bounds.
//! Not here: what the fields mean (resource/*).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::duration;
use crate::error::{ApiError, Reason};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct At<'a> {
    value: &'a Value,
    path: String,
}

/// An opened object.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

impl<'a> At<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A refusal of this value.
    pub(crate) fn refuse(&self, reason: Reason, accepted: impl Into<String>) -> ApiError {
        ApiError::new(reason, self.path.clone(), self.value.clone(), accepted)
    }

    /// Opens an object that may hold `known`; `unbuilt` are refused by name as not built yet.
    pub(crate) fn object(&self, known: &[&str], unbuilt: &[&str]) -> Result<Fields<'a>, ApiError> {
        let Value::Object(map) = self.value else {
            return Err(self.refuse(Reason::WrongType, format!("an object with {}", known.join(", "))));
        };
        for (field, value) in map {
            if known.contains(&field.as_str()) {
                continue;
            }
            let path = join(&self.path, field);
            let reason =
                if unbuilt.contains(&field.as_str()) { Reason::NotBuiltYet } else { Reason::UnknownField };
            return Err(ApiError::new(reason, path, value.clone(), known.join(", ")));
        }
        Ok(Fields { map, path: self.path.clone() })
    }

    /// The entries of a list with a bounded length.
    pub(crate) fn list(&self, lengths: RangeInclusive<usize>) -> Result<Vec<At<'a>>, ApiError> {
        let accepted = || format!("a list of {}..={} entries", lengths.start(), lengths.end());
        let Value::Array(entries) = self.value else {
            return Err(self.refuse(Reason::WrongType, accepted()));
        };
        if !lengths.contains(&entries.len()) {
            return Err(self.refuse(Reason::OutOfRange, accepted()));
        }
        let at = |(i, value)| At { value, path: format!("{}[{i}]", self.path) };
        Ok(entries.iter().enumerate().map(at).collect())
    }

    /// The entries of a map from text to text.
    pub(crate) fn entries(&self, max: usize) -> Result<Vec<(&'a str, At<'a>)>, ApiError> {
        let accepted = || format!("an object of at most {max} texts");
        let Value::Object(map) = self.value else {
            return Err(self.refuse(Reason::WrongType, accepted()));
        };
        if map.len() > max {
            return Err(self.refuse(Reason::OutOfRange, accepted()));
        }
        let at = |key: &str| format!("{}[{}]", self.path, Value::from(key));
        Ok(map.iter().map(|(key, value)| (key.as_str(), At { value, path: at(key) })).collect())
    }

    pub(crate) fn text(&self, accepted: &str) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.refuse(Reason::WrongType, accepted))
    }

    /// Text that `parse` understands.
    pub(crate) fn parsed<T>(
        &self,
        accepted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ApiError> {
        parse(self.text(accepted)?).ok_or_else(|| self.refuse(Reason::BadFormat, accepted))
    }

    /// Text of a form that only needs checking.
    pub(crate) fn checked(&self, form: &crate::name::Form) -> Result<String, ApiError> {
        self.parsed(form.accepted, |text| (form.holds)(text).then(|| text.to_owned()))
    }

    pub(crate) fn boolean(&self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.refuse(Reason::WrongType, "true or false"))
    }

    pub(crate) fn is_number(&self) -> bool {
        self.value.is_number()
    }

    pub(crate) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, ApiError> {
        let accepted = || format!("{}..={}", range.start(), range.end());
        if !self.value.is_number() {
            return Err(self.refuse(Reason::WrongType, accepted()));
        }
        match self.value.as_u64() {
            Some(n) if range.contains(&n) => Ok(n),
            _ => Err(self.refuse(Reason::OutOfRange, accepted())),
        }
    }

    /// A duration as the Gateway API writes it.
    pub(crate) fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, ApiError> {
        let ends = [range.start(), range.end()].map(|end| duration::format(*end));
        let accepted = format!("{} in {}..={}", duration::ACCEPTED, ends[0], ends[1]);
        let read = self.parsed(&accepted, duration::parse)?;
        if range.contains(&read) { Ok(read) } else { Err(self.refuse(Reason::OutOfRange, accepted)) }
    }

    /// A port number.
    pub(crate) fn port(&self) -> Result<u16, ApiError> {
        self.integer(1..=65535).map(|n| n as u16)
    }

    /// One of some words; `unbuilt` words are refused as not built yet.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)], unbuilt: &[&str]) -> Result<T, ApiError> {
        let accepted = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let text = self.text(&accepted)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*meaning);
        }
        let reason = if unbuilt.contains(&text) { Reason::NotBuiltYet } else { Reason::BadFormat };
        Err(self.refuse(reason, accepted))
    }
}

impl<'a> Fields<'a> {
    /// The field, unless it is absent or `null`.
    pub(crate) fn get(&self, field: &str) -> Option<At<'a>> {
        let value = self.map.get(field).filter(|value| !value.is_null())?;
        Some(At { value, path: join(&self.path, field) })
    }

    /// The field, which must be there.
    pub(crate) fn need(&self, field: &str, accepted: &str) -> Result<At<'a>, ApiError> {
        self.get(field).ok_or_else(|| {
            ApiError::new(Reason::MissingField, join(&self.path, field), Value::Null, accepted)
        })
    }

    /// Reads the field if it is there.
    pub(crate) fn read<T>(
        &self,
        field: &str,
        read: impl FnOnce(At<'a>) -> Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        self.get(field).map(read).transpose()
    }

    /// Reads a list field; absent: empty.
    pub(crate) fn each<T>(
        &self,
        field: &str,
        lengths: RangeInclusive<usize>,
        read: impl FnMut(At<'a>) -> Result<T, ApiError>,
    ) -> Result<Vec<T>, ApiError> {
        match self.get(field) {
            Some(at) => at.list(lengths)?.into_iter().map(read).collect(),
            None => Ok(Vec::new()),
        }
    }
}

/// Refuses the second of two equal things.
pub(crate) fn distinct<T: Ord>(
    things: impl IntoIterator<Item = T>,
    at: impl Fn(usize) -> (String, Value),
    accepted: &str,
) -> Result<(), ApiError> {
    let mut seen = std::collections::BTreeSet::new();
    for (i, thing) in things.into_iter().enumerate() {
        if !seen.insert(thing) {
            let (path, value) = at(i);
            return Err(ApiError::new(Reason::Conflict, path, value, accepted));
        }
    }
    Ok(())
}

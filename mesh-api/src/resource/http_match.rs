//! What a request must be for a rule of an `HTTPRoute` to take it: path, method, headers, query.
//!
//! The Gateway API's shape, core and extended. A regular expression is RE2's dialect without look-around and
//! back references, must match the whole value, and is bounded in what it may compile to, so that no route can
//! make requests slow.
//! Not here: which of two that match wins, and how it is decided (mesh-core's route).

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::{ApiError, Reason};
use crate::walk::{At, Fields, distinct};

/// Bytes that a compiled expression may have.
pub const REGEX_BYTES: usize = 64 * 1024;

/// All of it must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// The path, without the query.
    pub path: PathMatch,
    /// Each of them, by the names of headers, any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FieldMatch>,
    /// Each of them, by the names of parameters, after percent-decoding.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<FieldMatch>,
    /// The method; `None`: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// Which paths match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "value")]
pub enum PathMatch {
    /// This one.
    Exact(String),
    /// This one and those below it, by whole segments.
    PathPrefix(String),
    /// Those that the expression matches as a whole.
    RegularExpression(String),
}

/// A header or a parameter and what its value must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldMatch {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: MatchKind,
    /// Its name.
    pub name: String,
    /// The value, or the expression.
    pub value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MatchKind {
    /// Byte by byte.
    Exact,
    /// As a whole, by a regular expression.
    RegularExpression,
}

impl MatchKind {
    pub(super) const WORDS: &[(&str, Self)] =
        &[("Exact", Self::Exact), ("RegularExpression", Self::RegularExpression)];
}

const METHODS: &[(&str, &str)] = &[
    ("GET", "GET"),
    ("HEAD", "HEAD"),
    ("POST", "POST"),
    ("PUT", "PUT"),
    ("DELETE", "DELETE"),
    ("CONNECT", "CONNECT"),
    ("OPTIONS", "OPTIONS"),
    ("TRACE", "TRACE"),
    ("PATCH", "PATCH"),
];

impl HttpMatch {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["path", "headers", "queryParams", "method"], &[])?;
        // The Gateway API's default of a match without a path.
        let path = match fields.get("path") {
            Some(path) => PathMatch::read(&path)?,
            None => PathMatch::PathPrefix("/".to_owned()),
        };
        Ok(Self {
            path,
            headers: FieldMatch::headers(&fields)?,
            query_params: FieldMatch::each(&fields, "queryParams", FieldMatch::parameter)?,
            method: fields.read("method", |at| at.one_of(METHODS, &[]))?.map(ToOwned::to_owned),
        })
    }
}

impl PathMatch {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["type", "value"], &[])?;
        let kinds = [("Exact", 0), ("PathPrefix", 1), ("RegularExpression", 2)];
        let kind = fields.read("type", |at| at.one_of(&kinds, &[]))?.unwrap_or(1);
        if kind == 2 {
            return Ok(Self::RegularExpression(fields.need("value", "a regular expression")?.expression()?));
        }
        let value = fields.read("value", |at| at.parsed(PATH, path_value))?.unwrap_or_else(|| "/".to_owned());
        Ok(if kind == 1 { Self::PathPrefix(value) } else { Self::Exact(value) })
    }
}

impl FieldMatch {
    /// The field `headers`.
    pub(super) fn headers(fields: &Fields<'_>) -> Result<Vec<Self>, ApiError> {
        Self::each(fields, "headers", Self::header)
    }

    fn each(
        fields: &Fields<'_>,
        field: &str,
        read: impl Fn(&At<'_>) -> Result<Self, ApiError>,
    ) -> Result<Vec<Self>, ApiError> {
        let matches = fields.each(field, 0..=16, |at| read(&at))?;
        if let Some(at) = fields.get(field) {
            let path = |i: usize| (format!("{}[{i}].name", at.path()), matches[i].name.clone().into());
            distinct(matches.iter().map(|m| m.name.to_ascii_lowercase()), path, "each name once")?;
        }
        Ok(matches)
    }

    pub(super) fn header(at: &At<'_>) -> Result<Self, ApiError> {
        Self::read(at, field_name)
    }

    fn parameter(at: &At<'_>) -> Result<Self, ApiError> {
        let accepted = "the name of a parameter: 1..=256 printable ASCII characters";
        let holds =
            |text: &str| (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        Self::read(at, |name| name.parsed(accepted, |text| holds(text).then(|| text.to_owned())))
    }

    fn read(at: &At<'_>, name: impl Fn(&At<'_>) -> Result<String, ApiError>) -> Result<Self, ApiError> {
        let fields = at.object(&["type", "name", "value"], &[])?;
        let kind = fields.read("type", |at| at.one_of(MatchKind::WORDS, &[]))?.unwrap_or(MatchKind::Exact);
        let value = fields.need("value", "1..=4096 characters")?;
        Ok(Self {
            kind,
            name: name(&fields.need("name", "a name")?)?,
            value: if kind == MatchKind::Exact { value.header_value()? } else { value.expression()? },
        })
    }
}

const PATH: &str =
    "a path of 1..=1024 printable ASCII characters from '/' on, without //, /./, /../, %2f, '#' or '?'";

/// A path that requests can have after normalisation: one that they can't have would never match.
pub(super) fn path_value(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let odd = ["//", "/./", "/../", "%2f", "#", "?"].iter().any(|part| lower.contains(part))
        || lower.ends_with("/..")
        || lower.ends_with("/.");
    let holds = text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic());
    (holds && !odd).then(|| text.to_owned())
}

fn field_name(at: &At<'_>) -> Result<String, ApiError> {
    at.header_name()
}

impl At<'_> {
    /// The name of a header.
    pub(super) fn header_name(&self) -> Result<String, ApiError> {
        let accepted = "the name of a header: 1..=256 of letters, digits and !#$%&'*+-.^_`|~";
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        let holds = |text: &str| (1..=256).contains(&text.len()) && text.bytes().all(token);
        self.parsed(accepted, |text| holds(text).then(|| text.to_owned()))
    }

    /// The value of a header: nothing that could end its line.
    pub(super) fn header_value(&self) -> Result<String, ApiError> {
        let accepted = "1..=4096 printable ASCII characters, no space at either end";
        let holds = |text: &str| {
            (1..=4096).contains(&text.len())
                && text.trim() == text
                && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ' || b == b'\t')
        };
        self.parsed(accepted, |text| holds(text).then(|| text.to_owned()))
    }

    /// A regular expression that compiles within bounds.
    pub(super) fn expression(&self) -> Result<String, ApiError> {
        let accepted = format!(
            "a regular expression of 1..=1024 characters, without look-around and back references, that compiles \
             to at most {} KiB",
            REGEX_BYTES / 1024
        );
        let text = self.text(&accepted)?;
        let compiled = regex::RegexBuilder::new(text).size_limit(REGEX_BYTES).build();
        match compiled {
            Ok(_) if (1..=1024).contains(&text.len()) => Ok(text.to_owned()),
            Ok(_) => Err(self.refuse(Reason::OutOfRange, accepted)),
            Err(error) => {
                let why = error.to_string();
                let why = why.lines().last().unwrap_or_default().trim();
                Err(self.refuse(Reason::BadFormat, format!("{accepted} ({why})")))
            }
        }
    }
}

/// Names that stand twice in what was read.
pub(super) fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Option<usize> {
    let mut seen = BTreeSet::new();
    names.map(str::to_ascii_lowercase).position(|name| !seen.insert(name))
}

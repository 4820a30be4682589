//! The one error that people see for what they sent: where it is, what it was, what is accepted.
//!
//! Parsers → **ApiError** → REST (`{"error": …}`), `meshctl`.
//!
//! Invariant: path, offending value and accepted values are always filled; the value is cut to a bounded size.
//! Not here: HTTP status codes (the server maps [`Reason`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest offending value that is repeated in an error, in bytes of JSON.
const VALUE_MAX: usize = 256;

/// Why a request was refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Not JSON, or not one JSON object.
    Malformed,
    /// A field that no version of this kind has.
    UnknownField,
    /// A kind that is not known.
    UnknownKind,
    /// A field that must be there is not.
    MissingField,
    /// A value of another JSON type.
    WrongType,
    /// A number, length or count outside its range.
    OutOfRange,
    /// Text that is not of the accepted form.
    BadFormat,
    /// Two entries that must differ don't, or two fields exclude each other.
    Conflict,
    /// Known, planned, and not built: refused so that nobody relies on what does nothing.
    NotBuiltYet,
    /// The object is not there.
    NotFound,
    /// The object changed since it was read.
    Stale,
    /// Somebody else owns the name.
    Owned,
    /// A bounded resource (virtual addresses, a request's size) is used up.
    Exhausted,
    /// No token, or none that is valid.
    Unauthenticated,
    /// The token's role does not allow it.
    Forbidden,
    /// The server cannot do it now.
    Unavailable,
    /// It was there and is forgotten: a revision that was compacted away.
    Gone,
    /// Too much of it in too short a time.
    TooMany,
}

/// A refusal: where, what, and what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Why, for programs.
    pub reason: Reason,
    /// Where in the object, as `spec.ports[0].port`; empty: the object itself.
    pub path: String,
    /// What stood there; `null` where nothing did.
    pub value: Value,
    /// What is accepted there.
    pub accepted: String,
    /// The whole of it as one sentence.
    pub message: String,
}

impl ApiError {
    /// An error at `path` with a message made from its parts.
    pub fn new(reason: Reason, path: impl Into<String>, value: Value, accepted: impl Into<String>) -> Self {
        let (path, accepted, value) = (path.into(), accepted.into(), cut(value));
        let place = if path.is_empty() { "the object" } else { path.as_str() };
        let message = match reason {
            Reason::UnknownField => format!("{place}: unknown field; accepted: {accepted}"),
            Reason::MissingField => format!("{place}: missing; accepted: {accepted}"),
            Reason::NotBuiltYet => format!("{place}: not built yet; accepted: {accepted}"),
            Reason::NotFound => format!("{place}: not found; accepted: {accepted}"),
            _ => format!("{place}: {value} is not accepted; accepted: {accepted}"),
        };
        Self { reason, path, value, accepted, message }
    }

    /// The same error with its own sentence.
    #[must_use]
    pub fn saying(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

/// Repeats what was sent only as far as it helps.
fn cut(value: Value) -> Value {
    let text = value.to_string();
    if text.len() <= VALUE_MAX {
        return value;
    }
    let mut end = VALUE_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Value::String(format!("{}…", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut_on_a_character() {
        let error = ApiError::new(Reason::BadFormat, "a", Value::String("ä".repeat(4000)), "x");
        assert!(error.value.as_str().is_some_and(|v| v.len() <= VALUE_MAX + 3 && v.ends_with('…')));
    }

    #[test]
    fn the_shape_is_the_documented_one() {
        let error = ApiError::new(Reason::OutOfRange, "spec.ports[0].port", 70_000.into(), "1..=65535");
        assert_eq!(
            serde_json::to_value(&error).unwrap(),
            serde_json::json!({
                "reason": "out_of_range", "path": "spec.ports[0].port", "value": 70000, "accepted": "1..=65535",
                "message": "spec.ports[0].port: 70000 is not accepted; accepted: 1..=65535",
            })
        );
    }
}

//! What a request must be besides its path: method, headers, parameters of the query.
//!
//! A header that stands in several lines matches where one of them does; of a parameter that stands twice the first
//! counts. Parameters are compared after percent-decoding, without decoding them anywhere.
//!
//! Invariant: deciding allocates nothing, and takes time in proportion to the head.

use std::fmt;

use crate::head::Head;

/// A regular expression that must match the whole value.
#[derive(Clone)]
pub struct Pattern(regex::bytes::Regex);

impl Pattern {
    /// Compiles it; `None`: it cannot be, within mesh-api's bound.
    pub fn new(text: &str) -> Option<Self> {
        let whole = format!("^(?:{text})$");
        let limit = mesh_api::resource::REGEX_BYTES * 2;
        let built = regex::bytes::RegexBuilder::new(&whole).size_limit(limit).dfa_size_limit(limit).build();
        built.ok().map(Self)
    }

    /// Does it match all of the value?
    pub fn holds(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }

    /// As it is compiled.
    pub fn text(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What a value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// This, byte by byte.
    Exact(Box<str>),
    /// What the expression matches.
    Regex(Pattern),
}

/// A header or a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldMatch {
    /// Its name.
    pub name: Box<str>,
    /// Its value.
    pub value: ValueMatch,
}

/// All of it must hold. Empty: every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// `None`: any.
    pub method: Option<Box<str>>,
    /// Headers, by name in any case.
    pub headers: Box<[FieldMatch]>,
    /// Parameters of the query.
    pub query: Box<[FieldMatch]>,
}

impl Condition {
    /// Every request?
    pub fn is_empty(&self) -> bool {
        self.method.is_none() && self.headers.is_empty() && self.query.is_empty()
    }

    /// The Gateway API's order among those of one path: a method, then more headers, then more parameters.
    /// Smaller comes first.
    pub(super) fn rank(&self) -> (bool, usize, usize) {
        (self.method.is_none(), usize::MAX - self.headers.len(), usize::MAX - self.query.len())
    }

    /// Is the request one of these?
    pub fn holds(&self, head: &impl Head) -> bool {
        self.method.as_deref().is_none_or(|method| method == head.method())
            && self.headers.iter().all(|field| head.any_header(&field.name, &mut |value| field.is(value)))
            && self.query.iter().all(|field| field.in_query(head.query().unwrap_or_default()))
    }
}

impl FieldMatch {
    fn is(&self, value: &[u8]) -> bool {
        match &self.value {
            ValueMatch::Exact(exact) => exact.as_bytes() == value,
            ValueMatch::Regex(pattern) => pattern.holds(value),
        }
    }

    fn in_query(&self, query: &str) -> bool {
        let mut parts = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
        let named = |(name, _): &(&str, &str)| decoded(name).eq(self.name.bytes());
        let Some((_, value)) = parts.find(named) else { return false };
        match &self.value {
            ValueMatch::Exact(exact) => decoded(value).eq(exact.bytes()),
            // Rarely anything is encoded, and what is must be put together to be matched.
            ValueMatch::Regex(pattern) if value.contains('%') => {
                pattern.holds(&decoded(value).collect::<Vec<u8>>())
            }
            ValueMatch::Regex(pattern) => pattern.holds(value.as_bytes()),
        }
    }
}

/// The bytes that percent-encoded text means. What is no encoding means itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, length) = match rest {
            [] => return None,
            [b'%', high, low, ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => (b'%', 1),
            },
            [byte, ..] => (*byte, 1),
        };
        rest = &rest[length..];
        Some(byte)
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Request;
    use super::*;

    fn exact(name: &str, value: &str) -> FieldMatch {
        FieldMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }
    }

    fn regex(name: &str, text: &str) -> FieldMatch {
        FieldMatch { name: name.into(), value: ValueMatch::Regex(Pattern::new(text).unwrap()) }
    }

    #[track_caller]
    fn check(field: FieldMatch, query: &str, want: bool) {
        let condition = Condition { query: [field].into(), ..Condition::default() };
        let request = Request { query, ..Request::get("a", "/") };
        assert_eq!(condition.holds(&request), want, "{query}");
    }

    #[test]
    fn parameters_are_compared_as_they_are_meant() {
        check(exact("a", "1"), "a=1", true);
        check(exact("a", "1"), "b=2&a=1&a=2", true);
        check(exact("a", "2"), "a=1&a=2", false);
        check(exact("a", ""), "a", true);
        check(exact("a", ""), "", false);
        check(exact("a", "x y"), "%61=x%20y", true);
        check(exact("a", "100%"), "a=100%", true);
        check(exact("a", "%zz"), "a=%zz", true);
        check(exact("a", "b=c"), "a=b=c", true);
        check(regex("a", "[0-9]+"), "a=17", true);
        check(regex("a", "[0-9]+"), "a=17x", false);
        check(regex("a", "x|y"), "a=xy", false);
        check(regex("a", "1 2"), "a=1%202", true);
    }

    #[test]
    fn headers_match_by_any_line_of_the_name() {
        let headers: &[(&str, &str)] = &[("X-Version", "1"), ("x-version", "2")];
        let request = Request { headers, ..Request::get("a", "/") };
        let holds =
            |field: FieldMatch| Condition { headers: [field].into(), ..Condition::default() }.holds(&request);
        assert!(holds(exact("x-VERSION", "1")) && holds(exact("x-version", "2")));
        assert!(!holds(exact("x-version", "3")) && !holds(exact("x-other", "")));
        assert!(holds(regex("x-version", "[12]")) && !holds(regex("x-version", "")));
    }

    #[test]
    fn a_method_is_compared_with_its_case() {
        let of = |method: &str| Condition { method: Some(method.into()), ..Condition::default() };
        let request = Request::get("a", "/");
        assert!(of("GET").holds(&request) && !of("get").holds(&request) && !of("POST").holds(&request));
    }

    #[test]
    fn an_expression_that_would_be_too_large_is_none() {
        assert!(Pattern::new("a{1000}{1000}").is_none() && Pattern::new("(").is_none());
    }
}

//! Paths of HTTP requests as policies see them: one form for what two servers may read alike, and none for what
//! they may read differently.
//!
//! request's path ──[`normal`]──▶ the form that [`PathPattern`]s are compared with, or why there is none ([`Unclear`])
//!
//! A server decides for itself whether `/a/../b`, `/a//b`, `/a%2fb`, `/a\b` and `/a;x/b` are `/b`, `/a/b` or something
//! of their own, and the request is passed on as it came. So those are not guessed at: whoever decides by paths
//! refuses them. What every server reads alike is made alike: `%41` is `A`, and `%c3` is `%C3`.
//!
//! Invariant: a path in normal form has no segment `.` or `..`, no empty one but the last, and a `%` only before two
//! hexadecimal digits in upper case that stand for a space or a byte above 127, or as `%25`.
//! Not here: the query, hosts, which rules a path is compared with (mesh-core's authorise).

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Why two servers may read a path differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// It does not begin with a slash.
    Relative,
    /// A segment is `.` or `..`.
    DotSegment,
    /// Two slashes in a row.
    EmptySegment,
    /// `\`, plain or escaped.
    Backslash,
    /// `;`, plain or escaped: parameters of a segment to some.
    Semicolon,
    /// `%2f`, `%3f` or `%23`: a separator, once decoded.
    EscapedSeparator,
    /// Decoded twice it is another path.
    EscapedTwice,
    /// `%` without two hexadecimal digits.
    BadEscape,
    /// A control character.
    Control,
    /// Its bytes are no UTF-8: among them longer forms of `/` and `.`.
    NotUtf8,
}

impl Unclear {
    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Relative => "the path does not begin with a slash",
            Self::DotSegment => "the path has a segment that is . or ..",
            Self::EmptySegment => "the path has two slashes in a row",
            Self::Backslash => "the path has a backslash",
            Self::Semicolon => "the path has a semicolon",
            Self::EscapedSeparator => "the path has an escaped separator",
            Self::EscapedTwice => "the path is escaped twice",
            Self::BadEscape => "the path has a % without two hexadecimal digits",
            Self::Control => "the path has a control character",
            Self::NotUtf8 => "the path is not UTF-8",
        }
    }
}

impl fmt::Display for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The normal form of a path without its query. Allocates only where the path has a `%`.
pub fn normal(path: &str) -> Result<Cow<'_, str>, Unclear> {
    let path = if path.contains('%') { Cow::Owned(unescaped(path)?) } else { Cow::Borrowed(path) };
    for byte in path.bytes() {
        match byte {
            b'\\' => return Err(Unclear::Backslash),
            b';' => return Err(Unclear::Semicolon),
            b'?' | b'#' => return Err(Unclear::EscapedSeparator),
            0..=0x20 | 0x7f => return Err(Unclear::Control),
            0x80.. => return Err(Unclear::NotUtf8),
            _ => {}
        }
    }
    let mut segments = path.strip_prefix('/').ok_or(Unclear::Relative)?.split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => return Err(Unclear::DotSegment),
            "" if segments.peek().is_some() => return Err(Unclear::EmptySegment),
            _ => {}
        }
    }
    Ok(path)
}

/// The path with what needs no escape decoded.
fn unescaped(path: &str) -> Result<String, Unclear> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    let escape = |at: &[u8]| Some(digit(at.first().copied())? << 4 | digit(at.get(1).copied())?);
    let bytes = path.as_bytes();
    let (mut out, mut decoded) = (String::with_capacity(path.len()), Vec::new());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        if byte != b'%' {
            out.push(char::from(byte));
            decoded.push(byte);
            continue;
        }
        let byte = escape(&bytes[at..]).ok_or(Unclear::BadEscape)? as u8;
        at += 2;
        decoded.push(byte);
        match byte {
            b'/' | b'?' | b'#' => return Err(Unclear::EscapedSeparator),
            b'\\' => return Err(Unclear::Backslash),
            b';' => return Err(Unclear::Semicolon),
            b'%' if escape(&bytes[at..]).is_some() || bytes.get(at) == Some(&b'%') => {
                return Err(Unclear::EscapedTwice);
            }
            0..=0x1f | 0x7f => return Err(Unclear::Control),
            // Writing to a String cannot fail.
            b'%' | b' ' | 0x80.. => drop(write!(out, "%{byte:02X}")),
            plain => out.push(char::from(plain)),
        }
    }
    if str::from_utf8(&decoded).is_err() { Err(Unclear::NotUtf8) } else { Ok(out) }
}

/// What paths a term of a policy matches: a path, one with `{name}` in the place of segments, either with `/*` or
/// `/{**}` at its end for whatever follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern {
    segments: Box<[Segment]>,
    /// Whatever follows, at least a slash.
    rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Is(Box<str>),
    /// Any one that is not empty.
    Any,
}

impl PathPattern {
    /// What is accepted, in words.
    pub const ACCEPTED: &str = "a path such as /users, /static/* (whatever is below) or /users/{id}/orders ({} is one \
                                segment, {**} at the end the rest), in its normal form: no . or .. segment, no //, \
                                no %XX for what can stand plainly";

    /// Reads one; `None`: not of this form.
    pub fn parse(text: &str) -> Option<Self> {
        let below = text.strip_suffix("/*").or_else(|| text.strip_suffix("/{**}"));
        let fixed = below.unwrap_or(text);
        let segments = match fixed.strip_prefix('/') {
            Some(path) => path.split('/').map(Segment::parse).collect::<Option<_>>()?,
            None if below.is_some() && fixed.is_empty() => Box::default(),
            None => return None,
        };
        let pattern = Self { segments, rest: below.is_some() };
        // What stands there literally is compared with normal forms.
        let sample = text.replace(['{', '}', '*'], "x");
        (normal(&sample).is_ok_and(|normal| normal == sample)).then_some(pattern)
    }

    /// Does a path in normal form match? `loosely`: without regard to case and to a slash at the end, as some servers
    /// read paths; for rules that deny.
    pub fn matches(&self, path: &str, loosely: bool) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let (mut path, mut segments) = (path, &self.segments[..]);
        if loosely {
            path = path.strip_suffix('/').unwrap_or(path);
            if let [before @ .., Segment::Is(last)] = segments
                && last.is_empty()
                && !before.is_empty()
            {
                segments = before;
            }
        }
        let mut parts = path.split('/');
        for segment in segments {
            let Some(part) = parts.next() else { return false };
            let same = match segment {
                Segment::Any => !part.is_empty(),
                Segment::Is(text) if loosely => part.eq_ignore_ascii_case(text),
                Segment::Is(text) => *part == **text,
            };
            if !same {
                return false;
            }
        }
        if self.rest { loosely || parts.next().is_some() } else { parts.next().is_none() }
    }
}

impl Segment {
    fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            return name.bytes().all(plain).then_some(Self::Any);
        }
        (!text.contains(['{', '}', '*'])).then(|| Self::Is(text.into()))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Is(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/{}")?,
            }
        }
        f.write_str(if self.rest { "/*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_read_alike_has_one_form() {
        for (path, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("/%61dmin", "/admin"),
            ("/%41", "/A"),
            ("/a%2Db%2e%5Fc%7e", "/a-b._c~"),
            ("/a%21%40%3a", "/a!@:"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/100%25", "/100%25"),
            ("/...", "/..."),
            ("/.well-known", "/.well-known"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(form), "{path}");
        }
    }

    #[test]
    fn what_servers_read_differently_has_none() {
        for (path, why) in [
            ("", Unclear::Relative),
            ("*", Unclear::Relative),
            ("a", Unclear::Relative),
            ("/a/../b", Unclear::DotSegment),
            ("/a/..", Unclear::DotSegment),
            ("/./a", Unclear::DotSegment),
            ("/a/%2e%2E/b", Unclear::DotSegment),
            ("/a/.%2e", Unclear::DotSegment),
            ("//a", Unclear::EmptySegment),
            ("/a//", Unclear::EmptySegment),
            ("/a\\b", Unclear::Backslash),
            ("/a%5cb", Unclear::Backslash),
            ("/a;x=1/b", Unclear::Semicolon),
            ("/a%3bx", Unclear::Semicolon),
            ("/..;/a", Unclear::Semicolon),
            ("/a%2fb", Unclear::EscapedSeparator),
            ("/a%2Fb", Unclear::EscapedSeparator),
            ("/a%3fb", Unclear::EscapedSeparator),
            ("/a%23", Unclear::EscapedSeparator),
            ("/a%252fb", Unclear::EscapedTwice),
            ("/%2561", Unclear::EscapedTwice),
            ("/a%25%32%66", Unclear::EscapedTwice),
            ("/a%", Unclear::BadEscape),
            ("/a%4", Unclear::BadEscape),
            ("/a%zz", Unclear::BadEscape),
            ("/a%00", Unclear::Control),
            ("/a%0d%0a", Unclear::Control),
            ("/a%7f", Unclear::Control),
            ("/a%c0%af", Unclear::NotUtf8),
            ("/%ff", Unclear::NotUtf8),
        ] {
            assert_eq!(normal(path), Err(why), "{path}");
        }
    }

    #[track_caller]
    fn check(pattern: &str, exactly: &[&str], loosely: &[&str], never: &[&str]) {
        let read = PathPattern::parse(pattern).unwrap_or_else(|| panic!("{pattern}"));
        for path in exactly {
            assert!(read.matches(path, false) && read.matches(path, true), "{pattern} {path}");
        }
        for path in loosely {
            assert!(!read.matches(path, false) && read.matches(path, true), "{pattern} {path}");
        }
        for path in never {
            assert!(!read.matches(path, false) && !read.matches(path, true), "{pattern} {path}");
        }
    }

    #[test]
    fn patterns_match_whole_segments() {
        check("/", &["/"], &[], &["/a"]);
        check("/admin", &["/admin"], &["/admin/", "/ADMIN"], &["/admin/x", "/adminx", "/", "*"]);
        check("/a/", &["/a/"], &["/a", "/A/"], &["/a/b", "/"]);
        check("/static/*", &["/static/", "/static/a/b"], &["/static", "/Static/a"], &["/staticx", "/"]);
        check("/*", &["/", "/a", "/a/b"], &[], &["*", ""]);
        check("/{**}", &["/", "/a"], &[], &[]);
        check("/users/{id}", &["/users/7"], &["/users/7/", "/USERS/7"], &["/users/", "/users/7/orders"]);
        check("/users/{}/orders", &["/users/7/orders"], &["/users/7/orders/"], &["/users//orders", "/users"]);
        check("/u/{id}/{**}", &["/u/7/", "/u/7/a/b"], &["/u/7"], &["/u/"]);
    }

    #[test]
    fn a_pattern_is_in_normal_form() {
        for bad in [
            "", "a", "*", "/a*", "/*/b", "/a/**", "/{a", "/a{b}", "/a//b", "/a/../b", "/%61", "/a%2fb",
            "/a?b", "/é", "/{a/b}", "//*", "/a;b",
        ] {
            assert_eq!(PathPattern::parse(bad), None, "{bad}");
        }
        for (text, shown) in
            [("/users/{id}/x", "/users/{}/x"), ("/a/{**}", "/a/*"), ("/%C3%A9", "/%C3%A9"), ("/*", "/*")]
        {
            assert_eq!(PathPattern::parse(text).unwrap().to_string(), shown);
        }
    }
}

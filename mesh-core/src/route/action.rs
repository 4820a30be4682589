//! What a rule does with its requests and their responses on their way.
//!
//! Edits of a rule and of the backend that was chosen are put together when the table is built, so that a head is
//! written in one pass.
//!
//! Not here: writing heads (http1), trying again (the agent's path).

use std::time::Duration;

use crate::snapshot::ServiceId;

/// Name and value.
pub type Line = (Box<str>, Box<str>);

/// Changes of a head's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names whose lines are left out, any case.
    drops: Box<[Box<str>]>,
    /// Lines that are written behind the others.
    lines: Box<[Line]>,
}

impl HeaderEdits {
    /// Set, then add, then remove, as the Gateway API has it.
    pub fn new(set: Vec<Line>, add: Vec<Line>, remove: Vec<Box<str>>) -> Self {
        let drops = set.iter().map(|(name, _)| name.clone()).chain(remove).collect();
        Self { drops, lines: set.into_iter().chain(add).collect() }
    }

    /// These edits, and then those.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let kept = self.lines.iter().filter(|(name, _)| !next.drops(name.as_bytes()));
        Self {
            drops: self.drops.iter().chain(&next.drops).cloned().collect(),
            lines: kept.chain(&next.lines).cloned().collect(),
        }
    }

    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.drops.is_empty() && self.lines.is_empty()
    }

    /// Are lines of this name left out?
    pub fn drops(&self, name: &[u8]) -> bool {
        self.drops.iter().any(|drop| drop.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Names whose lines are left out.
    pub fn dropped(&self) -> impl Iterator<Item = &str> {
        self.drops.iter().map(|name| &**name)
    }

    /// Lines that are written behind the others.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Bytes by which a head may grow.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|(name, value)| name.len() + value.len() + 4).sum()
    }
}

/// Edits of both heads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Of the request's.
    pub request: HeaderEdits,
    /// Of the response's.
    pub response: HeaderEdits,
}

impl Edits {
    /// These edits, and then those.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        Self { request: self.request.then(&next.request), response: self.response.then(&next.response) }
    }

    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// What takes the place of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// Of the whole.
    Full(Box<str>),
    /// Of the prefix that was matched; without a slash at its end.
    Prefix(Box<str>),
}

impl PathEdit {
    /// In place of the prefix: `/` and nothing are the same.
    pub fn prefix(text: &str) -> Self {
        Self::Prefix(text.trim_end_matches('/').into())
    }

    /// The new path, in two parts, of a path whose first `matched` bytes are the prefix (without a slash at its end).
    /// Together they are never empty.
    pub fn apply<'a>(&'a self, path: &'a str, matched: usize) -> (&'a str, &'a str) {
        match self {
            Self::Full(path) if path.is_empty() => ("/", ""),
            Self::Full(path) => (path, ""),
            Self::Prefix(prefix) => match (&**prefix, path.get(matched..).unwrap_or_default()) {
                ("", "") => ("/", ""),
                parts => parts,
            },
        }
    }
}

/// What the backend sees in place of what the client asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Host.
    pub host: Option<Box<str>>,
    /// Path.
    pub path: Option<PathEdit>,
}

/// Where clients are sent. `None`: as they had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// Host.
    pub host: Option<Box<str>>,
    /// Path.
    pub path: Option<PathEdit>,
    /// Port.
    pub port: Option<u16>,
    /// Status of the answer.
    pub status: u16,
}

impl Redirect {
    /// Appends where a request for `http://<authority><path>?<query>` is sent. Of the port the Gateway API says: the
    /// one that is set, else the scheme's where a scheme is set, else the client's; a scheme's own port is left out.
    pub fn write(
        &self,
        (authority, path, query): (&str, &str, Option<&str>),
        matched: usize,
        out: &mut Vec<u8>,
    ) {
        let scheme = self.scheme.as_deref().unwrap_or("http");
        let (host, port) = split(authority);
        let own = if scheme == "https" { 443 } else { 80 };
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(_)) => None,
            (None, None) => port,
        };
        let (first, rest) = self.path.as_ref().map_or((path, ""), |edit| edit.apply(path, matched));
        for part in [scheme, "://", self.host.as_deref().unwrap_or(host)] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(port) = port.filter(|port| *port != own) {
            out.extend_from_slice(format!(":{port}").as_bytes());
        }
        out.extend_from_slice(first.as_bytes());
        out.extend_from_slice(rest.as_bytes());
        if let Some(query) = query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
    }
}

/// Host and port of an authority.
fn split(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

/// An answer in place of any backend's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Its status.
    pub status: u16,
    /// What its body is.
    pub content_type: Option<Box<str>>,
    /// Its body.
    pub body: Box<str>,
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// Statuses.
    pub codes: Box<[u16]>,
    /// Tries after the first.
    pub attempts: u8,
    /// The least time between two tries.
    pub backoff: Duration,
}

/// Who gets copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Service port; `None`: the route names one that does not exist.
    pub service: Option<ServiceId>,
    /// Of so many requests (the second) so many (the first).
    pub fraction: (u32, u32),
}

impl Mirror {
    /// Is this one of them? `random` is uniform over all values.
    pub fn takes(&self, random: u64) -> bool {
        let (numerator, denominator) = self.fraction;
        let point = (u128::from(random) * u128::from(denominator.max(1))) >> 64;
        point < u128::from(numerator)
    }
}

/// Everything that a rule does besides choosing a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// The answer, in place of any backend's.
    pub redirect: Option<Redirect>,
    /// The answer, as well.
    pub direct: Option<DirectResponse>,
    /// What the backend sees.
    pub rewrite: Rewrite,
    /// How long all tries together may take.
    pub timeout: Option<Duration>,
    /// How long one may.
    pub try_timeout: Option<Duration>,
    /// What is tried again.
    pub retry: Option<Retry>,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
}

impl Action {
    /// Does it answer in place of a backend?
    pub fn answers(&self) -> bool {
        self.redirect.is_some() || self.direct.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[(&str, &str)]) -> Vec<Line> {
        lines.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_says() {
        let check = |path: &str, prefix: &str, by: &str, want: &str| {
            let matched = prefix.trim_end_matches('/').len();
            let edit = PathEdit::prefix(by);
            let (first, rest) = edit.apply(path, matched);
            assert_eq!(format!("{first}{rest}"), want, "{path} {prefix} {by}");
        };
        // The table in the Gateway API's reference of HTTPPathModifier.
        check("/foo/bar", "/foo", "/xyz", "/xyz/bar");
        check("/foo/bar", "/foo", "/xyz/", "/xyz/bar");
        check("/foo/bar", "/foo/", "/xyz", "/xyz/bar");
        check("/foo/bar", "/foo/", "/xyz/", "/xyz/bar");
        check("/foo", "/foo", "/xyz", "/xyz");
        check("/foo/", "/foo", "/xyz", "/xyz/");
        check("/foo/bar", "/foo", "", "/bar");
        check("/foo/", "/foo", "", "/");
        check("/foo", "/foo", "", "/");
        check("/foo/", "/foo", "/", "/");
        check("/foo", "/foo", "/", "/");
        check("/a", "/", "/b", "/b/a");
        assert_eq!(PathEdit::Full("/x".into()).apply("/foo", 1), ("/x", ""));
    }

    #[test]
    fn edits_of_a_backend_come_after_the_rules() {
        let rule = HeaderEdits::new(lines(&[("a", "1"), ("b", "1")]), lines(&[("c", "1")]), vec!["d".into()]);
        let backend = HeaderEdits::new(lines(&[("A", "2")]), lines(&[("c", "2")]), vec!["B".into()]);
        let both = rule.then(&backend);
        assert_eq!(both.lines(), lines(&[("c", "1"), ("A", "2"), ("c", "2")]));
        assert!(["a", "B", "d"].iter().all(|name| both.drops(name.as_bytes())) && !both.drops(b"c"));
        assert!(HeaderEdits::default().then(&HeaderEdits::default()).is_empty());
    }

    #[test]
    fn a_redirect_says_where() {
        let none = Redirect { scheme: None, host: None, path: None, port: None, status: 302 };
        let check = |redirect: &Redirect, authority: &str, want: &str| {
            let mut out = Vec::new();
            redirect.write((authority, "/a/b", Some("q=1")), 2, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), want);
        };
        check(&none, "shop:8080", "http://shop:8080/a/b?q=1");
        check(&none, "[fd00::1]", "http://[fd00::1]/a/b?q=1");
        check(&none, "[fd00::1]:81", "http://[fd00::1]:81/a/b?q=1");
        let https = Redirect { scheme: Some("https".into()), ..none.clone() };
        check(&https, "shop:8080", "https://shop/a/b?q=1");
        let port = Redirect { port: Some(443), ..https };
        check(&port, "shop:8080", "https://shop/a/b?q=1");
        let port = Redirect { port: Some(8443), host: Some("x.example".into()), ..port };
        check(&port, "shop", "https://x.example:8443/a/b?q=1");
        let path = Redirect { path: Some(PathEdit::prefix("/z")), ..none };
        check(&path, "shop", "http://shop/z/b?q=1");
    }

    #[test]
    fn a_mirror_takes_its_share() {
        let mirror = |fraction| Mirror { service: None, fraction };
        let share = |mirror: &Mirror| (0..128u64).filter(|n| mirror.takes(n << 57)).count();
        assert_eq!([(0, 100), (25, 100), (1, 1), (100, 100)].map(|f| share(&mirror(f))), [0, 32, 128, 128]);
    }
}

//! Terms on requests, and what they are compared with.
//!
//! A rule that allows is exact: a header that is there twice must fit both times, a name that servers may take for it
//! (`_` for `-`) as well. A rule that denies takes in whatever a server might read as what it names: any case, one slash
//! more at the end of a path, one element of a list. What a request does not have, or what is no request, fails closed.
//!
//! Invariant: the request is compared as it is passed on; nothing is allocated.
//! Not here: which rules are asked in which order (authorise), the form of paths (mesh-api's `http_path`).

use mesh_api::http_path::PathPattern;

use super::{Case, Seen};
use crate::jwt::{Claims, TokenTerm};

/// What a request shows.
pub struct Request<'a> {
    /// Method, as it was sent.
    pub method: &'a str,
    /// Path as it was sent, without the query; empty for CONNECT, `*` for `OPTIONS *`.
    pub path: &'a str,
    /// Host and optional port that it is for; may be empty.
    pub authority: &'a str,
    /// Its header fields.
    pub headers: &'a dyn Headers,
    /// Of its tokens; `None`: it carries none.
    pub claims: Option<&'a Claims>,
}

impl Request<'_> {
    /// CONNECT and `OPTIONS *` have none.
    pub(super) fn has_path(&self) -> bool {
        !matches!(self.path, "" | "*")
    }
}

/// The header fields of a request.
pub trait Headers {
    /// Shows each one, in order: name and value, without white space around them.
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8]));
}

/// What is called. Matches where every kind of term that is there has a value that does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Target {
    /// Ports of the workload.
    pub ports: Box<[u16]>,
    /// Methods.
    pub methods: Box<[Box<str>]>,
    /// Paths.
    pub paths: Box<[PathPattern]>,
    /// Hosts.
    pub hosts: Box<[HostPattern]>,
}

impl Target {
    /// Are there terms on requests?
    pub(super) fn asks_requests(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.hosts.is_empty())
    }

    pub(super) fn is_at(&self, port: Option<u16>) -> bool {
        self.ports.is_empty() || port.is_some_and(|port| self.ports.contains(&port))
    }

    pub(super) fn matches(&self, closed: bool, case: &Case<'_>) -> bool {
        if !self.is_at(case.asked.port) {
            return false;
        }
        if !self.asks_requests() {
            return true;
        }
        let request = match case.asked.seen {
            Seen::Unknown => return !closed,
            Seen::Opaque => return closed,
            Seen::Request(request) => request,
        };
        let method =
            |one: &str| if closed { one.eq_ignore_ascii_case(request.method) } else { one == request.method };
        let host = || match host_of(request.authority) {
            Some(host) => self.hosts.iter().any(|pattern| pattern.matches(host)),
            None => closed,
        };
        let path = || match case.path {
            Some(path) => self.paths.iter().any(|pattern| pattern.matches(path, closed)),
            None => closed,
        };
        (self.methods.is_empty() || self.methods.iter().any(|one| method(one)))
            && (self.hosts.is_empty() || host())
            && (self.paths.is_empty() || path())
    }
}

impl TokenTerm {
    pub(super) fn holds(&self, closed: bool, seen: Seen<'_>) -> bool {
        match seen {
            Seen::Unknown => !closed,
            Seen::Opaque => closed,
            Seen::Request(request) => self.matches(closed, request.claims),
        }
    }
}

/// A host, or every host below a domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// In lower case.
    name: Box<str>,
    below: bool,
}

impl HostPattern {
    /// `shop.example`, `*.shop.example`, an address.
    pub fn new(text: &str) -> Self {
        let (name, below) = match text.strip_prefix('*') {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        Self { name: name.to_ascii_lowercase().into(), below }
    }

    fn matches(&self, host: &str) -> bool {
        if !self.below {
            return host.eq_ignore_ascii_case(&self.name);
        }
        let (host, suffix) = (host.as_bytes(), self.name.as_bytes());
        // Something must stand where the `*` is.
        let split = host.len().checked_sub(suffix.len()).filter(|at| *at > 0);
        split.is_some_and(|at| host[at..].eq_ignore_ascii_case(suffix))
    }
}

/// The host of `host[:port]`; `None`: there is none, or servers may read it differently.
fn host_of(authority: &str) -> Option<&str> {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => authority.split(':').next().unwrap_or_default(),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    (!host.is_empty() && !host.ends_with('.') && host.bytes().all(plain)).then_some(host)
}

/// What else a request has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// Header fields of a name.
    Header(HeaderTerm),
}

/// Header fields of a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderTerm {
    /// In lower case.
    pub name: Box<str>,
    /// What of them.
    pub is: HeaderValue,
}

/// What the fields of a name must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderValue {
    /// One of these.
    OneOf(Box<[Box<str>]>),
    /// Something that begins so.
    Prefix(Box<str>),
    /// There.
    Present,
    /// Not there.
    Absent,
}

impl Term {
    pub(super) fn matches(&self, closed: bool, seen: Seen<'_>) -> bool {
        let request = match seen {
            Seen::Unknown => return !closed,
            Seen::Opaque => return closed,
            Seen::Request(request) => request,
        };
        match self {
            Self::Header(header) => header.matches(closed, request.headers),
        }
    }
}

impl HeaderTerm {
    fn matches(&self, closed: bool, headers: &dyn Headers) -> bool {
        // Of its own name, of those that a server may take for it, and how many of the latter fit.
        let (mut own, mut alike, mut fit) = (0, 0, 0);
        headers.each(&mut |name, value| {
            if !is_alike(name, self.name.as_bytes()) {
                return;
            }
            alike += 1;
            own += usize::from(name.eq_ignore_ascii_case(self.name.as_bytes()));
            fit += usize::from(self.is.fits(closed, value));
        });
        match (&self.is, closed) {
            (HeaderValue::Absent, true) => own == 0,
            (HeaderValue::Absent, false) => alike == 0,
            (HeaderValue::Present, true) => alike > 0,
            (HeaderValue::Present, false) => own > 0,
            (_, true) => fit > 0,
            (_, false) => own > 0 && fit == alike,
        }
    }
}

impl HeaderValue {
    fn fits(&self, closed: bool, value: &[u8]) -> bool {
        let one = |value: &[u8]| match self {
            Self::OneOf(all) if closed => all.iter().any(|one| one.as_bytes().eq_ignore_ascii_case(value)),
            Self::OneOf(all) => all.iter().any(|one| one.as_bytes() == value),
            Self::Prefix(prefix) if closed => {
                value.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
            }
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Present | Self::Absent => true,
        };
        one(value) || closed && value.split(|b| *b == b',').any(|element| one(element.trim_ascii()))
    }
}

/// Are these one name to a server that passes headers on as variables (`X-A` and `X_A` are both `HTTP_X_A`)?
pub fn is_alike(a: &[u8], b: &[u8]) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| plain(*a) == plain(*b))
}

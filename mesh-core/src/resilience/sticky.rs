//! What of a request keeps its client at one endpoint: a header, a parameter of the query, or a cookie of ours.
//!
//! A header's or parameter's value is a key: the same value has the same endpoint on every node, by the service's Maglev
//! table. A cookie names its endpoint, so that it holds whatever comes and goes beside that.
//!
//! Invariants: pure; an endpoint that is ejected, full or gone is never insisted on; what a client sends chooses among
//! the endpoints that it could have been given anyway.
//! Not here: who is chosen then (balance).

use std::time::Duration;

use mesh_common::addr;
use mesh_common::pick::mix;

use crate::head::Head;
use crate::route::HeaderEdits;
use crate::snapshot::{Endpoint, Service};

/// What the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The value of this header.
    Header(Box<str>),
    /// The value of this parameter of the query, as it was sent.
    Query(Box<str>),
    /// A cookie.
    Cookie(Cookie),
}

/// A cookie that names an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// How long it is kept; `None`: for the browser's session.
    pub ttl: Option<Duration>,
    /// For what is below this path.
    pub path: Box<str>,
}

/// Whom a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody.
    #[default]
    Any,
    /// Whoever this key has.
    Key(u32),
    /// The endpoint at this place among those that serve.
    Place(usize),
}

impl Sticky {
    /// Whom this request asks for.
    pub fn wanted(&self, head: &impl Head, service: &Service) -> Wanted {
        match self {
            Self::Header(name) => head.header(name).map_or(Wanted::Any, key),
            Self::Query(name) => {
                let pairs =
                    head.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
                let value = pairs.into_iter().find(|(found, _)| *found == &**name);
                value.map_or(Wanted::Any, |(_, value)| key(value.as_bytes()))
            }
            Self::Cookie(cookie) => {
                let named = cookie.read(head);
                let place = |token| service.serving().iter().position(|one| self::token(one) == token);
                named.and_then(place).map_or(Wanted::Any, Wanted::Place)
            }
        }
    }

    /// What is added to the answer of this endpoint; `None`: nothing, its client knows.
    pub fn told(&self, wanted: Wanted, endpoint: u32, service: &Service) -> Option<HeaderEdits> {
        let Self::Cookie(cookie) = self else { return None };
        let place = service.serving().iter().position(|one| one.id == endpoint)?;
        if wanted == Wanted::Place(place) {
            return None;
        }
        let line = ("set-cookie".into(), cookie.write(token(&service.serving()[place])).into());
        Some(HeaderEdits::new(Vec::new(), vec![line], Vec::new()))
    }
}

impl Cookie {
    fn read(&self, head: &impl Head) -> Option<u64> {
        let mut found = None;
        head.any_header("cookie", &mut |value| {
            let pairs = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let named = pairs.filter_map(|pair| pair.strip_prefix(self.name.as_bytes())?.strip_prefix(b"="));
            for text in named {
                let token = str::from_utf8(text).ok().filter(|text| text.len() == 16);
                found = found.or_else(|| u64::from_str_radix(token?, 16).ok());
            }
            found.is_some()
        });
        found
    }

    fn write(&self, token: u64) -> String {
        let age = self.ttl.map_or_else(String::new, |ttl| format!("; Max-Age={}", ttl.as_secs()));
        format!("{}={token:016x}; Path={}{age}; HttpOnly; SameSite=Lax", self.name, self.path)
    }
}

/// One number for equal bytes: FNV-1a, mixed.
fn number(bytes: impl Iterator<Item = u8>) -> u64 {
    mix(bytes
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

fn key(value: &[u8]) -> Wanted {
    Wanted::Key((number(value.iter().copied()) >> 32) as u32)
}

/// What a cookie says of an endpoint: the same on every node, and for as long as it has its address and port.
fn token(endpoint: &Endpoint) -> u64 {
    let address = endpoint.address(false).map_or(addr::UNSPECIFIED, |at| addr::from_ip(at.ip()));
    let port = endpoint.port.to_be_bytes();
    number(address.iter().flat_map(|word| word.to_ne_bytes()).chain(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Asked {
        query: &'static str,
        cookies: Vec<String>,
    }

    impl Head for Asked {
        fn method(&self) -> &'static str {
            "GET"
        }

        fn path(&self) -> &'static str {
            "/"
        }

        fn query(&self) -> Option<&str> {
            Some(self.query)
        }

        fn authority(&self) -> &'static str {
            ""
        }

        fn header(&self, name: &str) -> Option<&[u8]> {
            (name == "x-user").then_some(b"ada")
        }

        fn any_header(&self, _: &str, holds: &mut dyn FnMut(&[u8]) -> bool) -> bool {
            self.cookies.iter().any(|line| holds(line.as_bytes()))
        }
    }

    /// A service whose endpoints have ids from 1 on, and different ports.
    fn of(count: u32) -> Service {
        let ids: Vec<(u32, u32)> = (1..=count).map(|id| (id, 1)).collect();
        let mut service = crate::balance::tests::service(&ids);
        let ported = |endpoint: &Endpoint| Endpoint { port: endpoint.id as u16, ..endpoint.clone() };
        service.endpoints = service.endpoints.iter().map(ported).collect();
        service
    }

    fn asked(query: &'static str, cookies: &[&str]) -> Asked {
        Asked { query, cookies: cookies.iter().map(|&line| line.to_owned()).collect() }
    }

    fn cookie() -> Sticky {
        Sticky::Cookie(Cookie { name: "at".into(), ttl: Some(Duration::from_mins(1)), path: "/".into() })
    }

    #[test]
    fn equal_values_have_equal_keys_and_none_has_none() {
        let service = of(2);
        let wanted = |sticky: &Sticky, query| sticky.wanted(&asked(query, &[]), &service);
        let user = Sticky::Query("user".into());
        assert_eq!(wanted(&user, "a=1&user=ada"), wanted(&user, "user=ada&user=bob"));
        assert_ne!(wanted(&user, "user=ada"), wanted(&user, "user=bob"));
        assert_eq!(wanted(&user, "users=ada&b"), Wanted::Any);
        assert_eq!(wanted(&Sticky::Header("x-user".into()), ""), wanted(&user, "user=ada"));
        assert_eq!(wanted(&Sticky::Header("x-other".into()), ""), Wanted::Any);
    }

    #[test]
    fn a_cookie_comes_back_to_its_endpoint_and_is_told_once() {
        let service = of(3);
        let told = cookie().told(Wanted::Any, 2, &service).unwrap();
        let line = told.lines()[0].1.to_string();
        assert!(line.ends_with("; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"), "{line}");
        let pair = line.split(';').next().unwrap();
        let back = cookie().wanted(&asked("", &["b=c", &format!("x=1; {pair}")]), &service);
        assert_eq!(back, Wanted::Place(1));
        assert_eq!(cookie().told(back, 2, &service), None);
        assert!(cookie().told(back, 3, &service).is_some(), "it has answered in its place");
        for strange in ["at=", "at=zz", "at=00000000000000000000", "atx=1", "at", "=;;="] {
            assert_eq!(cookie().wanted(&asked("", &[strange]), &service), Wanted::Any, "{strange}");
        }
        let gone = of(1);
        assert_eq!(cookie().wanted(&asked("", &[pair]), &gone), Wanted::Any);
    }
}

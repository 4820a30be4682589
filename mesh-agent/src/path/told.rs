//! What the endpoint of a request is told of its tokens and by external authorisation, and what is taken out of the
//! request for that.
//!
//! authorise ──good tokens──▶ **told** ──▶ { HTTP/1: the head is written once more; HTTP/2: its fields are changed }
//!
//! Invariant: a field that the mesh tells of a token is in no request that came with it, under its own name or one that a
//! server may take for it (`_` for `-`).

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::authorise::request::is_alike;
use mesh_core::authorise::{Claims, Headers};
use mesh_core::ext_authz::Grant;
use mesh_core::http1::{RequestEdits, RequestHead, write_request};
use mesh_core::jwt::Provider;
use mesh_core::route::Line;

/// Changes of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Names that nobody but the mesh may say, in lower case.
    pub claimed: Vec<Box<str>>,
    /// Names of headers that are not for the endpoint: they carry tokens, or it was asked to be so.
    tokens: Vec<Box<str>>,
    /// What it is told.
    fields: Vec<Line>,
}

impl Told {
    /// What follows from these tokens, of these providers.
    pub fn of(providers: &[Arc<Provider>], claims: &Claims) -> Self {
        let claimed = providers.iter().flat_map(|provider| &provider.claims_to_headers);
        let mut told =
            Self { claimed: claimed.map(|(_, header)| header.clone()).collect(), ..Self::default() };
        let Claims::Good(tokens) = claims else { return told };
        for token in tokens {
            if !token.provider.forward {
                told.tokens.extend(token.provider.headers.iter().map(|(header, _)| header.clone()));
            }
            told.fields.extend(token.headers().map(|(name, value)| (name.into(), (&*value).into())));
        }
        told
    }

    /// What a provider of external authorisation says, after what was told before.
    pub fn grant(&mut self, grant: Grant) {
        let Grant { set, add, remove, .. } = grant;
        self.claimed.extend(set.iter().map(|(name, _)| name.clone()));
        let gone = |name: &str| {
            let same = |one: &str| is_alike(name.as_bytes(), one.as_bytes());
            set.iter().any(|(one, _)| same(one)) || remove.iter().any(|one| same(one))
        };
        self.fields.retain(|(name, _)| !gone(name));
        self.fields.extend(set.into_iter().chain(add));
        self.tokens.extend(remove);
    }

    /// Lines that the endpoint gets beside the request's own.
    pub fn lines(&self) -> &[Line] {
        &self.fields
    }

    fn removed(&self) -> impl Iterator<Item = &str> {
        self.claimed.iter().chain(&self.tokens).map(|name| &**name)
    }

    /// The head of HTTP/1 with them. Whether its connection stays is said as it was.
    pub fn write(&self, mut head: RequestHead<'_>) -> Vec<u8> {
        let close = !head.keep_alive;
        for name in self.removed() {
            head.remove(name);
        }
        let mut lines = Vec::new();
        for (name, value) in &self.fields {
            for part in [&**name, ": ", value, "\r\n"] {
                lines.extend_from_slice(part.as_bytes());
            }
        }
        let mut out = Vec::new();
        write_request(&head, &RequestEdits { lines: &lines, close, ..RequestEdits::default() }, &mut out);
        out
    }

    /// Makes them in the fields of a request of HTTP/2.
    pub fn edit(&self, fields: &mut HeaderMap) {
        let taken: Vec<HeaderName> = fields
            .keys()
            .filter(|own| self.removed().any(|name| is_alike(own.as_str().as_bytes(), name.as_bytes())))
            .cloned()
            .collect();
        for name in taken {
            fields.remove(name);
        }
        for (name, value) in &self.fields {
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(&**name), HeaderValue::from_bytes(value.as_bytes()))
            {
                fields.append(name, value);
            }
        }
    }
}

/// All headers but those of some names.
pub struct Without<'a> {
    /// All.
    pub all: &'a dyn Headers,
    /// But these, in lower case.
    pub names: &'a [Box<str>],
}

impl Headers for Without<'_> {
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
        self.all.each(&mut |name, value| {
            if !self.names.iter().any(|one| is_alike(name, one.as_bytes())) {
                show(name, value);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::http1::{Limits, parse_request};

    #[test]
    fn a_head_of_http1_is_written_with_what_is_told_and_its_connection_ends_as_it_would_have() {
        let told = Told {
            claimed: vec!["x-roles".into()],
            tokens: vec!["authorization".into()],
            fields: vec![("x-roles".into(), "admin".into())],
        };
        let written = |connection: &str| {
            let head =
                format!("GET / HTTP/1.1\r\nHost: a\r\nX_Roles: me\r\nAuthorization: b\r\n{connection}\r\n");
            let head = parse_request(head.as_bytes(), &Limits::default()).unwrap();
            String::from_utf8(told.write(head)).unwrap()
        };
        assert_eq!(written(""), "GET / HTTP/1.1\r\nHost: a\r\nx-roles: admin\r\n\r\n");
        let close = "GET / HTTP/1.1\r\nHost: a\r\nx-roles: admin\r\nconnection: close\r\n\r\n";
        assert_eq!(written("Connection: close\r\n"), close, "a copy says so");
    }

    #[test]
    fn what_is_claimed_is_replaced_in_any_version_of_http() {
        let told = Told {
            claimed: vec!["x-roles".into(), "x-user".into()],
            tokens: vec!["authorization".into()],
            fields: vec![("x-roles".into(), "admin".into())],
        };
        let mut fields = HeaderMap::new();
        for (name, value) in [("x-roles", "a"), ("x_user", "b"), ("authorization", "c"), ("x-role", "d")] {
            fields.append(name, HeaderValue::from_static(value));
        }
        told.edit(&mut fields);
        assert_eq!(
            (fields.len(), &fields["x-roles"], &fields["x-role"]),
            (2, &"admin".parse().unwrap(), &"d".parse().unwrap())
        );
    }
}

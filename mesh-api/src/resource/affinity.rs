//! What keeps a client at its endpoint: `TrafficPolicy.spec.affinity`.
//!
//! Not here: how an endpoint is found by it (mesh-core's sticky; by source: the kernel's rules).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;

use super::traffic_policy::{some_text, text};
use crate::error::{ApiError, Reason};
use crate::walk::At;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Affinity {
    /// By the workload that calls, for so long after its last connection. On the kernel path.
    #[serde(serialize_with = "text")]
    Timeout(Duration),
    /// By the value of this header, lower case.
    Header(String),
    /// By the value of this parameter of the query.
    Query(String),
    /// By a cookie that the proxy sets.
    Cookie(AffinityCookie),
}

/// A cookie that names an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffinityCookie {
    /// Its name.
    pub name: String,
    /// How long a browser keeps it; `None`: for its session.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_text")]
    pub ttl: Option<Duration>,
    /// For what is below this path.
    pub path: String,
}

const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24 * 365);
/// Most bytes of a name or a path.
const MOST: usize = 128;

impl Affinity {
    /// Is it found out of a request?
    pub fn asks_requests(&self) -> bool {
        !matches!(self, Self::Timeout(_))
    }

    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["timeout", "header", "query", "cookie"], &[])?;
        let header = |at: At<'_>| at.header_name().map(|name| Self::Header(name.to_ascii_lowercase()));
        let all = [
            fields.read("timeout", |at| at.duration(TIMEOUT).map(Self::Timeout))?,
            fields.read("header", header)?,
            fields.read("query", |at| token(&at, "a parameter's name").map(Self::Query))?,
            fields.read("cookie", |at| AffinityCookie::read(&at).map(Self::Cookie))?,
        ];
        let mut all = all.into_iter().flatten();
        match (all.next(), all.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(at.refuse(Reason::Conflict, "one of timeout, header, query, cookie")),
        }
    }
}

impl AffinityCookie {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["name", "ttl", "path"], &[])?;
        let path = fields.read("path", |at| {
            let path = at.text("a path such as /shop")?;
            let plain = |c: char| c.is_ascii_graphic() && c != ';';
            let good = path.starts_with('/') && path.len() <= MOST && path.chars().all(plain);
            if good { Ok(path.to_owned()) } else { Err(at.refuse(Reason::BadFormat, "a path such as /shop")) }
        })?;
        Ok(Self {
            name: token(&fields.need("name", "the cookie's name")?, "a cookie's name")?,
            ttl: fields.read("ttl", |at| at.duration(TTL))?,
            path: path.unwrap_or_else(|| "/".to_owned()),
        })
    }
}

/// A token of HTTP (RFC 9110 section 5.6.2), which a cookie's name is.
fn token(at: &At<'_>, accepted: &str) -> Result<String, ApiError> {
    let text = at.text(accepted)?;
    let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if text.is_empty() || text.len() > MOST || !text.chars().all(good) {
        return Err(at.refuse(Reason::BadFormat, accepted));
    }
    Ok(text.to_owned())
}

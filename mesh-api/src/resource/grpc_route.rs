//! `GRPCRoute`, in the Gateway API's own shape, attached to Services (GAMMA): which calls go to which weighted
//! backends, and what becomes of them on their way.
//!
//! Session persistence and extension filters are refused by name. The limits on list lengths are the Gateway API's.
//! Not here: which rule wins (mesh-core's route), and which route where an `HTTPRoute` is for the same port (compile).

use serde::Serialize;

use super::http_filter::{HttpFilter, Of};
use super::{BackendRef, FieldMatch, MatchKind, ParentRef};
use crate::error::{ApiError, Reason};
use crate::name::{HOSTNAME, LABEL};
use crate::walk::At;

/// What a `GRPCRoute` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteSpec {
    /// Services whose calls it routes; at least one.
    pub parent_refs: Vec<ParentRef>,
    /// Hosts that it is for; none: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// At least one.
    pub rules: Vec<GrpcRule>,
}

/// What becomes of calls that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRule {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One of them must hold; none: every call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcMatch>,
    /// What is done to calls and their answers, whatever the backend: header edits and mirrors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpFilter>,
    /// Where calls go, by weight; none: they fail with `UNAVAILABLE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
}

/// All of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GrpcMatch {
    /// What is called; `None`: anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethod>,
    /// Each of them, by the names of headers, any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FieldMatch>,
}

/// What is called; service or method or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GrpcMethod {
    /// How both are compared.
    #[serde(rename = "type")]
    pub kind: MatchKind,
    /// `package.Service`; `None`: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its method; `None`: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

impl GrpcRouteSpec {
    pub(super) fn read(at: &At<'_>, namespace: &str) -> Result<Self, ApiError> {
        let fields = at.object(&["parentRefs", "hostnames", "rules"], &["useDefaultGateways"])?;
        let parents = fields.need("parentRefs", "a list of 1..=32 Services")?.list(1..=32)?;
        let rules = fields.need("rules", "a list of 1..=16 rules")?.list(1..=16)?;
        Ok(Self {
            parent_refs: parents
                .iter()
                .map(|at| ParentRef::read_any(at, namespace))
                .collect::<Result<_, _>>()?,
            hostnames: fields.each("hostnames", 0..=16, |at| at.checked(&HOSTNAME))?,
            rules: rules.iter().map(GrpcRule::read).collect::<Result<_, _>>()?,
        })
    }

    /// Every service that calls, or copies of them, go to.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        self.rules.iter().flat_map(|rule| {
            rule.backend_refs.iter().chain(rule.filters.iter().filter_map(HttpFilter::mirror))
        })
    }
}

impl GrpcRule {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["name", "matches", "filters", "backendRefs"], &["sessionPersistence"])?;
        Ok(Self {
            name: fields.read("name", |at| at.checked(&LABEL))?,
            matches: fields.each("matches", 0..=64, |at| GrpcMatch::read(&at))?,
            filters: fields.read("filters", |at| HttpFilter::each(&at, Of::Grpc))?.unwrap_or_default(),
            backend_refs: fields.each("backendRefs", 0..=16, |at| BackendRef::read_http(&at))?,
        })
    }
}

impl GrpcMatch {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["method", "headers"], &[])?;
        Ok(Self {
            method: fields.read("method", |at| GrpcMethod::read(&at))?,
            headers: FieldMatch::headers(&fields)?,
        })
    }
}

/// A name that protobuf allows, or several joined by dots.
fn is_name(text: &str, dots: bool) -> bool {
    let part = |part: &str| {
        !part.starts_with(|c: char| c.is_ascii_digit())
            && !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let parts = text.strip_prefix('.').filter(|_| dots).unwrap_or(text);
    text.len() <= 1024 && if dots { parts.split('.').all(part) } else { part(parts) }
}

impl GrpcMethod {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["type", "service", "method"], &[])?;
        let kind = fields.read("type", |at| at.one_of(MatchKind::WORDS, &[]))?.unwrap_or(MatchKind::Exact);
        let named = |field: &str, dots: bool, accepted: &str| {
            fields.read(field, |at| match kind {
                MatchKind::Exact => at.parsed(accepted, |text| is_name(text, dots).then(|| text.to_owned())),
                MatchKind::RegularExpression => at.expression(),
            })
        };
        let method = Self {
            kind,
            service: named("service", true, "the name of a service, as package.Service")?,
            method: named("method", false, "the name of a method: letters, digits and '_'")?,
        };
        if method.service.is_none() && method.method.is_none() {
            return Err(at.refuse(Reason::MissingField, "a service or a method, or both"));
        }
        Ok(method)
    }
}

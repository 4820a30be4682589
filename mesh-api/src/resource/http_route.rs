//! `HTTPRoute`, in the Gateway API's own shape, attached to Services (GAMMA): hosts and paths to weighted
//! backends.
//!
//! Built: hostnames, path matches (Exact, PathPrefix), weighted backends. Filters, timeouts, retries, and
//! matches of headers, query and method are refused by name. The limits on list lengths are the Gateway API's.
//! Not here: which rule wins (mesh-core's route).

use serde::Serialize;

use crate::error::{ApiError, Reason};
use crate::name::{HOSTNAME, LABEL};
use crate::walk::At;

/// What an `HTTPRoute` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// Services whose requests it routes; at least one.
    pub parent_refs: Vec<ParentRef>,
    /// Hosts that it is for; none: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// At least one.
    pub rules: Vec<HttpRule>,
}

/// A service whose requests are routed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParentRef {
    /// Always the core group.
    group: &'static str,
    /// Always `Service`.
    kind: &'static str,
    /// Service of the same namespace.
    pub name: String,
    /// One port of it; `None`: every port that the route's kind is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What becomes of requests that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    /// One of them must hold; none: every request.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_matches")]
    pub matches: Vec<PathMatch>,
    /// Where requests go, by weight; none: they are answered 500.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
}

/// Which paths match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "value")]
pub enum PathMatch {
    /// This one.
    Exact(String),
    /// This one and those below it, by whole segments.
    PathPrefix(String),
}

/// A service that requests go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRef {
    /// Its namespace; `None`: the route's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Share among the rule's backends; 0: none.
    pub weight: u32,
}

fn as_matches<S: serde::Serializer>(matches: &[PathMatch], to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Match<'a> {
        path: &'a PathMatch,
    }
    to.collect_seq(matches.iter().map(|path| Match { path }))
}

impl HttpRouteSpec {
    pub(super) fn read(at: &At<'_>, namespace: &str) -> Result<Self, ApiError> {
        let fields = at.object(&["parentRefs", "hostnames", "rules"], &["useDefaultGateways"])?;
        let parents = fields.need("parentRefs", "a list of 1..=32 Services")?.list(1..=32)?;
        let rules = fields.need("rules", "a list of 1..=16 rules")?.list(1..=16)?;
        Ok(Self {
            parent_refs: parents.iter().map(|at| ParentRef::read(at, namespace)).collect::<Result<_, _>>()?,
            hostnames: fields.each("hostnames", 0..=16, |at| at.checked(&HOSTNAME))?,
            rules: rules.iter().map(HttpRule::read).collect::<Result<_, _>>()?,
        })
    }
}

impl ParentRef {
    /// To every port of a service that the route's kind is for, or to one port.
    pub fn service(name: &str, port: Option<u16>) -> Self {
        Self { group: "", kind: "Service", name: name.to_owned(), port }
    }

    pub(super) fn read(at: &At<'_>, own_namespace: &str) -> Result<Self, ApiError> {
        let fields = at.object(&["group", "kind", "namespace", "name", "port"], &["sectionName"])?;
        let kind = fields.need("kind", "Service")?;
        kind.one_of(&[("Service", ())], &["Gateway"])?;
        if let Some(group) = fields.get("group") {
            group.one_of(&[("", ())], &["gateway.networking.k8s.io"])?;
        }
        if let Some(namespace) = fields.get("namespace")
            && namespace.checked(&LABEL)? != own_namespace
        {
            return Err(namespace.refuse(Reason::NotBuiltYet, format!("{own_namespace}: the route's own")));
        }
        let name = fields.need("name", LABEL.accepted)?.checked(&LABEL)?;
        Ok(Self::service(&name, fields.read("port", |at| at.port())?))
    }
}

impl HttpRule {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(
            &["matches", "backendRefs"],
            &["name", "filters", "timeouts", "retry", "sessionPersistence"],
        )?;
        Ok(Self {
            matches: fields.each("matches", 0..=64, |at| PathMatch::read(&at))?,
            backend_refs: fields.each("backendRefs", 0..=16, |at| BackendRef::read(&at))?,
        })
    }
}

impl PathMatch {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["path"], &["headers", "queryParams", "method"])?;
        // The Gateway API's default of a match without a path.
        let Some(path) = fields.get("path") else { return Ok(Self::PathPrefix("/".to_owned())) };
        let fields = path.object(&["type", "value"], &[])?;
        let prefix = match fields.get("type") {
            Some(at) => at.one_of(&[("Exact", false), ("PathPrefix", true)], &["RegularExpression"])?,
            None => true,
        };
        let accepted = "a path of 1..=1024 printable ASCII characters from '/' on, without //, /./, /../, \
                        %2f, '#' or '?'";
        let value = fields.read("value", |at| at.parsed(accepted, path_value))?;
        let value = value.unwrap_or_else(|| "/".to_owned());
        Ok(if prefix { Self::PathPrefix(value) } else { Self::Exact(value) })
    }
}

/// A path that requests can have after normalisation: one that they can't have would never match.
fn path_value(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let odd = ["//", "/./", "/../", "%2f", "#", "?"].iter().any(|part| lower.contains(part))
        || lower.ends_with("/..")
        || lower.ends_with("/.");
    let holds = text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic());
    (holds && !odd).then(|| text.to_owned())
}

impl BackendRef {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["group", "kind", "namespace", "name", "port", "weight"], &["filters"])?;
        fields.read("kind", |at| at.one_of(&[("Service", ())], &["ExternalService"]))?;
        fields.read("group", |at| at.one_of(&[("", ())], &["nodemesh.io"]))?;
        Ok(Self {
            namespace: fields.read("namespace", |at| at.checked(&LABEL))?,
            name: fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            port: fields.need("port", "1..=65535")?.port()?,
            weight: fields.read("weight", |at| at.integer(0..=1_000_000))?.unwrap_or(1) as u32,
        })
    }
}

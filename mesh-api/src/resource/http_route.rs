//! `HTTPRoute`, in the Gateway API's own shape, attached to Services (GAMMA): which requests go to which weighted
//! backends, and what becomes of them on their way.
//!
//! Session persistence, CORS and extension filters are refused by name. The limits on list lengths are the Gateway
//! API's.
//! Not here: what a request must be (`http_match`), what is done to it (`http_filter`), which rule wins (mesh-core's
//! route).

use std::time::Duration;

use serde::Serialize;

use super::http_filter::{HttpFilter, Of};
use super::http_match::{HttpMatch, PathMatch};
use crate::duration;
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
    /// Its namespace; `None`: the route's. In another one the route binds the clients of its own namespace alone, and
    /// for them what that namespace itself says of the service does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The service.
    pub name: String,
    /// One port of it; `None`: every port that the route's kind is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What becomes of requests that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One of them must hold; none: every request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpMatch>,
    /// What is done to requests and responses, whatever the backend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpFilter>,
    /// Where requests go, by weight; none: they are answered 500, or redirected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// How long requests may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// How long requests may take; absent or zero: as long as they want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// From the head of the request to the end of the response, all tries together.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_duration")]
    pub request: Option<Duration>,
    /// One try; not above the whole.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_duration")]
    pub backend_request: Option<Duration>,
}

/// What is tried again, where the request can be sent a second time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Statuses, 400 to 599.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Tries after the first, 1 to 10.
    pub attempts: u8,
    /// The least time between two tries.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_duration")]
    pub backoff: Option<Duration>,
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn as_duration<S: serde::Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&duration::format(value.unwrap_or_default()))
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
    /// What is done to requests and responses of this backend, after the rule's. HTTP alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpFilter>,
}

impl HttpRouteSpec {
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
            rules: rules.iter().map(HttpRule::read).collect::<Result<_, _>>()?,
        })
    }

    /// Every service that requests, or copies of them, go to.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        self.rules.iter().flat_map(|rule| {
            rule.backend_refs.iter().chain(rule.filters.iter().filter_map(HttpFilter::mirror))
        })
    }
}

impl ParentRef {
    /// To every port of a service that the route's kind is for, or to one port.
    pub fn service(name: &str, port: Option<u16>) -> Self {
        Self { group: "", kind: "Service", namespace: None, name: name.to_owned(), port }
    }

    /// Of the route's own namespace alone.
    pub(super) fn read(at: &At<'_>, own_namespace: &str) -> Result<Self, ApiError> {
        let parent = Self::read_any(at, own_namespace)?;
        let known = ["group", "kind", "namespace", "name", "port"];
        match at.object(&known, &[])?.get("namespace").filter(|_| parent.namespace.is_some()) {
            Some(at) => Err(at.refuse(Reason::NotBuiltYet, format!("{own_namespace}: the route's own"))),
            None => Ok(parent),
        }
    }

    /// Of any namespace.
    pub(super) fn read_any(at: &At<'_>, own_namespace: &str) -> Result<Self, ApiError> {
        let fields = at.object(&["group", "kind", "namespace", "name", "port"], &["sectionName"])?;
        let kind = fields.need("kind", "Service")?;
        kind.one_of(&[("Service", ())], &["Gateway"])?;
        if let Some(group) = fields.get("group") {
            group.one_of(&[("", ())], &["gateway.networking.k8s.io"])?;
        }
        let namespace = fields.read("namespace", |at| at.checked(&LABEL))?;
        let name = fields.need("name", LABEL.accepted)?.checked(&LABEL)?;
        Ok(Self {
            namespace: namespace.filter(|namespace| namespace != own_namespace),
            ..Self::service(&name, fields.read("port", |at| at.port())?)
        })
    }
}

impl HttpRule {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = ["name", "matches", "filters", "backendRefs", "timeouts", "retry"];
        let fields = at.object(&known, &["sessionPersistence"])?;
        let matches = fields.each("matches", 0..=64, |at| HttpMatch::read(&at))?;
        let prefixes = matches.iter().all(|m| matches!(m.path, PathMatch::PathPrefix(_)));
        let filters = fields.read("filters", |at| HttpFilter::each(&at, Of::Rule { prefixes }))?;
        let rule = Self {
            name: fields.read("name", |at| at.checked(&LABEL))?,
            matches,
            filters: filters.unwrap_or_default(),
            backend_refs: fields.each("backendRefs", 0..=16, |at| BackendRef::read_http(&at))?,
            timeouts: fields.read("timeouts", |at| Timeouts::read(&at))?,
            retry: fields.read("retry", |at| Retry::read(&at))?,
        };
        let answers = rule.filters.iter().any(HttpFilter::answers);
        if let Some(at) = fields.get("backendRefs").filter(|_| answers && !rule.backend_refs.is_empty()) {
            return Err(at.refuse(Reason::Conflict, "none: the rule has a RequestRedirect or DirectResponse"));
        }
        Ok(rule)
    }
}

/// Longest timeout of a route.
const TIMEOUT_MOST: Duration = Duration::from_hours(24);

impl Timeouts {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["request", "backendRequest"], &[])?;
        let read = |field| fields.read(field, |at: At<'_>| at.duration(Duration::ZERO..=TIMEOUT_MOST));
        let timeouts = Self { request: read("request")?, backend_request: read("backendRequest")? };
        let most = timeouts.request.filter(|most| !most.is_zero());
        if let (Some(most), Some(one), Some(at)) =
            (most, timeouts.backend_request, fields.get("backendRequest"))
            && one > most
        {
            return Err(at.refuse(Reason::Conflict, "not above timeouts.request"));
        }
        Ok(timeouts)
    }
}

impl Retry {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["codes", "attempts", "backoff"], &[])?;
        let most = Duration::from_mins(1);
        Ok(Self {
            codes: fields.each("codes", 0..=32, |at| at.integer(400..=599).map(|code| code as u16))?,
            attempts: fields.read("attempts", |at| at.integer(1..=10))?.unwrap_or(1) as u8,
            backoff: fields.read("backoff", |at| at.duration(Duration::ZERO..=most))?,
        })
    }
}

impl BackendRef {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        Self::read_with(at, &["group", "kind", "namespace", "name", "port", "weight"])
    }

    pub(super) fn read_http(at: &At<'_>) -> Result<Self, ApiError> {
        Self::read_with(at, &["group", "kind", "namespace", "name", "port", "weight", "filters"])
    }

    fn read_with(at: &At<'_>, known: &[&str]) -> Result<Self, ApiError> {
        let fields = at.object(known, &[])?;
        fields.read("kind", |at| at.one_of(&[("Service", ())], &["ExternalService"]))?;
        fields.read("group", |at| at.one_of(&[("", ())], &["nodemesh.io"]))?;
        Ok(Self {
            namespace: fields.read("namespace", |at| at.checked(&LABEL))?,
            name: fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            port: fields.need("port", "1..=65535")?.port()?,
            weight: fields.read("weight", |at| at.integer(0..=1_000_000))?.unwrap_or(1) as u32,
            filters: fields.read("filters", |at| HttpFilter::each(&at, Of::Backend))?.unwrap_or_default(),
        })
    }
}

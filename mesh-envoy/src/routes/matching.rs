//! What a request must be: matches of routes as `RouteMatch`, and which of two is asked first.

use std::cmp::Reverse;

use mesh_api::resource::{FieldMatch, GrpcMatch, GrpcMethod, HttpMatch, MatchKind, PathMatch};
use serde_json::{Value, json};

use super::For;

/// What is asked of the path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Path<'a> {
    /// Nothing.
    All,
    /// As an `HTTPRoute` says it.
    Of(&'a PathMatch),
    /// What gRPC calls: the path, or what it begins with.
    Exactly(String),
    Below(String),
    /// By expression; how much of service and method it says.
    Call(String, usize, usize),
}

/// One match of a rule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Match<'a> {
    pub path: Path<'a>,
    pub method: Option<&'a str>,
    pub headers: &'a [FieldMatch],
    pub query: &'a [FieldMatch],
}

/// Class of path, how much of it is said, whether a method is missing, headers, parameters.
pub(crate) type Rank = (u8, Reverse<(usize, usize)>, bool, Reverse<usize>, Reverse<usize>);

/// A host that a route is for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Host {
    Any,
    Exact(String),
    /// What follows the `*`.
    Below(String),
}

impl Host {
    pub(crate) fn of(name: &str) -> Self {
        match name.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Below(suffix.to_owned()),
            None => Self::Exact(name.to_owned()),
        }
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(host) => host == name,
            Self::Below(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
        }
    }

    /// Smaller comes first.
    pub(crate) fn rank(&self) -> (u8, Reverse<usize>) {
        match self {
            Self::Exact(_) => (0, Reverse(0)),
            Self::Below(suffix) => (1, Reverse(suffix.len())),
            Self::Any => (2, Reverse(0)),
        }
    }

    /// As a condition on `:authority`, whatever its port.
    fn header(&self) -> Option<Value> {
        let pattern = match self {
            Self::Any => return None,
            Self::Exact(host) => escape(host),
            Self::Below(suffix) => format!(".+{}", escape(suffix)),
        };
        let regex = format!("(?i){pattern}(:[0-9]+)?");
        Some(json!({ "name": ":authority", "string_match": { "safe_regex": { "regex": regex } } }))
    }
}

impl<'a> Match<'a> {
    pub(crate) fn everything() -> Self {
        Self { path: Path::All, method: None, headers: &[], query: &[] }
    }

    pub(crate) fn of_http(of: &'a HttpMatch) -> Self {
        let method = of.method.as_deref();
        Self { path: Path::Of(&of.path), method, headers: &of.headers, query: &of.query_params }
    }

    pub(crate) fn of_grpc(of: &'a GrpcMatch) -> Self {
        let path = of.method.as_ref().map_or(Path::All, call);
        Self { path, method: None, headers: &of.headers, query: &[] }
    }

    /// Smaller comes first: exact paths, expressions, calls by expression, prefixes; then conditions.
    pub(crate) fn rank(&self) -> Rank {
        let (class, length) = match &self.path {
            Path::Of(PathMatch::Exact(_)) | Path::Exactly(_) => (0, (0, 0)),
            Path::Of(PathMatch::RegularExpression(regex)) => (1, (regex.len(), 0)),
            Path::Call(_, service, method) => (2, (*service, *method)),
            Path::Of(PathMatch::PathPrefix(prefix)) | Path::Below(prefix) => {
                (3, (prefix.trim_end_matches('/').len(), 0))
            }
            Path::All => (3, (0, 0)),
        };
        (
            class,
            Reverse(length),
            self.method.is_none(),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
        )
    }
}

/// What is called, as a path.
fn call(method: &GrpcMethod) -> Path<'static> {
    let service = method.service.as_deref().map(|name| name.strip_prefix('.').unwrap_or(name));
    let of = method.method.as_deref();
    match (method.kind, service, of) {
        (_, None, None) => Path::All,
        (MatchKind::Exact, Some(service), Some(of)) => Path::Exactly(format!("/{service}/{of}")),
        (MatchKind::Exact, Some(service), None) => Path::Below(format!("/{service}/")),
        (kind, service, of) => {
            let part = |text: Option<&str>| match (text, kind) {
                (None, _) => "[^/]+".to_owned(),
                (Some(text), MatchKind::Exact) => escape(text),
                (Some(text), MatchKind::RegularExpression) => format!("(?:{text})"),
            };
            let length = |text: Option<&str>| text.map_or(0, str::len);
            Path::Call(format!("/{}/{}", part(service), part(of)), length(service), length(of))
        }
    }
}

/// The `RouteMatch`; `None`: a client of this sort never has such a request.
pub(crate) fn json(of: &Match<'_>, host: &Host, whom: For) -> Option<Value> {
    let regex = |regex: &str| json!({ "safe_regex": { "regex": regex } });
    let mut json = match &of.path {
        Path::All => json!({ "prefix": "/" }),
        Path::Of(PathMatch::Exact(path)) | Path::Exactly(path) => json!({ "path": path }),
        Path::Of(PathMatch::RegularExpression(expression)) | Path::Call(expression, _, _) => {
            regex(expression)
        }
        Path::Below(prefix) => json!({ "prefix": prefix }),
        Path::Of(PathMatch::PathPrefix(prefix)) => match (prefix.trim_end_matches('/'), whom) {
            ("", _) => json!({ "prefix": "/" }),
            (prefix, For::Envoy) => json!({ "path_separated_prefix": prefix }),
            (prefix, For::Grpc) => regex(&format!("{}(/.*)?", escape(prefix))),
        },
    };
    let mut headers: Vec<Value> = of.headers.iter().map(field).collect();
    match (of.method, whom) {
        (None, _) | (Some("POST"), For::Grpc) => {}
        // gRPC's method is always POST.
        (Some(_), For::Grpc) => return None,
        (Some(method), For::Envoy) => {
            headers.push(json!({ "name": ":method", "string_match": { "exact": method } }));
        }
    }
    if whom == For::Grpc && !of.query.is_empty() {
        return None;
    }
    headers.extend(host.header());
    if !headers.is_empty() {
        json["headers"] = headers.into();
    }
    if !of.query.is_empty() {
        json["query_parameters"] = of.query.iter().map(field).collect();
    }
    Some(json)
}

fn field(field: &FieldMatch) -> Value {
    let wanted = match field.kind {
        MatchKind::Exact => json!({ "exact": field.value }),
        MatchKind::RegularExpression => json!({ "safe_regex": { "regex": field.value } }),
    };
    json!({ "name": field.name, "string_match": wanted })
}

/// Text as an expression that only it matches.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !(c.is_ascii_alphanumeric() || "/_-".contains(c)) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

//! HTTP routes to wire messages.

use super::{parent_ref, service_ref, weighted_backend};
use crate::proto::v1;
use crate::resource::{
    FieldMatch, GrpcMatch, GrpcRouteSpec, GrpcRule, Header, HeaderEdits, HttpFilter, HttpMatch,
    HttpRouteSpec, HttpRule, MatchKind, PathEdit, PathMatch, Resource, TlsRouteSpec,
};
use std::time::Duration;

pub(super) fn route(resource: &Resource, spec: &HttpRouteSpec) -> v1::HttpRoute {
    let own = &resource.metadata.namespace;
    v1::HttpRoute {
        namespace: own.clone(),
        name: resource.metadata.name.clone(),
        parents: spec.parent_refs.iter().map(|parent| parent_ref(parent, own)).collect(),
        hostnames: spec.hostnames.clone(),
        rules: spec.rules.iter().map(|rule| http_rule(rule, own)).collect(),
        created_ms: resource.metadata.created_ms,
    }
}

pub(super) fn grpc_route(resource: &Resource, spec: &GrpcRouteSpec) -> v1::GrpcRoute {
    let own = &resource.metadata.namespace;
    v1::GrpcRoute {
        namespace: own.clone(),
        name: resource.metadata.name.clone(),
        parents: spec.parent_refs.iter().map(|parent| parent_ref(parent, own)).collect(),
        hostnames: spec.hostnames.clone(),
        rules: spec.rules.iter().map(|rule| grpc_rule(rule, own)).collect(),
        created_ms: resource.metadata.created_ms,
    }
}

pub(super) fn tls_route(resource: &Resource, spec: &TlsRouteSpec) -> v1::TlsRoute {
    let own = &resource.metadata.namespace;
    v1::TlsRoute {
        namespace: own.clone(),
        name: resource.metadata.name.clone(),
        parents: spec.parent_refs.iter().map(|parent| parent_ref(parent, own)).collect(),
        hostnames: spec.hostnames.clone(),
        backends: spec.backends().map(|backend| weighted_backend(backend, own)).collect(),
        created_ms: resource.metadata.created_ms,
    }
}

fn grpc_rule(rule: &GrpcRule, own: &str) -> v1::HttpRule {
    v1::HttpRule {
        matches: rule.matches.iter().map(grpc_match).collect(),
        backends: rule.backend_refs.iter().map(|backend| weighted_backend(backend, own)).collect(),
        filters: filters(&rule.filters, own),
        ..v1::HttpRule::default()
    }
}

fn grpc_match(m: &GrpcMatch) -> v1::HttpMatch {
    let path = m.method.as_ref().map(|method| {
        v1::http_match::Path::Grpc(v1::GrpcMethod {
            service: method.service.clone().unwrap_or_default(),
            method: method.method.clone().unwrap_or_default(),
            regex: method.kind == MatchKind::RegularExpression,
        })
    });
    let headers = m.headers.iter().map(field_match).collect();
    v1::HttpMatch { path, headers, ..v1::HttpMatch::default() }
}

fn http_rule(rule: &HttpRule, own: &str) -> v1::HttpRule {
    let timeouts = rule.timeouts.unwrap_or_default();
    v1::HttpRule {
        matches: rule.matches.iter().map(http_match).collect(),
        backends: rule.backend_refs.iter().map(|backend| weighted_backend(backend, own)).collect(),
        filters: filters(&rule.filters, own),
        request_timeout_ms: millis(timeouts.request),
        backend_timeout_ms: millis(timeouts.backend_request),
        retry: rule.retry.as_ref().map(|retry| v1::HttpRetry {
            codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
            attempts: retry.attempts.into(),
            backoff_ms: millis(retry.backoff),
        }),
    }
}

fn millis(duration: Option<Duration>) -> u64 {
    duration.map_or(0, |duration| duration.as_millis() as u64)
}

fn http_match(m: &HttpMatch) -> v1::HttpMatch {
    v1::HttpMatch {
        path: Some(match &m.path {
            PathMatch::Exact(path) => v1::http_match::Path::Exact(path.clone()),
            PathMatch::PathPrefix(path) => v1::http_match::Path::Prefix(path.clone()),
            PathMatch::RegularExpression(regex) => v1::http_match::Path::Regex(regex.clone()),
        }),
        headers: m.headers.iter().map(field_match).collect(),
        query: m.query_params.iter().map(field_match).collect(),
        method: m.method.clone().unwrap_or_default(),
    }
}

pub(super) fn field_match(m: &FieldMatch) -> v1::FieldMatch {
    v1::FieldMatch {
        name: m.name.clone(),
        value: Some(match m.kind {
            MatchKind::Exact => v1::field_match::Value::Exact(m.value.clone()),
            MatchKind::RegularExpression => v1::field_match::Value::Regex(m.value.clone()),
        }),
    }
}

/// `None`: there are none.
pub(super) fn filters(filters: &[HttpFilter], own: &str) -> Option<v1::HttpFilters> {
    let mut out = v1::HttpFilters::default();
    for filter in filters {
        match filter {
            HttpFilter::RequestHeaderModifier { edits } => out.request = Some(header_edits(edits)),
            HttpFilter::ResponseHeaderModifier { edits } => out.response = Some(header_edits(edits)),
            HttpFilter::RequestRedirect { to } => {
                out.redirect = Some(v1::HttpRedirect {
                    scheme: to.scheme.unwrap_or_default().to_owned(),
                    hostname: to.hostname.clone().unwrap_or_default(),
                    path: to.path.as_ref().map(path_edit),
                    port: to.port.unwrap_or_default().into(),
                    status: to.status_code.into(),
                });
            }
            HttpFilter::UrlRewrite { to } => {
                out.rewrite = Some(v1::HttpRewrite {
                    hostname: to.hostname.clone().unwrap_or_default(),
                    path: to.path.as_ref().map(path_edit),
                });
            }
            HttpFilter::DirectResponse { answer } => {
                out.direct = Some(v1::HttpDirectResponse {
                    status: answer.status_code.into(),
                    content_type: answer.content_type.clone().unwrap_or_default(),
                    body: answer.body.clone(),
                });
            }
            HttpFilter::RequestMirror { to } => out.mirrors.push(v1::HttpMirror {
                backend: Some(service_ref(&to.backend_ref, own)),
                numerator: to.fraction.0,
                denominator: to.fraction.1,
            }),
        }
    }
    (!filters.is_empty()).then_some(out)
}

fn header_edits(edits: &HeaderEdits) -> v1::HeaderEdits {
    let header = |header: &Header| v1::Header { name: header.name.clone(), value: header.value.clone() };
    v1::HeaderEdits {
        set: edits.set.iter().map(header).collect(),
        add: edits.add.iter().map(header).collect(),
        remove: edits.remove.clone(),
    }
}

fn path_edit(edit: &PathEdit) -> v1::PathEdit {
    v1::PathEdit {
        edit: Some(match edit {
            PathEdit::ReplaceFullPath { path } => v1::path_edit::Edit::Full(path.clone()),
            PathEdit::ReplacePrefixMatch { prefix } => v1::path_edit::Edit::Prefix(prefix.clone()),
        }),
    }
}

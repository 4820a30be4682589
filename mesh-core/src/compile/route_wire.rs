//! What the rules of routes say, from the wire: conditions, edits, actions.
//!
//! Not here: backends and their ids (routes).

use std::time::Duration;

use mesh_api::proto::v1::{self, field_match, http_match, path_edit};

use crate::route::{
    Action, CallPattern, Condition, DirectResponse, Edits, FieldMatch, HeaderEdits, Line, MatchSpec, Mirror,
    PathEdit, PathMatch, Pattern, Redirect, Retry, Rewrite, ValueMatch,
};
use crate::snapshot::ServiceId;

/// `None`: an expression cannot be compiled.
pub(super) fn matches(m: &v1::HttpMatch) -> Option<MatchSpec> {
    let path = match &m.path {
        Some(http_match::Path::Exact(path)) => PathMatch::Exact(path.clone()),
        Some(http_match::Path::Prefix(path)) => PathMatch::Prefix(path.clone()),
        Some(http_match::Path::Regex(text)) => PathMatch::Regex(Pattern::new(text)?),
        Some(http_match::Path::Grpc(method)) => called(method)?,
        None => PathMatch::Prefix("/".to_owned()),
    };
    let condition = Condition {
        method: Some(m.method.as_str()).filter(|method| !method.is_empty()).map(Into::into),
        headers: m.headers.iter().map(field).collect::<Option<_>>()?,
        query: m.query.iter().map(field).collect::<Option<_>>()?,
    };
    Some(MatchSpec { path, condition })
}

/// gRPC's method is the path.
fn called(m: &v1::GrpcMethod) -> Option<PathMatch> {
    let (service, method) = (m.service.trim_start_matches('.'), &*m.method);
    Some(match (m.regex, service, method) {
        (_, "", "") => PathMatch::Prefix("/".to_owned()),
        (false, service, "") => PathMatch::Prefix(format!("/{service}")),
        (false, service, method) if !service.is_empty() => PathMatch::Exact(format!("/{service}/{method}")),
        (_, service, method) => PathMatch::Call(CallPattern::new(service, method)?),
    })
}

pub(super) fn field(m: &v1::FieldMatch) -> Option<FieldMatch> {
    let value = match &m.value {
        Some(field_match::Value::Exact(value)) => ValueMatch::Exact(value.as_str().into()),
        Some(field_match::Value::Regex(text)) => ValueMatch::Regex(Pattern::new(text)?),
        None => ValueMatch::Exact("".into()),
    };
    Some(FieldMatch { name: m.name.as_str().into(), value })
}

pub(super) fn edits(filters: &v1::HttpFilters) -> Edits {
    Edits {
        request: header_edits(filters.request.as_ref()),
        response: header_edits(filters.response.as_ref()),
    }
}

fn header_edits(edits: Option<&v1::HeaderEdits>) -> HeaderEdits {
    let Some(edits) = edits else { return HeaderEdits::default() };
    let lines = |headers: &[v1::Header]| -> Vec<Line> {
        headers.iter().map(|header| (header.name.as_str().into(), header.value.as_str().into())).collect()
    };
    let remove = edits.remove.iter().map(|name| name.as_str().into()).collect();
    HeaderEdits::new(lines(&edits.set), lines(&edits.add), remove)
}

pub(super) fn mirror(mirror: &v1::HttpMirror, service: Option<ServiceId>) -> Mirror {
    Mirror { service, fraction: (mirror.numerator, mirror.denominator) }
}

pub(super) fn action(rule: &v1::HttpRule, mirrors: Vec<Mirror>) -> Action {
    let filters = rule.filters.as_ref();
    let millis = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
    Action {
        redirect: filters.and_then(|filters| filters.redirect.as_ref()).map(redirect),
        direct: filters.and_then(|filters| filters.direct.as_ref()).map(direct),
        rewrite: filters.and_then(|filters| filters.rewrite.as_ref()).map(rewrite).unwrap_or_default(),
        timeout: millis(rule.request_timeout_ms),
        try_timeout: millis(rule.backend_timeout_ms),
        retry: rule.retry.as_ref().map(|retry| Retry {
            codes: retry.codes.iter().filter_map(|code| u16::try_from(*code).ok()).collect(),
            attempts: u8::try_from(retry.attempts).unwrap_or(u8::MAX),
            backoff: Duration::from_millis(retry.backoff_ms),
        }),
        mirrors,
    }
}

fn some(text: &str) -> Option<Box<str>> {
    Some(text).filter(|text| !text.is_empty()).map(Into::into)
}

fn redirect(to: &v1::HttpRedirect) -> Redirect {
    Redirect {
        scheme: some(&to.scheme),
        host: some(&to.hostname),
        path: to.path.as_ref().and_then(path_edit),
        port: u16::try_from(to.port).ok().filter(|port| *port != 0),
        status: u16::try_from(to.status).unwrap_or(302),
    }
}

fn direct(answer: &v1::HttpDirectResponse) -> DirectResponse {
    DirectResponse {
        status: u16::try_from(answer.status).unwrap_or(500),
        content_type: some(&answer.content_type),
        body: answer.body.as_str().into(),
    }
}

fn rewrite(to: &v1::HttpRewrite) -> Rewrite {
    Rewrite { host: some(&to.hostname), path: to.path.as_ref().and_then(path_edit) }
}

fn path_edit(edit: &v1::PathEdit) -> Option<PathEdit> {
    Some(match edit.edit.as_ref()? {
        path_edit::Edit::Full(path) => PathEdit::Full(path.as_str().into()),
        path_edit::Edit::Prefix(prefix) => PathEdit::prefix(prefix),
    })
}

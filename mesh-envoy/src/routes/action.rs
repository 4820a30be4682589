//! What becomes of a request: filters, backends, times and tries of a rule as a `Route` without its match.
//!
//! What the mesh does unasked stands here too: no timeout but the route's own (Envoy's default is 15 s), and a connection
//! that can't be made is tried at two others.

use mesh_api::resource::{BackendRef, HeaderEdits, HttpFilter, PathEdit, Redirect, Retry, Rewrite};
use serde_json::{Value, json};

use super::matching::Match;
use super::{For, Rule, prefix_of, target_of};
use crate::cluster::seconds;
use crate::look::Target;

/// Everything to one port.
pub(super) fn plain(target: &Target, whom: For, hashed: bool) -> Value {
    let mut action = json!({ "cluster": target.to_string() });
    common(&mut action, None, whom, hashed);
    action
}

/// The route of a rule for one of its matches.
pub(super) fn of(rule: &Rule<'_>, one: &Match<'_>, whom: For, hashed: bool) -> Value {
    let mut json = json!({ "name": rule.name });
    let mut rewrite = None;
    for filter in rule.filters {
        match filter {
            HttpFilter::RequestHeaderModifier { edits: of } => edits(&mut json, "request", of),
            HttpFilter::ResponseHeaderModifier { edits: of } => edits(&mut json, "response", of),
            HttpFilter::RequestRedirect { to } => json["redirect"] = redirect(to, one),
            HttpFilter::DirectResponse { answer } => {
                json["direct_response"] =
                    json!({ "status": answer.status_code, "body": { "inline_string": answer.body } });
                if let Some(kind) = &answer.content_type {
                    let header = json!({ "key": "content-type", "value": kind });
                    push(&mut json, "response_headers_to_add", set(&header));
                }
            }
            HttpFilter::UrlRewrite { to } => rewrite = Some(to),
            HttpFilter::RequestMirror { .. } => {}
        }
    }
    if json.get("redirect").is_some() || json.get("direct_response").is_some() {
        return json;
    }
    if rule.backends.iter().all(|backend| backend.weight == 0) {
        json["direct_response"] = json!({ "status": 500 });
        return json;
    }
    let mut action = backends(rule);
    if let Some(to) = rewrite {
        rewritten(&mut action, to, one);
    }
    mirrors(&mut action, rule);
    common(&mut action, Some(rule), whom, hashed);
    json["route"] = action;
    json
}

fn backends(rule: &Rule<'_>) -> Value {
    if let [only] = rule.backends
        && only.filters.is_empty()
    {
        return json!({ "cluster": target_of(only, rule.namespace).to_string() });
    }
    let one = |backend: &BackendRef| {
        let mut json =
            json!({ "name": target_of(backend, rule.namespace).to_string(), "weight": backend.weight });
        for filter in &backend.filters {
            match filter {
                HttpFilter::RequestHeaderModifier { edits: of } => edits(&mut json, "request", of),
                HttpFilter::ResponseHeaderModifier { edits: of } => edits(&mut json, "response", of),
                _ => {}
            }
        }
        json
    };
    let clusters: Vec<Value> = rule.backends.iter().filter(|backend| backend.weight > 0).map(one).collect();
    json!({ "weighted_clusters": { "clusters": clusters } })
}

/// Times and tries.
fn common(action: &mut Value, rule: Option<&Rule<'_>>, whom: For, hashed: bool) {
    let timeouts = rule.map(|rule| rule.timeouts).unwrap_or_default();
    let whole = timeouts.request.filter(|time| !time.is_zero());
    if hashed {
        action["hash_policy"] = json!([
            { "connection_properties": { "source_ip": true } },
            { "filter_state": { "key": "io.grpc.channel_id" } },
        ]);
    }
    if whom == For::Grpc {
        if let Some(whole) = whole {
            action["max_stream_duration"] = json!({ "max_stream_duration": seconds(whole) });
        }
        return;
    }
    action["timeout"] = json!(whole.map_or_else(|| "0s".to_owned(), seconds));
    let mut policy = tries(rule.and_then(|rule| rule.retry));
    if let Some(one) = timeouts.backend_request.filter(|time| !time.is_zero()) {
        policy["per_try_timeout"] = json!(seconds(one));
    }
    action["retry_policy"] = policy;
    action["upgrade_configs"] = json!([{ "upgrade_type": "websocket" }]);
}

fn tries(retry: Option<&Retry>) -> Value {
    let mut on = vec!["connect-failure", "refused-stream"];
    let mut json = json!({
        "num_retries": 2,
        "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            },
        }],
        "host_selection_retry_max_attempts": 3,
    });
    if let Some(retry) = retry {
        json["num_retries"] = json!(retry.attempts);
        if !retry.codes.is_empty() {
            on.push("retriable-status-codes");
            json["retriable_status_codes"] = json!(retry.codes);
        }
        // What breaks off counts as 502, what takes too long as 504.
        if retry.codes.iter().any(|code| [502, 504].contains(code)) {
            on.push("reset");
        }
        if let Some(backoff) = retry.backoff.filter(|time| !time.is_zero()) {
            json["retry_back_off"] = json!({ "base_interval": seconds(backoff) });
        }
    }
    json["retry_on"] = json!(on.join(","));
    json
}

fn mirrors(action: &mut Value, rule: &Rule<'_>) {
    let all: Vec<Value> = rule
        .filters
        .iter()
        .filter_map(|filter| match filter {
            HttpFilter::RequestMirror { to } => Some(to),
            _ => None,
        })
        .map(|to| {
            let (some, of) = to.fraction;
            let millionths = u64::from(some) * 1_000_000 / u64::from(of.max(1));
            json!({
                "cluster": target_of(&to.backend_ref, rule.namespace).to_string(),
                "runtime_fraction": {
                    "default_value": { "numerator": millionths.min(1_000_000), "denominator": "MILLION" },
                },
            })
        })
        .collect();
    if !all.is_empty() {
        action["request_mirror_policies"] = all.into();
    }
}

fn rewritten(action: &mut Value, to: &Rewrite, one: &Match<'_>) {
    if let Some(host) = &to.hostname {
        action["host_rewrite_literal"] = json!(host);
    }
    if let Some(path) = &to.path {
        let (field, value) = path_edit(path, one);
        action[field] = value;
    }
}

fn redirect(to: &Redirect, one: &Match<'_>) -> Value {
    let code = match to.status_code {
        301 => "MOVED_PERMANENTLY",
        303 => "SEE_OTHER",
        307 => "TEMPORARY_REDIRECT",
        308 => "PERMANENT_REDIRECT",
        _ => "FOUND",
    };
    let mut json = json!({ "response_code": code });
    if let Some(scheme) = to.scheme {
        json["scheme_redirect"] = json!(scheme);
    }
    if let Some(host) = &to.hostname {
        json["host_redirect"] = json!(host);
    }
    if let Some(port) = to.port {
        json["port_redirect"] = json!(port);
    }
    match &to.path {
        Some(PathEdit::ReplaceFullPath { path }) => json["path_redirect"] = json!(path),
        Some(edit) => {
            let (field, value) = path_edit(edit, one);
            json[field] = value;
        }
        None => {}
    }
    json
}

/// The field that changes a path, and what it says. A prefix goes by whole segments.
fn path_edit(edit: &PathEdit, one: &Match<'_>) -> (&'static str, Value) {
    let regex = |pattern: &str, to: &str| {
        let to = to.replace('\\', "\\\\");
        ("regex_rewrite", json!({ "pattern": { "regex": pattern }, "substitution": to }))
    };
    match edit {
        PathEdit::ReplaceFullPath { path } => regex("^.*$", path),
        PathEdit::ReplacePrefixMatch { prefix: to } => {
            let from = prefix_of(one).unwrap_or("/").trim_end_matches('/');
            let to = to.trim_end_matches('/');
            match (from, to) {
                ("", "") => ("prefix_rewrite", json!("/")),
                ("", to) => ("prefix_rewrite", json!(format!("{to}/"))),
                // Otherwise two slashes would begin the path.
                (from, "") => regex(&format!("^{}/*", super::matching::escape(from)), "/"),
                (_, to) => ("prefix_rewrite", json!(to)),
            }
        }
    }
}

fn set(header: &Value) -> Value {
    json!({ "header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" })
}

fn push(json: &mut Value, field: &str, value: Value) {
    match json.get_mut(field).and_then(Value::as_array_mut) {
        Some(list) => list.push(value),
        None => json[field] = json!([value]),
    }
}

/// Edits of the headers of requests or responses.
fn edits(json: &mut Value, of: &str, edits: &HeaderEdits) {
    let (add, remove) = (format!("{of}_headers_to_add"), format!("{of}_headers_to_remove"));
    let header = |header: &mesh_api::resource::Header| json!({ "key": header.name, "value": header.value });
    for one in &edits.set {
        push(json, &add, set(&header(one)));
    }
    for one in &edits.add {
        let line = json!({ "header": header(one), "append_action": "APPEND_IF_EXISTS_OR_ADD" });
        push(json, &add, line);
    }
    for name in &edits.remove {
        push(json, &remove, json!(name));
    }
}

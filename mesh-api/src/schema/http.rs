//! The schemas of `HTTPRoute` and `GRPCRoute`.

use serde_json::{Value, json};

use super::{backend_ref, duration, integer, label, list, object, parent_ref, port, words};

fn text(most: u64) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": most })
}

pub(super) fn hostname() -> Value {
    text(253)
}

pub(super) fn field() -> Value {
    object(
        &json!(["name", "value"]),
        &json!({ "type": words(&["Exact", "RegularExpression"]), "name": text(256), "value": text(4096) }),
    )
}

fn matches() -> Value {
    let path = object(
        &json!([]),
        &json!({
            "type": words(&["Exact", "PathPrefix", "RegularExpression"]),
            "value": { "type": "string", "minLength": 1, "maxLength": 1024 },
        }),
    );
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    object(
        &json!([]),
        &json!({
            "path": path,
            "headers": list(&field(), 0, 16),
            "queryParams": list(&field(), 0, 16),
            "method": words(&methods),
        }),
    )
}

fn edits() -> Value {
    let header = object(&json!(["name", "value"]), &json!({ "name": text(256), "value": text(4096) }));
    object(
        &json!([]),
        &json!({ "set": list(&header, 0, 16), "add": list(&header, 0, 16), "remove": list(&text(256), 0, 16) }),
    )
}

fn path_edit() -> Value {
    let path = json!({ "type": "string", "maxLength": 1024 });
    object(
        &json!(["type"]),
        &json!({
            "type": words(&["ReplaceFullPath", "ReplacePrefixMatch"]),
            "replaceFullPath": path,
            "replacePrefixMatch": path,
        }),
    )
}

fn backend_filters() -> Value {
    let filter = object(
        &json!(["type"]),
        &json!({
            "type": words(&["RequestHeaderModifier", "ResponseHeaderModifier"]),
            "requestHeaderModifier": edits(),
            "responseHeaderModifier": edits(),
        }),
    );
    list(&filter, 0, 16)
}

fn backend() -> Value {
    let mut backend = backend_ref();
    backend["properties"]["filters"] = backend_filters();
    backend
}

fn filters() -> Value {
    let redirect = object(
        &json!([]),
        &json!({
            "scheme": words(&["http", "https"]),
            "hostname": text(253),
            "path": path_edit(),
            "port": port(),
            "statusCode": { "type": "integer", "enum": [301, 302, 303, 307, 308] },
        }),
    );
    let rewrite = object(&json!([]), &json!({ "hostname": text(253), "path": path_edit() }));
    let direct = object(
        &json!(["statusCode"]),
        &json!({
            "statusCode": integer(200, 599),
            "contentType": text(4096),
            "body": { "type": "string", "maxLength": 4096 },
        }),
    );
    let kinds = [
        "RequestHeaderModifier",
        "ResponseHeaderModifier",
        "RequestRedirect",
        "URLRewrite",
        "RequestMirror",
        "DirectResponse",
    ];
    let filter = object(
        &json!(["type"]),
        &json!({
            "type": words(&kinds),
            "requestHeaderModifier": edits(),
            "responseHeaderModifier": edits(),
            "requestRedirect": redirect,
            "urlRewrite": rewrite,
            "requestMirror": mirror(),
            "directResponse": direct,
        }),
    );
    list(&filter, 0, 16)
}

fn mirror() -> Value {
    let fraction = object(
        &json!(["numerator"]),
        &json!({ "numerator": integer(0, 1_000_000), "denominator": integer(1, 1_000_000) }),
    );
    object(
        &json!(["backendRef"]),
        &json!({ "backendRef": backend_ref(), "percent": integer(0, 100), "fraction": fraction }),
    )
}

pub(super) fn grpc_route() -> Value {
    let name = text(1024);
    let method = object(
        &json!([]),
        &json!({ "type": words(&["Exact", "RegularExpression"]), "service": name, "method": name }),
    );
    let filter = object(
        &json!(["type"]),
        &json!({
            "type": words(&["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror"]),
            "requestHeaderModifier": edits(),
            "responseHeaderModifier": edits(),
            "requestMirror": mirror(),
        }),
    );
    let one = object(&json!([]), &json!({ "method": method, "headers": list(&field(), 0, 16) }));
    let rule = object(
        &json!([]),
        &json!({
            "name": label(),
            "matches": list(&one, 0, 64),
            "filters": list(&filter, 0, 16),
            "backendRefs": list(&backend(), 0, 16),
        }),
    );
    object(
        &json!(["parentRefs", "rules"]),
        &json!({
            "parentRefs": list(&parent_ref(), 1, 32),
            "hostnames": list(&hostname(), 0, 16),
            "rules": list(&rule, 1, 16),
        }),
    )
}

pub(super) fn route() -> Value {
    let timeouts = object(&json!([]), &json!({ "request": duration(), "backendRequest": duration() }));
    let retry = object(
        &json!([]),
        &json!({
            "codes": list(&integer(400, 599), 0, 32),
            "attempts": integer(1, 10),
            "backoff": duration(),
        }),
    );
    let rule = object(
        &json!([]),
        &json!({
            "name": label(),
            "matches": list(&matches(), 0, 64),
            "filters": filters(),
            "backendRefs": list(&backend(), 0, 16),
            "timeouts": timeouts,
            "retry": retry,
        }),
    );
    object(
        &json!(["parentRefs", "rules"]),
        &json!({
            "parentRefs": list(&parent_ref(), 1, 32),
            "hostnames": list(&hostname(), 0, 16),
            "rules": list(&rule, 1, 16),
        }),
    )
}

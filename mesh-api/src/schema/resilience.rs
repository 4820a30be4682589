//! The schemas of what a `TrafficPolicy` asks for of requests.

use serde_json::{Value, json};

use super::{duration, integer, list, object, words};

pub(super) fn success_rate() -> Value {
    object(
        &json!([]),
        &json!({
            "interval": duration(),
            "minimumHosts": integer(1, 1000),
            "requestVolume": integer(1, 1_000_000),
            "stdevFactor": integer(1, 10_000),
        }),
    )
}

pub(super) fn breaker() -> Value {
    object(
        &json!([]),
        &json!({
            "scope": words(&["endpoint", "service"]),
            "consecutiveFailures": integer(1, 1000),
            "failurePercent": integer(1, 100),
            "minimumRequests": integer(1, 1_000_000),
            "openFor": duration(),
            "maxOpenFor": duration(),
        }),
    )
}

pub(super) fn rate_limit() -> Value {
    object(
        &json!(["requests"]),
        &json!({
            "requests": integer(1, 1_000_000),
            "per": duration(),
            "burst": integer(1, 1_000_000),
            "by": words(&["source", "header"]),
            "header": { "type": "string", "minLength": 1, "maxLength": 256 },
        }),
    )
}

pub(super) fn fault() -> Value {
    let percent = integer(0, 100);
    object(
        &json!([]),
        &json!({
            "headers": list(&super::http::field(), 0, 16),
            "delay": object(&json!(["duration"]), &json!({ "percent": percent, "duration": duration() })),
            "abort": object(&json!(["status"]), &json!({ "percent": percent, "status": integer(400, 599) })),
        }),
    )
}

pub(super) fn hedge() -> Value {
    object(
        &json!([]),
        &json!({ "after": duration(), "percentile": integer(50, 99), "maxPercent": integer(1, 100) }),
    )
}

pub(super) fn affinity() -> Value {
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 128 });
    let path = json!({ "type": "string", "pattern": "^/", "maxLength": 128 });
    let cookie = object(&json!(["name"]), &json!({ "name": name, "ttl": duration(), "path": path }));
    let one = json!({ "timeout": duration(), "header": name, "query": name, "cookie": cookie });
    let mut either = object(&json!([]), &one);
    either["minProperties"] = json!(1);
    either["maxProperties"] = json!(1);
    either
}

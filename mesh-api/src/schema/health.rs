//! Schemas of health checks and recoveries.

use serde_json::{Value, json};

use super::{duration, integer, label, list, object, port};

pub(super) fn check() -> Value {
    let header = object(
        &json!(["name", "value"]),
        &json!({
            "name": { "type": "string", "minLength": 1, "maxLength": 256 },
            "value": { "type": "string", "maxLength": 1024 },
        }),
    );
    let status = json!({
        "type": ["integer", "string"], "minimum": 100, "maximum": 599, "pattern": "^[1-5][0-9]{2}-[1-5][0-9]{2}$",
    });
    let http = object(
        &json!([]),
        &json!({
            "path": { "type": "string", "pattern": "^/", "maxLength": 1024 },
            "port": port(),
            "headers": list(&header, 0, 16),
            "expectedStatuses": list(&status, 1, 16),
        }),
    );
    let service = json!({ "type": "string", "maxLength": 256 });
    let mut check = object(
        &json!([]),
        &json!({
            "http": http,
            "grpc": object(&json!([]), &json!({ "service": service, "port": port() })),
            "tcp": object(&json!([]), &json!({ "port": port() })),
            "command": object(&json!(["ref"]), &json!({ "ref": label() })),
            "interval": duration(),
            "timeout": duration(),
            "jitterPercent": integer(0, 100),
            "healthyThreshold": integer(1, 1000),
            "unhealthyThreshold": integer(1, 1000),
            "startupGrace": duration(),
        }),
    );
    check["oneOf"] = one_of(&["http", "grpc", "tcp", "command"]);
    check
}

pub(super) fn recovery() -> Value {
    let nothing = object(&json!([]), &json!({}));
    let url = json!({ "type": "string", "pattern": "^https?://", "maxLength": 1024 });
    let mut step = object(
        &json!([]),
        &json!({
            "after": integer(1, 1000),
            "drain": nothing,
            "eject": nothing,
            "webhook": object(&json!(["url"]), &json!({ "url": url })),
            "restart": object(&json!(["ref"]), &json!({ "ref": label(), "atMost": integer(1, 100) })),
        }),
    );
    step["oneOf"] = one_of(&["drain", "eject", "webhook", "restart"]);
    let readmit = object(&json!(["afterPasses"]), &json!({ "afterPasses": integer(1, 1000) }));
    object(&json!([]), &json!({ "steps": list(&step, 0, 8), "readmit": readmit }))
}

/// Exactly one of these fields.
fn one_of(fields: &[&str]) -> Value {
    fields.iter().map(|field| json!({ "required": [field] })).collect()
}

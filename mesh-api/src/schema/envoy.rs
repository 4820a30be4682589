//! The schema of `EnvoyResources`. Of raw resources it says that they are objects: Envoy's API says the rest.

use serde_json::{Value, json};

use super::{address, label, list, object, port};

pub(super) fn resources() -> Value {
    let raw = list(&json!({ "type": "object", "additionalProperties": {} }), 0, 1024);
    let file = json!({ "type": "string", "pattern": "^/", "maxLength": 4096 });
    let host = json!({ "type": "string", "minLength": 1, "maxLength": 253 });
    let service = object(
        &json!(["name", "port"]),
        &json!({ "namespace": label(), "name": label(), "port": port(), "hosts": list(&host, 0, 64) }),
    );
    let gateway = object(
        &json!(["port", "services"]),
        &json!({
            "address": address(),
            "port": port(),
            "tls": object(&json!(["certificateFile", "keyFile"]), &json!({ "certificateFile": file, "keyFile": file })),
            "services": list(&service, 1, 1024),
        }),
    );
    object(
        &json!([]),
        &json!({
            "nodeType": { "type": "string", "pattern": "^[A-Za-z0-9_.]{1,63}$" },
            "gateway": gateway,
            "listeners": raw,
            "clusters": raw,
            "routes": raw,
            "endpoints": raw,
            "secrets": raw,
        }),
    )
}

//! What is answered: kinds as `mesh_api::schema` says them, and what stands beside them.

use mesh_api::resource::Kind;
use mesh_api::schema::schema;
use serde_json::{Map, Value, json};

fn object(required: &[&str], properties: &Value) -> Value {
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

/// Every refusal.
pub fn refused() -> Value {
    json!({
        "description": "Refused; the error says where, what and what is accepted.",
        "content": { "application/json": { "schema": named("Refusal") } },
    })
}

/// All of them.
pub fn all() -> Value {
    let mut out = Map::new();
    for kind in Kind::ALL {
        of_kind(kind, &mut out);
    }
    let any = |suffix: &str| Kind::ALL.map(|kind| named(&format!("{}{suffix}", kind.name())));
    out.insert("Object".to_owned(), json!({ "oneOf": any("") }));
    out.insert("ObjectShown".to_owned(), json!({ "oneOf": any("Shown") }));
    for (name, schema) in shared() {
        out.insert(name.to_owned(), schema);
    }
    Value::Object(out)
}

fn of_kind(kind: Kind, out: &mut Map<String, Value>) {
    let mut written = schema(kind);
    if let Some(fields) = written.as_object_mut() {
        fields.remove("$schema");
    }
    let mut shown = written.clone();
    shown["required"] = json!(["apiVersion", "kind", "metadata", "spec"]);
    shown["properties"]["status"] = named("ObjectStatus");
    shown["properties"]["observed"] = json!({ "type": "object" });
    shown["properties"]["result"] = json!({ "type": "string", "enum": ["created", "updated", "unchanged"] });
    shown["properties"]["conditions"] = json!({ "type": "array", "items": named("Condition") });
    shown["properties"]["dryRun"] = json!({ "type": "boolean" });
    let list = object(
        &["revision", "items"],
        &json!({
            "revision": count(),
            "items": { "type": "array", "items": named(&format!("{}Shown", kind.name())) },
            "continue": text(),
        }),
    );
    out.insert(kind.name().to_owned(), written);
    out.insert(format!("{}Shown", kind.name()), shown);
    out.insert(format!("{}List", kind.name()), list);
}

fn shared() -> Vec<(&'static str, Value)> {
    let texts = || json!({ "type": "array", "items": text() });
    let items = || json!({ "type": "array", "items": { "type": "object" } });
    vec![
        ("Refusal", object(&["error"], &json!({ "error": error() }))),
        (
            "Condition",
            object(
                &["type", "status", "reason", "message"],
                &json!({
                    "type": text(),
                    "status": { "type": "string", "enum": ["True", "False"] },
                    "reason": text(),
                    "message": text(),
                }),
            ),
        ),
        (
            "ObjectStatus",
            object(
                &[],
                &json!({ "vips": texts(), "conditions": { "type": "array", "items": named("Condition") } }),
            ),
        ),
        ("Items", json!({ "type": "object", "required": ["items"], "properties": { "items": items() } })),
        (
            "StatusPage",
            json!({
                "type": "object",
                "required": ["storeId", "revision", "ready", "resources", "nodes", "leases", "conditions"],
                "properties": {
                    "storeId": text(), "revision": count(), "ready": { "type": "boolean" },
                    "resources": { "type": "object", "additionalProperties": count() },
                    "nodes": { "type": "object" }, "leases": items(),
                    "conditions": { "type": "array", "items": named("Condition") },
                    "files": { "type": ["object", "null"] },
                },
            }),
        ),
        ("Discovery", discovery()),
        ("Restored", object(&["entries", "revision"], &json!({ "entries": count(), "revision": count() }))),
        ("Removed", object(&["revision"], &json!({ "revision": count(), "dryRun": { "type": "boolean" } }))),
        ("History", object(&["items"], &json!({ "items": { "type": "array", "items": past() } }))),
        ("Rollback", object(&["revision"], &json!({ "revision": { "type": "integer", "minimum": 1 } }))),
        ("TokenWanted", token_wanted()),
        (
            "TokenMade",
            object(&["id", "role", "token"], &json!({ "id": text(), "role": text(), "token": text() })),
        ),
        ("Rotation", object(&[], &json!({ "root": { "type": "boolean" } }))),
        (
            "Revocation",
            json!({ "oneOf": [
                object(&["serial"], &json!({ "serial": text() })),
                object(&["identity"], &json!({ "identity": text() })),
                object(&["node"], &json!({ "node": text() })),
            ] }),
        ),
    ]
}

fn error() -> Value {
    object(
        &["reason", "path", "value", "accepted", "message"],
        &json!({ "reason": text(), "path": text(), "value": {}, "accepted": text(), "message": text() }),
    )
}

fn past() -> Value {
    let by = object(&["id", "name"], &json!({ "id": text(), "name": text() }));
    let change = object(&["path", "before", "after"], &json!({ "path": text(), "before": {}, "after": {} }));
    let what =
        json!({ "type": "string", "enum": ["created", "updated", "deleted", "rolledBack", "restored"] });
    object(
        &["revision", "atMs", "by", "owner", "what", "object", "changes"],
        &json!({
            "revision": count(), "atMs": count(), "by": by, "owner": text(), "what": what, "to": count(),
            "object": { "type": ["object", "null"] },
            "changes": { "type": "array", "items": change },
        }),
    )
}

fn discovery() -> Value {
    let port = object(
        &["name", "port", "protocol"],
        &json!({ "name": text(), "port": count(), "protocol": text() }),
    );
    let endpoint = object(
        &["workload", "addresses", "port", "portName", "targetPort", "weight"],
        &json!({
            "workload": text(), "node": text(), "addresses": { "type": "array", "items": text() },
            "port": count(), "portName": text(), "targetPort": count(), "weight": count(), "priority": count(),
            "locality": { "type": ["object", "null"] },
        }),
    );
    object(
        &["service", "index", "revision", "ports", "endpoints"],
        &json!({
            "service": text(), "index": text(), "revision": count(),
            "ports": { "type": "array", "items": port },
            "endpoints": { "type": "array", "items": endpoint },
        }),
    )
}

fn token_wanted() -> Value {
    let (name, ttl) = (
        json!({ "type": "string", "maxLength": 64 }),
        json!({ "type": "string", "pattern": "^[1-9][0-9]{0,3}(s|m|h)$" }),
    );
    let people = object(
        &["role"],
        &json!({ "role": { "type": "string", "enum": ["admin", "editor", "viewer"] }, "name": name, "ttl": ttl }),
    );
    let node = object(
        &["role", "node", "allow"],
        &json!({
            "role": { "type": "string", "enum": ["node"] }, "name": name, "ttl": ttl,
            "node": { "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?$" },
            "allow": { "type": "array", "minItems": 1, "maxItems": 1024, "items": { "type": "string", "pattern": "^[a-z0-9]{1,20}/[a-z0-9]{1,20}$" } },
            "singleUse": { "type": "boolean" },
        }),
    );
    json!({ "oneOf": [people, node] })
}

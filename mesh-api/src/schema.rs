//! JSON schemas of the resources, for editors and the API's description.
//!
//! They say what the parsers take; the parsers decide (a test walks both). Formats that a schema can't say
//! (addresses that are unicast, names that are distinct) are only in the parsers.
//! Not here: status (it is never written).

mod envoy;
mod health;
mod http;
mod resilience;

use serde_json::{Value, json};

use crate::resource::{Kind, PRIORITY_MAX};

/// The schema of a kind.
pub fn schema(kind: Kind) -> Value {
    let mut metadata = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["name"],
        "properties": {
            "name": if kind == Kind::Service { label() } else { subdomain() },
            "namespace": label(),
            "labels": { "type": "object", "maxProperties": 64, "additionalProperties": { "type": "string" } },
            "uid": { "type": "string", "readOnly": true },
            "revision": { "type": "integer", "minimum": 0, "readOnly": true },
            "createdMs": { "type": "integer", "minimum": 0, "readOnly": true },
        },
    });
    if !kind.namespaced()
        && let Some(fields) = metadata["properties"].as_object_mut()
    {
        fields.remove("namespace");
    }
    let required = if kind == Kind::Mesh {
        json!(["apiVersion", "kind", "metadata"])
    } else {
        json!(["apiVersion", "kind", "metadata", "spec"])
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.name(),
        "type": "object",
        "additionalProperties": false,
        "required": required,
        "properties": {
            "apiVersion": { "const": kind.api_version() },
            "kind": { "const": kind.name() },
            "metadata": metadata,
            "spec": spec(kind),
            "status": { "type": "object", "readOnly": true },
        },
    })
}

fn spec(kind: Kind) -> Value {
    match kind {
        Kind::Service => service(),
        Kind::Workload => workload(),
        Kind::HttpRoute => http::route(),
        Kind::GrpcRoute => http::grpc_route(),
        Kind::TlsRoute => tls_route(),
        Kind::TcpRoute | Kind::UdpRoute => l4_route(),
        Kind::TrafficPolicy => traffic_policy(),
        Kind::AuthorizationPolicy => authorization_policy(),
        Kind::TransportPolicy => transport_policy(),
        Kind::ExternalService => external_service(),
        Kind::EnvoyResources => envoy::resources(),
        Kind::Mesh => mesh(),
    }
}

fn object(required: &Value, properties: &Value) -> Value {
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}

fn list(items: &Value, min: usize, max: usize) -> Value {
    json!({ "type": "array", "minItems": min, "maxItems": max, "items": items })
}

fn integer(min: u64, max: u64) -> Value {
    json!({ "type": "integer", "minimum": min, "maximum": max })
}

fn port() -> Value {
    integer(1, 65_535)
}

fn words(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}

fn label() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" })
}

fn subdomain() -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": 253,
        "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    })
}

fn label_value() -> Value {
    json!({ "type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$" })
}

fn address() -> Value {
    json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] })
}

fn duration() -> Value {
    json!({ "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" })
}

fn service() -> Value {
    let port = object(
        &json!(["port"]),
        &json!({
            "name": label(),
            "port": port(),
            "targetPort": port(),
            "protocol": words(&["tcp", "http", "tls", "udp", "auto"]),
            "inbound": words(&["kernel", "proxy"]),
            "healthCheck": health::check(),
        }),
    );
    object(
        &json!(["ports"]),
        &json!({
            "vips": list(&address(), 0, 16),
            "headless": { "type": "boolean" },
            "selector": { "type": "object", "maxProperties": 64, "additionalProperties": { "type": "string" } },
            "ports": list(&port, 1, 65_535),
            "healthCheck": health::check(),
            "recovery": health::recovery(),
            "dns": dns(),
        }),
    )
}

fn workload() -> Value {
    let weight = integer(0, 65_535);
    let membership = object(
        &json!(["service"]),
        &json!({ "service": label(), "portName": label(), "targetPort": port(), "weight": weight }),
    );
    object(
        &json!(["addresses"]),
        &json!({
            "addresses": list(&address(), 1, 16),
            "node": subdomain(),
            "serviceAccount": subdomain(),
            "hostNetwork": { "type": "boolean" },
            "hbone": { "type": "boolean" },
            "locality": object(&json!([]), &json!({ "region": label_value(), "zone": label_value() })),
            "priority": integer(0, PRIORITY_MAX.into()),
            "weight": weight,
            "services": list(&membership, 0, 1024),
        }),
    )
}

fn parent_ref() -> Value {
    object(
        &json!(["kind", "name"]),
        &json!({
            "group": words(&[""]), "kind": words(&["Service"]), "namespace": label(), "name": label(), "port": port(),
        }),
    )
}

fn backend_ref() -> Value {
    object(
        &json!(["name", "port"]),
        &json!({
            "group": words(&[""]), "kind": words(&["Service"]), "namespace": label(), "name": label(), "port": port(),
            "weight": integer(0, 1_000_000),
        }),
    )
}

fn l4_route() -> Value {
    let rule = object(&json!(["backendRefs"]), &json!({ "backendRefs": list(&backend_ref(), 1, 16) }));
    object(
        &json!(["parentRefs", "rules"]),
        &json!({ "parentRefs": list(&parent_ref(), 1, 32), "rules": list(&rule, 1, 1) }),
    )
}

fn tls_route() -> Value {
    let mut route = l4_route();
    route["required"] = json!(["parentRefs", "hostnames", "rules"]);
    route["properties"]["hostnames"] = list(&http::hostname(), 1, 16);
    route
}

fn traffic_policy() -> Value {
    let target = object(
        &json!(["kind", "name"]),
        &json!({
            "group": words(&[""]), "kind": words(&["Service"]), "name": label(), "sectionName": label(),
        }),
    );
    object(
        &json!(["targetRefs"]),
        &json!({
            "targetRefs": list(&target, 1, 16),
            "http": words(&["proxy", "kernel"]),
            "onProxyLoss": words(&["bypass", "refuse"]),
            "balancing": words(&["roundRobin", "random", "leastConnections", "leastRequests", "peakEwma", "maglev"]),
            "affinity": resilience::affinity(),
            "limits": object(
                &json!([]),
                &json!({
                    "maxConnections": integer(1, 1_000_000),
                    "maxConnectionsPerEndpoint": integer(1, 1_000_000),
                    "maxRequests": integer(1, 1_000_000),
                    "maxRequestsPerEndpoint": integer(1, 1_000_000),
                    "maxPending": integer(1, 1_000_000),
                    "queueTimeout": duration(),
                }),
            ),
            "outlierEjection": object(
                &json!([]),
                &json!({
                    "consecutiveConnectFailures": integer(1, 1000),
                    "baseEjectionTime": duration(),
                    "maxEjectedPercent": integer(1, 100),
                    "consecutive5xx": integer(1, 1000),
                    "consecutiveGatewayFailures": integer(1, 1000),
                    "successRate": resilience::success_rate(),
                }),
            ),
            "breaker": resilience::breaker(),
            "rateLimits": list(&resilience::rate_limit(), 1, 8),
            "fault": resilience::fault(),
            "hedge": resilience::hedge(),
            "connectTimeout": duration(),
            "slowStart": object(&json!(["window"]), &json!({ "window": duration() })),
            "locality": object(
                &json!([]),
                &json!({
                    "prefer": list(&words(&["node", "zone", "region"]), 0, 3),
                    "mode": words(&["failover", "strict"]),
                    "overprovisioningPercent": integer(100, 10_000),
                }),
            ),
        }),
    )
}

fn selector() -> Value {
    let labels =
        json!({ "type": "object", "maxProperties": 64, "additionalProperties": { "type": "string" } });
    object(&json!([]), &json!({ "matchLabels": labels }))
}

fn authorization_policy() -> Value {
    let text = json!({ "type": "string", "minLength": 1 });
    let from = object(
        &json!([]),
        &json!({
            "serviceAccounts": list(&text, 1, 64),
            "principals": list(&json!({ "type": "string", "pattern": "^spiffe://" }), 1, 64),
            "namespaces": list(&label(), 1, 64),
            "cidrs": list(&text, 1, 64),
            "jwt": jwt_terms(),
        }),
    );
    let token =
        |max| json!({ "type": "string", "pattern": "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$", "maxLength": max });
    let to = object(
        &json!([]),
        &json!({
            "ports": list(&port(), 1, 64),
            "methods": list(&token(32), 1, 64),
            "paths": list(&json!({ "type": "string", "pattern": "^/", "maxLength": 1024 }), 1, 64),
            "hosts": list(&text, 1, 64),
        }),
    );
    let value = json!({ "type": "string", "minLength": 1, "maxLength": 256 });
    let yes = json!({ "type": "boolean", "enum": [true] });
    let header = object(
        &json!(["name"]),
        &json!({
            "name": token(64), "values": list(&value, 1, 64), "prefix": value, "present": yes, "absent": yes,
        }),
    );
    let rule = object(
        &json!([]),
        &json!({ "from": list(&from, 1, 16), "to": list(&to, 1, 16), "headers": list(&header, 1, 16) }),
    );
    object(
        &json!([]),
        &json!({
            "selector": selector(),
            "action": words(&["allow", "deny", "audit", "custom"]),
            "provider": label(),
            "rules": list(&rule, 0, 64),
        }),
    )
}

fn transport_policy() -> Value {
    let text = json!({ "type": "string", "minLength": 1 });
    let exclusions = object(
        &json!([]),
        &json!({
            "ports": list(&port(), 0, 64),
            "cidrs": list(&text, 0, 64),
            "interfaces": list(&json!({ "type": "string", "pattern": "^[!-.0-9;-~]{1,15}$" }), 0, 64),
        }),
    );
    object(
        &json!([]),
        &json!({
            "scope": words(&["namespace", "mesh"]),
            "selector": selector(),
            "mtls": mtls(),
            "udp": words(&["allow", "deny"]),
            "exclude": object(&json!([]), &json!({ "outbound": exclusions, "inbound": exclusions })),
            "budget": object(
                &json!([]),
                &json!({ "connections": integer(1, 1_000_000), "pending": integer(1, 16_384) }),
            ),
            "splice": { "type": "boolean" },
            "egress": egress(),
            "accessLog": object(
                &json!([]),
                &json!({ "percent": integer(0, 100), "errors": { "type": "boolean" } }),
            ),
        }),
    )
}

/// Either field will do; none won't.
fn mtls() -> Value {
    let one = object(&json!(["port", "mode"]), &json!({ "port": port(), "mode": mtls_mode() }));
    let mut both = object(&json!([]), &json!({ "mode": mtls_mode(), "ports": list(&one, 0, 64) }));
    both["minProperties"] = json!(1);
    both
}

fn mtls_mode() -> Value {
    words(&["off", "permissive", "strict"])
}

fn egress() -> Value {
    object(&json!(["mode"]), &json!({ "mode": words(&["allowAll", "allowList"]) }))
}

/// Host names, or addresses, or both.
fn external_service() -> Value {
    let text = json!({ "type": "string", "minLength": 1 });
    let tls = object(
        &json!(["mode"]),
        &json!({
            "mode": words(&["originate"]),
            "sni": subdomain(),
            "caBundle": text,
            "caFile": json!({ "type": "string", "pattern": "^/" }),
            "subjectAltNames": list(&text, 0, 16),
            "clientCertificate": words(&["none", "mesh"]),
            "alpn": list(&text, 0, 8),
        }),
    );
    let port = object(
        &json!(["port"]),
        &json!({
            "name": label(),
            "port": port(),
            "targetPort": port(),
            "protocol": words(&["tcp", "http", "tls"]),
            "tls": tls,
        }),
    );
    object(
        &json!(["ports"]),
        &json!({
            "hosts": list(&subdomain(), 0, 16),
            "addresses": list(&address(), 0, 64),
            "ports": list(&port, 1, 64),
        }),
    )
}

fn mesh() -> Value {
    let network = json!({ "type": "string", "pattern": "/[0-9]+$" });
    object(
        &json!([]),
        &json!({
            "trustDomain": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[a-z0-9._-]+$" },
            "vipPool": object(&json!([]), &json!({ "v4": network, "v6": network })),
            "http": words(&["proxy", "kernel"]),
            "mtls": object(&json!(["mode"]), &json!({ "mode": mtls_mode() })),
            "egress": egress(),
            "jwtProviders": list(&jwt_provider(), 0, 16),
            "extAuthz": list(&ext_authz(), 0, 16),
            "dns": dns(),
        }),
    )
}

fn dns() -> Value {
    object(&json!(["ttl"]), &json!({ "ttl": duration() }))
}

fn ext_authz() -> Value {
    let service =
        object(&json!(["name", "port"]), &json!({ "namespace": label(), "name": label(), "port": port() }));
    object(
        &json!(["name", "service"]),
        &json!({
            "name": label(),
            "service": service,
            "timeout": duration(),
            "onFailure": words(&["deny", "allow"]),
        }),
    )
}

fn plain() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 1024 })
}

fn jwt_provider() -> Value {
    let header = json!({ "type": "string", "minLength": 1, "maxLength": 128 });
    let prefix = json!({ "type": "string", "maxLength": 64 });
    let from = object(&json!(["name"]), &json!({ "name": header, "prefix": prefix }));
    let claim = object(&json!(["claim", "header"]), &json!({ "claim": plain(), "header": header }));
    let text = json!({ "type": "string" });
    let mut jwks = object(
        &json!([]),
        &json!({
            "inline": text,
            "file": { "type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$" },
            "url": { "type": "string", "pattern": "^https?://" },
            "ca": text,
        }),
    );
    jwks["minProperties"] = json!(1);
    object(
        &json!(["name", "issuer", "jwks"]),
        &json!({
            "name": label(),
            "issuer": plain(),
            "audiences": list(&plain(), 0, 64),
            "jwks": jwks,
            "fromHeaders": list(&from, 1, 8),
            "forward": { "type": "boolean" },
            "claimsToHeaders": list(&claim, 0, 8),
            "clockSkew": duration(),
        }),
    )
}

fn jwt_terms() -> Value {
    let claim =
        object(&json!(["name", "values"]), &json!({ "name": plain(), "values": list(&plain(), 1, 64) }));
    object(
        &json!(["provider"]),
        &json!({ "provider": label(), "subjects": list(&plain(), 1, 64), "claims": list(&claim, 1, 8) }),
    )
}

//! Refusals name the exact place; what is accepted is read back as it was written.

mod egress;
mod envoy;
mod examples;
mod health;
mod jwt;
mod locality;
mod resilience;
mod routes;
mod schemas;

use serde_json::{Value, json};

use super::*;
use crate::error::Reason;
use crate::proto::v1;
use crate::wire::{Wire, wire};

fn object(kind: &str, spec: &Value) -> Value {
    let api = if kind.ends_with("Route") { "gateway.networking.k8s.io/v1" } else { "nodemesh.io/v1" };
    let name = if kind == "Mesh" { "mesh" } else { "web" };
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn examples() -> Vec<Value> {
    let mut all = vec![
        object("Service", &json!({"ports": [{"port": 80}]})),
        object(
            "Service",
            &json!({
                "vips": ["240.240.0.9", "fd00:6e6d::9"],
                "selector": {"app.kubernetes.io/name": "web"},
                "ports": [
                    {"name": "http", "port": 80, "targetPort": 8080, "protocol": "http", "inbound": "proxy"},
                    {"name": "tls", "port": 443, "protocol": "tls"},
                ],
            }),
        ),
        object("Service", &json!({"headless": true, "ports": [{"port": 6379, "protocol": "tcp"}]})),
        object(
            "Workload",
            &json!({
                "addresses": ["10.1.0.2", "fd00::2"], "node": "n1", "serviceAccount": "web", "weight": 7,
                "hostNetwork": true, "hbone": true, "locality": {"region": "eu", "zone": "eu-1"}, "priority": 1,
                "services": [{"service": "web", "portName": "http", "targetPort": 8080, "weight": 3}, {"service": "db"}],
            }),
        ),
        object(
            "HTTPRoute",
            &json!({
                "parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}],
                "hostnames": ["shop.example", "*.example"],
                "rules": [
                    {
                        "matches": [{"path": {"type": "Exact", "value": "/a"}}, {"path": {"value": "/b"}}],
                        "backendRefs": [{"name": "v1", "port": 80, "weight": 90}, {"name": "v2", "port": 80, "namespace": "x"}],
                    },
                    {},
                    {
                        "name": "all",
                        "matches": [
                            {
                                "path": {"type": "RegularExpression", "value": "/v[0-9]+/.*"},
                                "headers": [{"name": "x-canary", "value": "yes"}, {"type": "RegularExpression", "name": "x-v", "value": "[12]"}],
                                "queryParams": [{"type": "Exact", "name": "debug", "value": "1"}],
                                "method": "POST",
                            },
                        ],
                        "filters": [
                            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-a", "value": "1"}], "add": [{"name": "x-b", "value": "2 3"}], "remove": ["x-c"]}},
                            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["server"]}},
                            {"type": "URLRewrite", "urlRewrite": {"hostname": "inside.example", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}},
                            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "shadow", "port": 80}, "percent": 10}},
                            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "dark", "port": 80}, "fraction": {"numerator": 1, "denominator": 1000}}},
                        ],
                        "backendRefs": [{
                            "name": "v1", "port": 80,
                            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "x-v", "value": "1"}]}}],
                        }],
                        "timeouts": {"request": "10s", "backendRequest": "2s"},
                        "retry": {"codes": [502, 503], "attempts": 2, "backoff": "100ms"},
                    },
                    {
                        "matches": [{"path": {"value": "/old"}}],
                        "filters": [{
                            "type": "RequestRedirect",
                            "requestRedirect": {
                                "scheme": "https", "hostname": "new.example", "port": 8443, "statusCode": 308,
                                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"},
                            },
                        }],
                    },
                ],
            }),
        ),
        object(
            "TrafficPolicy",
            &json!({
                "targetRefs": [{"kind": "Service", "name": "web", "sectionName": "http"}],
                "http": "kernel", "onProxyLoss": "refuse", "balancing": "roundRobin",
            }),
        ),
        object("Mesh", &json!({})),
        object(
            "Mesh",
            &json!({"trustDomain": "example.org", "vipPool": {"v4": "10.96.0.0/12", "v6": "fd12::/64"}, "http": "kernel"}),
        ),
        object(
            "AuthorizationPolicy",
            &json!({
                "selector": {"matchLabels": {"app": "db"}}, "action": "deny",
                "rules": [
                    {
                        "from": [
                            {"serviceAccounts": ["cart", "shop/pay"], "principals": ["spiffe://mesh.local/ns/a/sa/b"]},
                            {"namespaces": ["ops"], "cidrs": ["10.0.0.0/8", "fd00::/8"]},
                        ],
                        "to": [{"ports": [5432, 80]}],
                    },
                    {},
                ],
            }),
        ),
    ];
    all.extend(examples::policies_and_routes_below_http());
    all.extend(jwt::examples());
    all.extend(routes::examples());
    all.extend(resilience::examples());
    all.extend(envoy::examples());
    all.extend(health::examples());
    all
}

#[test]
fn what_is_written_is_read_back() {
    for example in examples() {
        let resource = Resource::parse(&example).unwrap_or_else(|error| panic!("{example}: {error}"));
        let written = resource.to_json();
        assert_eq!(Resource::parse(&written), Ok(resource.clone()), "{written}");
        assert_eq!(Resource::from_json(written.to_string().as_bytes()), Ok(resource));
    }
}

#[test]
fn what_the_server_set_is_read_back_and_overwritten() {
    let mut stored = Resource::parse(&examples()[0]).unwrap().admitted(None, 42, || "u-1".to_owned());
    stored.status.vips = vec!["240.240.1.1".parse().unwrap()];
    stored.metadata.revision = 9;
    let mut shown = stored.clone();
    shown.status.conditions.push(Condition::new("ResolvedRefs", false, "UnknownService", "it is not there"));
    let mut read = Resource::parse(&shown.to_json()).unwrap();
    assert_eq!(read, shown);
    // Somebody edits what was shown, and lies.
    read.metadata.created_ms = 1;
    read.metadata.uid = None;
    let again = read.admitted(Some(&stored), 99, || "u-2".to_owned());
    assert_eq!((again.metadata.created_ms, again.metadata.uid.as_deref()), (42, Some("u-1")));
    assert_eq!((again.status.vips, again.status.conditions), (stored.status.vips, vec![]));
}

/// Refused with this reason at this path; the rest of the error is filled.
#[track_caller]
fn refuses(value: &Value, reason: Reason, path: &str) {
    let error = Resource::parse(value).expect_err("refused");
    assert_eq!((error.reason, error.path.as_str()), (reason, path), "{error:?}");
    assert!(!error.accepted.is_empty() && error.message.contains(path), "{error:?}");
}

/// The first example of a kind, with one place of it changed.
fn changed(example: usize, pointer: &str, to: Value) -> Value {
    let mut value = examples()[example].clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}")) {
        Value::Object(map) => {
            map.insert(field.to_owned(), to);
        }
        Value::Array(list) => list[field.parse::<usize>().unwrap()] = to,
        other => panic!("{other}"),
    }
    value
}

#[test]
fn the_envelope_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&json!([]), WrongType, "");
    refuses(&json!({}), MissingField, "kind");
    refuses(&changed(0, "/kind", json!("Deployment")), UnknownKind, "kind");
    refuses(&changed(0, "/kind", json!("Telemetry")), NotBuiltYet, "kind");
    refuses(&changed(0, "/apiVersion", json!("v1")), BadFormat, "apiVersion");
    refuses(&changed(0, "/spec", Value::Null), MissingField, "spec");
    refuses(&changed(0, "/extra", json!(1)), UnknownField, "extra");
    refuses(&changed(0, "/metadata/name", json!("Web")), BadFormat, "metadata.name");
    refuses(&changed(0, "/metadata/name", json!("a.b")), BadFormat, "metadata.name");
    refuses(&changed(0, "/metadata/namespace", json!("../x")), BadFormat, "metadata.namespace");
    refuses(&changed(0, "/metadata/labels", json!({"a b": "c"})), BadFormat, r#"metadata.labels["a b"]"#);
    refuses(&changed(0, "/metadata/labels", json!({"a": 1})), WrongType, r#"metadata.labels["a"]"#);
    refuses(&changed(0, "/metadata/annotations", json!({})), NotBuiltYet, "metadata.annotations");
    refuses(&changed(6, "/metadata/name", json!("other")), OutOfRange, "metadata.name");
    refuses(&changed(6, "/metadata/namespace", json!("default")), Conflict, "metadata.namespace");
    let error = Resource::from_json(b"{").unwrap_err();
    assert_eq!(error.reason, Malformed);
    assert_eq!(Resource::from_json(&vec![b' '; MAX_BYTES + 1]).unwrap_err().reason, OutOfRange);
}

#[test]
fn a_service_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&changed(0, "/spec/ports", json!([])), OutOfRange, "spec.ports");
    refuses(&changed(1, "/spec/ports/1/port", json!(70000)), OutOfRange, "spec.ports[1].port");
    refuses(&changed(1, "/spec/ports/1/port", json!(0)), OutOfRange, "spec.ports[1].port");
    refuses(&changed(1, "/spec/ports/1/port", json!("80")), WrongType, "spec.ports[1].port");
    refuses(&changed(1, "/spec/ports/1/port", json!(80)), Conflict, "spec.ports[1].port");
    refuses(&changed(1, "/spec/ports/1/port", json!(80.5)), OutOfRange, "spec.ports[1].port");
    refuses(&changed(1, "/spec/ports/1/name", json!("http")), Conflict, "spec.ports[1].name");
    refuses(&changed(1, "/spec/ports/1/name", Value::Null), MissingField, "spec.ports[1].name");
    refuses(&changed(1, "/spec/ports/0/protocol", json!("grpc")), NotBuiltYet, "spec.ports[0].protocol");
    refuses(&changed(1, "/spec/ports/0/protocol", json!("ftp")), BadFormat, "spec.ports[0].protocol");
    refuses(&changed(1, "/spec/ports/0/prot", json!("tcp")), UnknownField, "spec.ports[0].prot");
    refuses(&changed(0, "/spec/affinity", json!({})), NotBuiltYet, "spec.affinity");
    refuses(&changed(1, "/spec/headless", json!(true)), Conflict, "spec.vips");
    for bad in ["127.0.0.1", "::ffff:10.0.0.1", "224.0.0.1", "fe80::1", "0.0.0.0", "10.0.0.1/24", "web"] {
        refuses(&changed(1, "/spec/vips/0", json!(bad)), BadFormat, "spec.vips[0]");
    }
    refuses(&changed(1, "/spec/vips/1", json!("240.240.0.9")), Conflict, "spec.vips[1]");
}

#[test]
fn a_workload_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&changed(3, "/spec/addresses", Value::Null), MissingField, "spec.addresses");
    refuses(&changed(3, "/spec/addresses/1", json!("10.1.0.2")), Conflict, "spec.addresses[1]");
    refuses(&changed(3, "/spec/weight", json!(65_536)), OutOfRange, "spec.weight");
    refuses(&changed(3, "/spec/services/1/service", json!("a/b")), BadFormat, "spec.services[1].service");
    refuses(&changed(3, "/spec/services/0/weight", json!(-1)), OutOfRange, "spec.services[0].weight");
    refuses(&changed(3, "/spec/node", json!("n1/..")), BadFormat, "spec.node");
}

#[test]
fn udp_ports_and_routes_below_http_are_refused_where_they_are_wrong() {
    use Reason::*;
    refuses(&changed(10, "/spec/ports/1/protocol", json!("udp")), Conflict, "spec.ports[1].port");
    refuses(&changed(10, "/spec/ports/0/protocol", json!("http")), Conflict, "spec.ports[1].port");
    refuses(&changed(10, "/spec/ports/0/inbound", json!("proxy")), Conflict, "spec.ports[0].inbound");
    for route in [11, 12] {
        let rule = json!({"backendRefs": [{"name": "a", "port": 1}]});
        refuses(&changed(route, "/spec/rules", json!([rule, rule])), OutOfRange, "spec.rules");
        refuses(&changed(route, "/spec/rules", json!([])), OutOfRange, "spec.rules");
        refuses(&changed(route, "/spec/rules/0/name", json!("x")), NotBuiltYet, "spec.rules[0].name");
        refuses(&changed(route, "/spec/rules/0/matches", json!([])), UnknownField, "spec.rules[0].matches");
        let none = changed(route, "/spec/rules/0/backendRefs", json!([]));
        refuses(&none, OutOfRange, "spec.rules[0].backendRefs");
        let port = changed(route, "/spec/rules/0/backendRefs/0/port", json!(0));
        refuses(&port, OutOfRange, "spec.rules[0].backendRefs[0].port");
        refuses(&changed(route, "/spec/hostnames", json!(["a"])), UnknownField, "spec.hostnames");
        refuses(
            &changed(route, "/spec/parentRefs/0/kind", json!("Gateway")),
            NotBuiltYet,
            "spec.parentRefs[0].kind",
        );
        refuses(&changed(route, "/apiVersion", json!("nodemesh.io/v1")), BadFormat, "apiVersion");
    }
}

#[test]
fn policies_and_the_mesh_are_refused_where_they_are_wrong() {
    use Reason::*;
    refuses(&changed(5, "/spec/connectionPool", json!({})), NotBuiltYet, "spec.connectionPool");
    refuses(&changed(5, "/spec/balancing", json!("ringHash")), NotBuiltYet, "spec.balancing");
    refuses(&changed(5, "/spec/balancing", json!("magic")), BadFormat, "spec.balancing");
    refuses(&changed(5, "/spec/onProxyLoss", json!("panic")), BadFormat, "spec.onProxyLoss");
    refuses(&changed(13, "/spec/affinity", json!({})), Conflict, "spec.affinity");
    refuses(&changed(13, "/spec/affinity/header", json!("x-user")), Conflict, "spec.affinity");
    let cookie = |cookie| changed(13, "/spec/affinity", json!({ "cookie": cookie }));
    refuses(&cookie(json!({ "name": "a b" })), BadFormat, "spec.affinity.cookie.name");
    refuses(&cookie(json!({ "name": "a", "path": "x;y" })), BadFormat, "spec.affinity.cookie.path");
    refuses(&cookie(json!({ "name": "a", "ttl": "0s" })), OutOfRange, "spec.affinity.cookie.ttl");
    refuses(&changed(13, "/spec/affinity/timeout", json!("0s")), OutOfRange, "spec.affinity.timeout");
    refuses(&changed(13, "/spec/affinity/timeout", json!(30)), WrongType, "spec.affinity.timeout");
    refuses(&changed(13, "/spec/affinity/cookie", json!("id")), WrongType, "spec.affinity.cookie");
    refuses(&changed(13, "/spec/hedge", json!({})), Conflict, "spec.hedge");
    refuses(&changed(13, "/spec/hedge", json!({ "after": "9ms", "percentile": 90 })), Conflict, "spec.hedge");
    refuses(&changed(13, "/spec/hedge", json!({ "percentile": 30 })), OutOfRange, "spec.hedge.percentile");
    refuses(&changed(13, "/spec/limits/maxConnections", json!(0)), OutOfRange, "spec.limits.maxConnections");
    refuses(&changed(13, "/spec/limits/maxRetries", json!(1)), NotBuiltYet, "spec.limits.maxRetries");
    let ejection =
        |field: &str| (format!("/spec/outlierEjection/{field}"), format!("spec.outlierEjection.{field}"));
    let (at, path) = ejection("maxEjectedPercent");
    refuses(&changed(13, &at, json!(101)), OutOfRange, &path);
    let (at, path) = ejection("baseEjectionTime");
    refuses(&changed(13, &at, json!("1d")), BadFormat, &path);
    let (at, path) = ejection("consecutive5xx");
    refuses(&changed(13, &at, json!(0)), OutOfRange, &path);
    refuses(&changed(13, "/spec/connectTimeout", json!("100ms")), OutOfRange, "spec.connectTimeout");
    refuses(&changed(13, "/spec/slowStart", json!({})), MissingField, "spec.slowStart.window");
    refuses(&changed(5, "/spec/targetRefs/0/kind", json!("Pod")), BadFormat, "spec.targetRefs[0].kind");
    refuses(&changed(7, "/spec/mtls", json!("strict")), WrongType, "spec.mtls");
    refuses(&changed(7, "/spec/mtls", json!({"mode": "on"})), BadFormat, "spec.mtls.mode");
    for bad in ["10.96.0.1/12", "10.0.0.0", "10.0.0.0/31", "127.0.0.0/8", "10.0.0.0/7", "x/8"] {
        refuses(&changed(7, "/spec/vipPool/v4", json!(bad)), BadFormat, "spec.vipPool.v4");
    }
    for bad in ["fd12::1/64", "fe80::/64", "fd12::/127", "::/64"] {
        refuses(&changed(7, "/spec/vipPool/v6", json!(bad)), BadFormat, "spec.vipPool.v6");
    }
}

#[test]
fn an_authorization_policy_is_refused_where_it_is_wrong() {
    use Reason::*;
    let from = |terms: Value| changed(8, "/spec/rules/0/from/0", terms);
    let at = |field: &str| format!("spec.rules[0].from[0].{field}");
    refuses(&changed(8, "/spec/action", json!("custom")), MissingField, "spec.provider");
    refuses(&changed(8, "/spec/provider", json!("opa")), Conflict, "spec.provider");
    refuses(&changed(7, "/spec/extAuthz", json!([{"name": "a"}])), MissingField, "spec.extAuthz[0].service");
    let opa = json!({"name": "opa", "service": {"name": "opa", "port": 9191}});
    refuses(&changed(7, "/spec/extAuthz", json!([opa, opa])), Conflict, "spec.extAuthz[1].name");
    refuses(&changed(8, "/spec/action", json!("ALLOW")), BadFormat, "spec.action");
    refuses(&changed(8, "/spec/rules/1/when", json!([])), NotBuiltYet, "spec.rules[1].when");
    for unbuilt in ["headers", "notPaths", "notMethods", "notHosts"] {
        let to = changed(8, &format!("/spec/rules/0/to/0/{unbuilt}"), json!(["x"]));
        refuses(&to, NotBuiltYet, &format!("spec.rules[0].to[0].{unbuilt}"));
    }
    let to = |field: &str, value: Value, reason: Reason, at: &str| {
        let path = format!("spec.rules[0].to[0].{field}{at}");
        refuses(&changed(8, &format!("/spec/rules/0/to/0/{field}"), value), reason, &path);
    };
    for method in ["", "GE T", "GET\n", "GÉT", &"X".repeat(33)] {
        to("methods", json!(["GET", method]), BadFormat, "[1]");
    }
    to("methods", json!([]), OutOfRange, "");
    for path in ["", "users", "/a//b", "/a/../b", "/a*", "/a/*/b", "/a?b", "/%61", "/{a}b", "/a b"] {
        to("paths", json!([path]), BadFormat, "[0]");
    }
    to("paths", json!([format!("/{}", "x".repeat(1024))]), BadFormat, "[0]");
    for host in ["", "Shop.example", "a:80", "*", "a.*.b", "http://a", "[::1]"] {
        to("hosts", json!([host]), BadFormat, "[0]");
    }
    refuses(&changed(8, "/spec/rules/0/to/0", json!({})), OutOfRange, "spec.rules[0].to[0]");
    let header = |value: Value, reason: Reason, at: &str| {
        let path = format!("spec.rules[1].headers[0]{at}");
        refuses(&changed(8, "/spec/rules/1/headers", json!([value])), reason, &path);
    };
    header(json!({"values": ["a"]}), MissingField, ".name");
    header(json!({"name": "a b", "present": true}), BadFormat, ".name");
    header(json!({"name": "Host", "present": true}), BadFormat, ".name");
    header(json!({"name": "x-a"}), OutOfRange, "");
    header(json!({"name": "x-a", "present": true, "absent": true}), OutOfRange, "");
    header(json!({"name": "x-a", "present": false}), OutOfRange, ".present");
    header(json!({"name": "x-a", "values": [" a"]}), BadFormat, ".values[0]");
    header(json!({"name": "x-a", "prefix": ""}), BadFormat, ".prefix");
    header(json!({"name": "x-a", "regex": "a"}), NotBuiltYet, ".regex");
    refuses(&from(json!({})), OutOfRange, "spec.rules[0].from[0]");
    refuses(&from(json!({"namespaces": []})), OutOfRange, &at("namespaces"));
    refuses(&from(json!({"serviceAccounts": ["a/b/c"]})), BadFormat, &at("serviceAccounts[0]"));
    refuses(&from(json!({"principals": ["a"]})), BadFormat, &at("principals[0]"));
    refuses(&from(json!({"cidrs": ["10.0.0.1/8"]})), BadFormat, &at("cidrs[0]"));
    refuses(&changed(8, "/spec/rules/0/from", json!([])), OutOfRange, "spec.rules[0].from");
    refuses(&changed(8, "/spec/rules/0/to/0/ports", json!([0])), OutOfRange, "spec.rules[0].to[0].ports[0]");
    refuses(&changed(8, "/spec/selector", json!({"app": "db"})), UnknownField, "spec.selector.app");

    let policy = Resource::parse(&examples()[8]).unwrap();
    let Wire::AuthorizationPolicy(policy) = wire(&policy, vec![]) else { panic!("a policy") };
    let identities = &policy.rules[0].from[0].identities;
    let names = |i: usize| (identities[i].namespace.as_str(), identities[i].service_account.as_str());
    assert_eq!([names(0), names(1), names(2)], [("default", "cart"), ("shop", "pay"), ("a", "b")]);
    assert_eq!(policy.rules[0].ports, [5432, 80]);
    assert_eq!(policy.action(), v1::AuthorizationAction::Deny);
}

#[test]
fn terms_on_requests_are_kept_as_they_were_said() {
    let said = json!([{
        "to": [
            {"ports": [80], "methods": ["GET"], "paths": ["/users/{}", "/static/*"], "hosts": ["*.shop", "fd00::1"]},
            {"ports": [81]},
        ],
        "headers": [
            {"name": "x-a", "values": ["1", "2"]}, {"name": "x-b", "prefix": "team-"},
            {"name": "x-c", "present": true}, {"name": "x-d", "absent": true},
        ],
    }]);
    let object = object("AuthorizationPolicy", &json!({"action": "audit", "rules": said}));
    let resource = Resource::parse(&object).unwrap();
    assert_eq!(resource.to_json()["spec"]["rules"], said);
    let Wire::AuthorizationPolicy(policy) = wire(&resource, vec![]) else { panic!("a policy") };
    let rule = &policy.rules[0];
    // An agent that knows only ports refuses port 0, and with it everything.
    assert_eq!((policy.action(), &*rule.ports, rule.to.len()), (v1::AuthorizationAction::Audit, &[0][..], 2));
    assert_eq!(rule.to[0].paths, ["/users/{}", "/static/*"]);
    assert_eq!(rule.headers[3].is, Some(v1::header_term::Is::Present(false)));
}

#[test]
fn a_transport_policy_is_refused_where_it_is_wrong() {
    use Reason::*;
    let out = |field: &str, to: Value| changed(14, &format!("/spec/exclude/outbound/{field}"), to);
    let at = |field: &str| format!("spec.exclude.outbound.{field}");
    refuses(&changed(14, "/spec/mtls/mode", json!("maybe")), BadFormat, "spec.mtls.mode");
    refuses(&changed(14, "/spec/mtls", json!({})), MissingField, "spec.mtls.mode");
    refuses(&changed(14, "/spec/mtls/ports/0/port", json!(0)), OutOfRange, "spec.mtls.ports[0].port");
    refuses(&changed(14, "/spec/mtls/ports/0/mode", json!("mutual")), BadFormat, "spec.mtls.ports[0].mode");
    let twice = json!([{"port": 80, "mode": "off"}, {"port": 80, "mode": "strict"}]);
    refuses(&changed(14, "/spec/mtls/ports", twice), Conflict, "spec.mtls.ports[1].port");
    for splice in [json!("yes"), json!(1), json!({"ports": [80]})] {
        refuses(&changed(14, "/spec/splice", splice), WrongType, "spec.splice");
    }
    refuses(&changed(14, "/spec/targetRefs", json!([])), NotBuiltYet, "spec.targetRefs");
    refuses(&changed(14, "/spec/udp", json!("drop")), BadFormat, "spec.udp");
    for port in [0, 65_536] {
        refuses(&out("ports", json!([80, port])), OutOfRange, &at("ports[1]"));
    }
    refuses(&out("ports", json!([80, 80])), Conflict, &at("ports[1]"));
    refuses(&out("ports", json!(vec![1; 65])), OutOfRange, &at("ports"));
    for cidr in ["10.0.0.1/8", "10.0.0.0/33", "::ffff:10.0.0.0/104", "eth0"] {
        refuses(&out("cidrs", json!([cidr])), BadFormat, &at("cidrs[0]"));
    }
    for name in ["", "a-name-that-is-too-long", "a/b", "a b", ".."] {
        refuses(&out("interfaces", json!([name])), BadFormat, &at("interfaces[0]"));
    }
    refuses(&out("users", json!([0])), UnknownField, &at("users"));
    refuses(&changed(14, "/spec/exclude/both", json!({})), UnknownField, "spec.exclude.both");
    refuses(&changed(14, "/spec/budget/connections", json!(0)), OutOfRange, "spec.budget.connections");
    refuses(&changed(14, "/spec/budget/pending", json!(16_385)), OutOfRange, "spec.budget.pending");
    refuses(&changed(16, "/spec/accessLog/percent", json!(101)), OutOfRange, "spec.accessLog.percent");
    refuses(&changed(16, "/spec/accessLog/errors", json!("yes")), WrongType, "spec.accessLog.errors");
    // The whole mesh is ruled from one namespace.
    refuses(&changed(15, "/spec/scope", json!("mesh")), OutOfRange, "spec.scope");
    let mut mesh = changed(15, "/spec/scope", json!("mesh"));
    mesh["metadata"]["namespace"] = json!(ROOT_NAMESPACE);
    let Wire::TransportPolicy(policy) = wire(&Resource::parse(&mesh).unwrap(), vec![]) else { panic!("one") };
    assert!(policy.mesh && policy.outbound.is_none());
    mesh["spec"]["selector"] = json!({"matchLabels": {"app": "db"}});
    refuses(&mesh, Conflict, "spec.selector");

    let policy = Resource::parse(&examples()[14]).unwrap();
    let Wire::TransportPolicy(policy) = wire(&policy, vec![]) else { panic!("a policy") };
    let outbound = policy.outbound.clone().unwrap();
    assert_eq!((outbound.ports, outbound.interfaces), (vec![9100], vec!["net1".to_owned()]));
    assert_eq!(outbound.cidrs, ["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(policy.inbound, Some(v1::Exclusions::default()));
    assert_eq!(
        (policy.udp(), policy.budget_connections, policy.budget_pending),
        (v1::UdpMode::Deny, 100, 10)
    );
    let splice = |i: usize| match wire(&Resource::parse(&examples()[i]).unwrap(), vec![]) {
        Wire::TransportPolicy(policy) => policy.splice(),
        _ => panic!("a policy"),
    };
    let Wire::TransportPolicy(logs) = wire(&Resource::parse(&examples()[16]).unwrap(), vec![]) else {
        panic!("one")
    };
    assert_eq!(logs.access_log, Some(v1::AccessLog { percent: 5, errors: true }));
    assert_eq!([splice(14), splice(15)], [v1::SpliceMode::On, v1::SpliceMode::Unset]);
}

#[test]
fn objects_become_wire_messages() {
    let parse = |i: usize| Resource::parse(&examples()[i]).unwrap();
    let Wire::Service(service) = wire(&parse(1), vec![]) else { panic!("a service") };
    assert_eq!(service.vips, ["240.240.0.9", "fd00:6e6d::9"]);
    assert_eq!((service.ports[0].port, service.ports[0].protocol()), (80, v1::Protocol::Http));
    assert!(service.ports[0].inbound_proxy && !service.ports[1].inbound_proxy);

    let mut allocated = parse(0);
    allocated.status.vips = vec!["240.240.0.1".parse().unwrap()];
    let Wire::Service(service) = wire(&allocated, vec![]) else { panic!("a service") };
    assert_eq!(service.vips, ["240.240.0.1"]);

    let Wire::HttpRoute(route) = wire(&parse(4), vec![]) else { panic!("a route") };
    let backends = &route.rules[0].backends;
    let to = |i: usize| backends[i].backend.clone().unwrap();
    assert_eq!((to(0).namespace.as_str(), to(1).namespace.as_str()), ("default", "x"));
    assert_eq!((backends[0].weight, backends[1].weight), (90, 1));
    assert_eq!(route.rules[0].matches[1].path, Some(v1::http_match::Path::Prefix("/b".to_owned())));
    let all = &route.rules[2];
    assert_eq!((all.request_timeout_ms, all.backend_timeout_ms), (10_000, 2_000));
    let filters = all.filters.clone().unwrap();
    let fractions: Vec<_> = filters.mirrors.iter().map(|m| (m.numerator, m.denominator)).collect();
    assert_eq!(fractions, [(10, 100), (1, 1000)]);
    assert_eq!((filters.rewrite.unwrap().hostname.as_str(), filters.redirect), ("inside.example", None));
    let redirect = route.rules[3].filters.clone().unwrap().redirect.unwrap();
    assert_eq!((redirect.status, redirect.port, redirect.scheme.as_str()), (308, 8443, "https"));

    let Wire::Service(dns) = wire(&parse(10), vec![]) else { panic!("a service") };
    assert_eq!((dns.ports[0].protocol(), dns.ports[1].protocol()), (v1::Protocol::Udp, v1::Protocol::Tcp));
    let Wire::TcpRoute(route) = wire(&parse(11), vec![]) else { panic!("a TCP route") };
    assert_eq!((route.parents[0].port, route.backends[0].weight, route.backends[1].weight), (5432, 9, 1));
    let Wire::UdpRoute(route) = wire(&parse(12), vec![]) else { panic!("a UDP route") };
    assert_eq!((route.parents[0].port, route.backends[0].weight), (0, 0));

    let Wire::TrafficPolicy(policy) = wire(&parse(5), vec![]) else { panic!("a policy") };
    assert_eq!((policy.http(), policy.on_proxy_loss()), (v1::HttpMode::Kernel, v1::OnProxyLoss::Refuse));
    assert_eq!(
        (policy.balancing(), policy.targets[0].section_name.as_str()),
        (v1::Balancing::RoundRobin, "http")
    );
    let Wire::Mesh(mesh) = wire(&parse(6), vec![]) else { panic!("the mesh") };
    assert_eq!((mesh.trust_domain.as_str(), mesh.http()), ("mesh.local", v1::HttpMode::Proxy));
}

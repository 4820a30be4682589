//! What is made of objects, as JSON that the codec takes; and what a change touches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::resource::Resource as Object;
use mesh_registry::registry::{Delta, Registry};
use mesh_registry::source::{Batch, Change, Event, Owner, What};
use serde_json::{Value, json};

use crate::catalog::{Catalog, Dirty, Round, Set, Want};
use crate::check::check;
use crate::codec::Type;
use crate::session::{Ask, Session, Variant, WARM};

mod streams;

fn object(kind: &str, name: &str, spec: impl Into<Value>) -> Object {
    let spec = spec.into();
    let api = if kind.ends_with("Route") { "gateway.networking.k8s.io/v1" } else { "nodemesh.io/v1" };
    let mut value = json!({
        "apiVersion": api, "kind": kind, "metadata": { "name": name, "namespace": "shop" }, "spec": spec,
    });
    if let Some(app) = value["spec"]["app"].take().as_str() {
        value["metadata"]["labels"] = json!({ "app": app });
    }
    if let Some(spec) = value["spec"].as_object_mut() {
        spec.remove("app");
    }
    Object::parse(&value).unwrap_or_else(|error| panic!("{error}"))
}

fn service(name: &str) -> Object {
    let spec = json!({ "selector": { "app": name }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "http" }] });
    object("Service", name, spec)
}

fn workload(name: &str, app: &str, address: &str, more: impl Into<Value>) -> Object {
    let mut spec = json!({ "app": app, "addresses": [address] });
    for (field, value) in more.into().as_object().unwrap() {
        spec[field] = value.clone();
    }
    object("Workload", name, spec)
}

fn apply(registry: &mut Registry, objects: Vec<Object>) -> Delta {
    let events = objects.into_iter().map(|resource| Event {
        owner: Owner::rest(),
        what: What::Intent(Change::Upsert { resource: Box::new(resource), lease: None }),
    });
    let revision = registry.revision() + 1;
    registry.apply(Batch { revision, events: events.collect(), refused: vec![] }, Instant::now())
}

fn shop() -> Registry {
    let mut registry = Registry::default();
    apply(
        &mut registry,
        vec![
            service("web"),
            service("v2"),
            workload("w1", "web", "10.0.0.1", json!({ "locality": { "region": "r", "zone": "a" } })),
            workload("w2", "web", "10.0.0.2", json!({ "weight": 3, "priority": 4 })),
            workload("w3", "v2", "10.0.0.3", json!({ "weight": 0 })),
        ],
    );
    registry
}

const WEB: &str = "web.shop.mesh:80";

fn named(catalog: &mut Catalog, registry: &Registry, of: Type, name: &str) -> Value {
    let want = Want { all: false, names: [Arc::from(name)].into() };
    let set = catalog.wanted(&Round::new(registry), "edge", of, &want);
    set.get(name).map(|resource| resource.json.clone()).unwrap_or_default()
}

fn all(catalog: &mut Catalog, registry: &Registry, of: Type) -> Set {
    catalog.wanted(&Round::new(registry), "edge", of, &Want { all: true, ..Want::default() })
}

#[test]
fn endpoints_are_grouped_by_priority_and_place() {
    let (registry, mut catalog) = (shop(), Catalog::default());
    let json = named(&mut catalog, &registry, Type::Endpoints, WEB);
    let groups = json["endpoints"].as_array().unwrap();
    let told: Vec<_> = groups
        .iter()
        .map(|group| (group["priority"].as_u64().unwrap(), group["locality"]["zone"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(0, "a"), (1, "")]);
    assert_eq!(groups[1]["load_balancing_weight"], 3);
    let socket = &groups[0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
    assert_eq!(*socket, json!({ "address": "10.0.0.1", "port_value": 8080 }));
    let v2 = named(&mut catalog, &registry, Type::Endpoints, "v2.shop.mesh:80");
    assert_eq!(v2["endpoints"][0]["lb_endpoints"][0]["health_status"], "DRAINING");
    assert!(named(&mut catalog, &registry, Type::Endpoints, "no.shop.mesh:80").is_null());
}

#[test]
fn a_policy_is_said_in_envoys_words() {
    let (mut registry, mut catalog) = (shop(), Catalog::default());
    let plain = named(&mut catalog, &registry, Type::Cluster, WEB);
    assert_eq!((plain["lb_policy"].as_str(), plain.get("outlier_detection")), (Some("ROUND_ROBIN"), None));
    let policy = json!({
        "targetRefs": [{ "kind": "Service", "name": "web" }], "balancing": "leastRequests", "connectTimeout": "600ms",
        "slowStart": { "window": "30s" },
        "limits": { "maxConnections": 7, "maxConnectionsPerEndpoint": 3, "maxRequests": 9 },
        "outlierEjection": { "consecutive5xx": 4, "successRate": { "interval": "5s" } },
    });
    let delta = apply(&mut registry, vec![object("TrafficPolicy", "p", policy)]);
    assert_eq!(catalog.changed(&delta), Dirty::All);
    let json = named(&mut catalog, &registry, Type::Cluster, WEB);
    assert_eq!(json["connect_timeout"], "0.600s");
    assert_eq!(json["circuit_breakers"]["thresholds"][0]["max_pending_requests"], 7);
    assert_eq!(json["outlier_detection"]["enforcing_consecutive_5xx"], 100);
    assert_eq!(json["outlier_detection"]["interval"], "5s");
    let policies = json["load_balancing_policy"]["policies"].as_array().unwrap();
    let names: Vec<_> =
        policies.iter().map(|one| one["typed_extension_config"]["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["envoy.load_balancing_policies.least_request", "envoy.load_balancing_policies.round_robin"]
    );
    for balancing in ["random", "maglev", "leastConnections", "peakEwma", "roundRobin"] {
        let policy = json!({ "targetRefs": [{ "kind": "Service", "name": "web" }], "balancing": balancing });
        let delta = apply(&mut registry, vec![object("TrafficPolicy", "p", policy)]);
        catalog.changed(&delta);
        assert!(!named(&mut catalog, &registry, Type::Cluster, WEB).is_null(), "{balancing}");
        assert!(!named(&mut catalog, &registry, Type::Route, WEB).is_null(), "{balancing}");
    }
}

fn route(rules: impl Into<Value>) -> Object {
    let rules = rules.into();
    let parents = json!([{ "kind": "Service", "name": "web", "port": 80 }]);
    object("HTTPRoute", "r", json!({ "parentRefs": parents, "rules": rules }))
}

fn gateway() -> Object {
    let services = json!([{ "name": "web", "port": 80, "hosts": ["shop.example"] }]);
    let tls = json!({ "certificateFile": "/c.pem", "keyFile": "/k.pem" });
    object("EnvoyResources", "edge", json!({ "gateway": { "port": 8443, "tls": tls, "services": services } }))
}

#[test]
fn a_gateway_has_what_its_routes_lead_to() {
    let (mut registry, mut catalog) = (shop(), Catalog::default());
    let filters = json!([
        { "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": [{ "name": "x-a", "value": "1" }], "remove": ["x-b"] } },
        { "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/" } } },
        { "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "v2", "port": 80 }, "percent": 10 } },
    ]);
    let rules = json!([
        { "backendRefs": [{ "name": "web", "port": 80, "weight": 9 }, { "name": "v2", "port": 80, "weight": 1 }] },
        {
            "matches": [{ "path": { "value": "/api" }, "headers": [{ "name": "x-c", "value": "yes" }], "method": "GET" }],
            "filters": filters, "backendRefs": [{ "name": "v2", "port": 80 }],
            "timeouts": { "request": "2s", "backendRequest": "500ms" }, "retry": { "codes": [503, 504], "attempts": 3 },
        },
        { "matches": [{ "path": { "type": "RegularExpression", "value": "/i/[0-9]+" }, "queryParams": [{ "name": "q", "value": "1" }] }],
          "filters": [{ "type": "RequestRedirect", "requestRedirect": { "scheme": "https", "path": { "type": "ReplaceFullPath", "replaceFullPath": "/x" } } }] },
        { "matches": [{ "path": { "type": "Exact", "value": "/closed" } }],
          "filters": [{ "type": "DirectResponse", "directResponse": { "statusCode": 503, "contentType": "text/plain", "body": "closed" } }] },
    ]);
    let delta = apply(&mut registry, vec![route(rules), gateway()]);
    catalog.changed(&delta);
    let clusters = all(&mut catalog, &registry, Type::Cluster);
    assert_eq!(clusters.keys().map(|name| &**name).collect::<Vec<_>>(), ["v2.shop.mesh:80", WEB]);
    let routes = all(&mut catalog, &registry, Type::Route);
    let host = &routes["shop/edge"].json["virtual_hosts"][0];
    assert_eq!(host["domains"], json!(["shop.example"]));
    let names: Vec<_> =
        host["routes"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["shop/r/3", "shop/r/2", "shop/r/1", "shop/r/0"]);
    let api = &host["routes"][2];
    assert_eq!(api["match"]["path_separated_prefix"], "/api");
    assert_eq!(api["route"]["regex_rewrite"]["pattern"]["regex"], "^/api/*");
    assert_eq!(
        (&api["route"]["timeout"], &api["route"]["retry_policy"]["num_retries"]),
        (&json!("2s"), &json!(3))
    );
    assert_eq!(
        api["route"]["retry_policy"]["retry_on"],
        "connect-failure,refused-stream,retriable-status-codes,reset"
    );
    assert_eq!(host["routes"][3]["route"]["weighted_clusters"]["clusters"][1]["weight"], 1);
    assert_eq!(all(&mut catalog, &registry, Type::Listener).len(), 1);
    let secrets = all(&mut catalog, &registry, Type::Secret);
    assert_eq!(secrets["shop/edge/tls"].json["tls_certificate"]["private_key"]["filename"], "/k.pem");
    // Another type has nothing of it.
    let round = Round::new(&registry);
    let other = catalog.wanted(
        &round,
        "core",
        Type::Secret,
        &Want { all: true, names: ["shop/edge/tls".into()].into() },
    );
    assert!(other.is_empty());
}

#[test]
fn grpc_is_told_what_it_knows() {
    let (mut registry, mut catalog) = (shop(), Catalog::default());
    let parents = json!([{ "kind": "Service", "name": "web" }]);
    let rules = json!([
        { "matches": [{ "method": { "service": "a.B", "method": "C" } }], "backendRefs": [{ "name": "v2", "port": 80 }] },
        { "matches": [{ "method": { "type": "RegularExpression", "service": "a[.]D" }, "headers": [{ "name": "x", "value": "1" }] }], "backendRefs": [{ "name": "v2", "port": 80 }] },
        { "backendRefs": [{ "name": "web", "port": 80 }] },
    ]);
    apply(&mut registry, vec![object("GRPCRoute", "g", json!({ "parentRefs": parents, "rules": rules }))]);
    let listener = named(&mut catalog, &registry, Type::Listener, WEB);
    assert_eq!(listener["api_listener"]["api_listener"]["rds"]["route_config_name"], WEB);
    let routes = named(&mut catalog, &registry, Type::Route, WEB);
    let routes = routes["virtual_hosts"][0]["routes"].as_array().unwrap();
    assert_eq!(routes[0]["match"], json!({ "path": "/a.B/C" }));
    assert_eq!(routes[1]["match"]["safe_regex"]["regex"], "/(?:a[.]D)/[^/]+");
    assert_eq!(routes[2]["match"], json!({ "prefix": "/" }));
}

#[test]
fn an_endpoints_change_touches_its_assignment_alone() {
    let (mut registry, mut catalog) = (shop(), Catalog::default());
    for of in [Type::Cluster, Type::Endpoints] {
        named(&mut catalog, &registry, of, WEB);
    }
    let delta = apply(&mut registry, vec![workload("w1", "web", "10.0.0.9", json!({}))]);
    assert_eq!(catalog.changed(&delta), Dirty::Endpoints(BTreeSet::from([Arc::from(WEB)])));
    assert!(named(&mut catalog, &registry, Type::Endpoints, WEB).to_string().contains("10.0.0.9"));
    // It leaves: found by where it was.
    let delta = apply(&mut registry, vec![workload("w1", "nobody", "10.0.0.9", json!({}))]);
    assert_eq!(catalog.changed(&delta), Dirty::Endpoints(BTreeSet::from([Arc::from(WEB)])));
    assert!(!named(&mut catalog, &registry, Type::Endpoints, WEB).to_string().contains("10.0.0.9"));
    // Of what nobody has asked for nothing is said.
    let delta = apply(&mut registry, vec![workload("w3", "v2", "10.0.0.8", json!({}))]);
    assert_eq!(catalog.changed(&delta), Dirty::Nothing);
    let delta = apply(&mut registry, vec![service("web")]);
    assert_eq!(catalog.changed(&delta), Dirty::Nothing, "it says the same");
}

#[test]
fn templates_follow_the_registry() {
    let (mut registry, mut catalog) = (shop(), Catalog::default());
    let raw = object(
        "EnvoyResources",
        "edge",
        json!({
            "endpoints": [{ "cluster_name": "c", "endpoints": "{{endpoints shop/web 80}}" }],
            "clusters": [{ "name": "c", "type": "STATIC" }, { "name": "d", "alt_stat_name": "{{vip shop/none}}" }],
        }),
    );
    check(&raw).unwrap();
    let delta = apply(&mut registry, vec![raw]);
    catalog.changed(&delta);
    assert!(named(&mut catalog, &registry, Type::Endpoints, "c").to_string().contains("10.0.0.1"));
    assert_eq!(all(&mut catalog, &registry, Type::Cluster).len(), 1);
    let problems = catalog.node_type(&Round::new(&registry), "edge").problems.clone();
    assert!(problems[0].contains("Service shop/none has no virtual address"), "{problems:?}");
    let delta = apply(&mut registry, vec![workload("w9", "web", "10.0.0.9", json!({}))]);
    assert_eq!(catalog.changed(&delta), Dirty::All);
    assert!(named(&mut catalog, &registry, Type::Endpoints, "c").to_string().contains("10.0.0.9"));
}

#[test]
fn what_envoy_does_not_know_is_refused_with_its_place() {
    let refused = |spec: Value| check(&object("EnvoyResources", "edge", spec)).unwrap_err();
    let error = refused(
        json!({ "clusters": [{ "name": "c", "circuit_breakers": { "thresholds": [{ "max": 1 }] } }] }),
    );
    assert!(error.path.starts_with("spec.clusters[0].circuit_breakers.thresholds[0]"), "{error}");
    let error = refused(json!({ "clusters": [{ "name": "c" }, { "name": "d", "lb_policy": "BEST" }] }));
    assert_eq!((error.path.as_str(), &error.value), ("spec.clusters[1].lb_policy", &json!("BEST")));
    let error = refused(json!({ "listeners": [{ "name": "l", "stat_prefix": "{{vip}}" }] }));
    assert_eq!(error.path, "spec.listeners[0].stat_prefix");
}

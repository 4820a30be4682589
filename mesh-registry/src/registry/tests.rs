//! The registry: order does not matter, conflicts are visible, and what is kept incrementally is what a new
//! registry would hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_api::proto::v1;
use mesh_api::resource::{Key, Kind, Resource};
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::source::LeaseRef;

fn resource(kind: &str, name: &str, labels: &Value, spec: &Value) -> Resource {
    let api = if kind.ends_with("Route") { "gateway.networking.k8s.io/v1" } else { "nodemesh.io/v1" };
    let value =
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": spec});
    Resource::parse(&value).expect("a resource of the test")
}

fn service(name: &str, selector: &Value, ports: &[(&str, u16, &str)]) -> Resource {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol}))
        .collect();
    resource("Service", name, &json!({}), &json!({"selector": selector, "ports": ports}))
}

fn workload(name: &str, labels: &Value, services: &Value) -> Resource {
    let last = name.bytes().map(u32::from).sum::<u32>() % 250 + 1;
    let spec = json!({"addresses": [format!("10.1.0.{last}")], "services": services});
    resource("Workload", name, labels, &spec)
}

fn upsert(owner: &str, resource: Resource) -> Event {
    let change = Change::Upsert { resource: Box::new(resource), lease: None };
    Event { owner: Owner::named(owner), what: What::Intent(change) }
}

fn remove(owner: &str, kind: Kind, name: &str) -> Event {
    let change = Change::Remove(Key::new(kind, "default", name));
    Event { owner: Owner::named(owner), what: What::Intent(change) }
}

fn apply(registry: &mut Registry, events: Vec<Event>) -> Delta {
    let revision = registry.revision() + 1;
    registry.apply(Batch { revision, events, refused: Vec::new() }, Instant::now())
}

fn served(registry: &Registry, name: &str) -> Vec<(String, u32, u32, u32)> {
    let wire = registry.wire_of(&Key::new(Kind::Workload, "default", name)).expect("on the wire");
    let message = v1::Workload::decode(&wire.body[..]).expect("decodes");
    message.services.into_iter().map(|s| (s.service, s.service_port, s.target_port, s.weight)).collect()
}

fn names(delta: &Delta) -> Vec<String> {
    delta.changed.iter().map(|wire| wire.key.to_string()).collect()
}

#[test]
fn a_membership_resolves_when_its_service_appears() {
    let mut registry = Registry::default();
    let named = json!([{"service": "web", "portName": "http", "targetPort": 8080, "weight": 3}]);
    apply(&mut registry, vec![upsert("rest", workload("w1", &json!({}), &named))]);
    assert_eq!(served(&registry, "w1"), []);
    let key = Key::new(Kind::Workload, "default", "w1");
    let [condition] = &registry.conditions(&key)[..] else { panic!("one condition") };
    assert!(
        !condition.status && condition.message.contains("Service default/web does not exist"),
        "{condition:?}"
    );

    let web = service("web", &json!({}), &[("http", 80, "http"), ("admin", 81, "tcp")]);
    let delta = apply(&mut registry, vec![upsert("rest", web)]);
    assert_eq!(names(&delta), ["Service default/web", "Workload default/w1"]);
    assert_eq!(served(&registry, "w1"), [("web".to_owned(), 80, 8080, 3)]);
    assert!(registry.conditions(&key)[0].status);
    let endpoints = registry.endpoints(&Key::new(Kind::Service, "default", "web"));
    assert_eq!(endpoints.len(), 1);

    let delta = apply(&mut registry, vec![remove("rest", Kind::Service, "web")]);
    assert_eq!((names(&delta), delta.removed.len()), (vec!["Workload default/w1".to_owned()], 1));
    assert_eq!(served(&registry, "w1"), []);
}

#[test]
fn a_selector_takes_what_has_its_labels_and_a_named_port_wins() {
    let mut registry = Registry::default();
    let cart =
        service("cart", &json!({"app": "cart", "tier": "a"}), &[("http", 80, "http"), ("grpc", 90, "tcp")]);
    let named = json!([{"service": "cart", "portName": "http", "targetPort": 8080}]);
    let both = json!({"app": "cart", "tier": "a"});
    apply(
        &mut registry,
        vec![
            upsert("rest", workload("w1", &both, &json!([]))),
            upsert("rest", workload("w2", &json!({"app": "cart"}), &json!([]))),
            upsert("rest", workload("w3", &both, &named)),
            upsert("rest", cart),
        ],
    );
    let cart = || "cart".to_owned();
    assert_eq!(served(&registry, "w1"), [(cart(), 80, 80, 1), (cart(), 90, 90, 1)]);
    assert_eq!(served(&registry, "w2"), [], "one label of two");
    assert_eq!(served(&registry, "w3"), [(cart(), 80, 8080, 1), (cart(), 90, 90, 1)]);
    // Another selector: those that it left and those that it gained, nothing else.
    let wider = service("cart", &json!({"app": "cart"}), &[("http", 80, "http")]);
    let delta = apply(&mut registry, vec![upsert("rest", wider)]);
    assert_eq!(delta.changed.len(), 4, "{:?}", names(&delta));
    assert_eq!(served(&registry, "w2"), [(cart(), 80, 80, 1)]);
}

#[test]
fn of_two_owners_the_first_stays_until_it_lets_go() {
    let mut registry = Registry::default();
    let key = Key::new(Kind::Service, "default", "web");
    apply(&mut registry, vec![upsert("rest", service("web", &json!({}), &[("a", 80, "tcp")]))]);
    let delta =
        apply(&mut registry, vec![upsert("file:/etc", service("web", &json!({}), &[("b", 81, "tcp")]))]);
    assert!(delta.is_empty(), "the second changes nothing on the wire");
    assert_eq!(registry.owner(&key), Some(&Owner::rest()));
    let condition = registry.conditions(&key).pop().expect("a condition");
    assert!(condition.message.contains("also claimed by file:/etc"), "{}", condition.message);

    let delta = apply(&mut registry, vec![remove("rest", Kind::Service, "web")]);
    assert_eq!((delta.changed.len(), delta.removed.len()), (1, 0));
    assert_eq!(registry.owner(&key), Some(&Owner::named("file:/etc")));
    assert_eq!(registry.conditions(&key), []);
    let delta = apply(&mut registry, vec![remove("rest", Kind::Service, "web")]);
    assert!(delta.is_empty(), "not the holder's to remove");
}

#[test]
fn equal_content_is_no_change() {
    let mut registry = Registry::default();
    let web = || service("web", &json!({"app": "web"}), &[("http", 80, "http")]);
    apply(&mut registry, vec![upsert("rest", web())]);
    let before = registry.wire_of(&web().key()).cloned();
    let mut labelled = web();
    labelled.metadata.labels.insert("team".to_owned(), "shop".to_owned());
    assert!(
        apply(&mut registry, vec![upsert("rest", labelled)]).is_empty(),
        "labels of services aren't sent"
    );
    assert_eq!(registry.wire_of(&web().key()).cloned(), before);
    assert_eq!(before.map(|wire| wire.revision), Some(1));
}

#[test]
fn routes_and_policies_say_what_leads_nowhere() {
    let mut registry = Registry::default();
    let route = resource(
        "HTTPRoute",
        "canary",
        &json!({}),
        &json!({
            "parentRefs": [{"kind": "Service", "group": "", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}, {"name": "web-v2", "port": 80}]}],
        }),
    );
    let policy = resource(
        "TrafficPolicy",
        "p",
        &json!({}),
        &json!({"targetRefs": [{"kind": "Service", "name": "web", "sectionName": "x"}]}),
    );
    let (route_key, policy_key) = (route.key(), policy.key());
    apply(&mut registry, vec![upsert("rest", route), upsert("rest", policy)]);
    let told = |registry: &Registry, key: &Key| {
        let one = |c: &Condition| format!("{}={} {}", c.kind, c.status, c.message);
        registry.conditions(key).iter().map(one).collect::<Vec<_>>().join("\n")
    };
    assert!(told(&registry, &route_key).contains("Accepted=false parent Service default/web does not exist"));
    assert!(
        told(&registry, &policy_key).contains("Accepted=false target Service default/web does not exist")
    );
    apply(&mut registry, vec![upsert("rest", service("web", &json!({}), &[("http", 80, "tcp")]))]);
    assert!(told(&registry, &route_key).contains("no port of protocol http"));
    apply(&mut registry, vec![upsert("rest", service("web", &json!({}), &[("http", 80, "http")]))]);
    let said = told(&registry, &route_key);
    assert!(said.starts_with("Accepted=true"), "{said}");
    assert!(said.contains("ResolvedRefs=false backend Service default/web-v2 does not exist"), "{said}");
    assert!(told(&registry, &policy_key).contains("no port named x"));
}

#[test]
fn routes_below_http_are_for_ports_of_their_own_protocol() {
    let mut registry = Registry::default();
    let route = |kind, port| {
        let backend = json!({"name": "web", "port": port});
        let spec = json!({
            "parentRefs": [{"kind": "Service", "name": "web"}], "rules": [{"backendRefs": [backend]}],
        });
        resource(kind, "r", &json!({}), &spec)
    };
    let (tcp, udp) = (route("TCPRoute", 53), route("UDPRoute", 54));
    let (tcp_key, udp_key) = (tcp.key(), udp.key());
    apply(&mut registry, vec![upsert("rest", tcp), upsert("rest", udp)]);
    let told = |registry: &Registry, key: &Key| {
        let one = |c: &Condition| format!("{}={} {}", c.kind, c.status, c.message);
        registry.conditions(key).iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let http = service("web", &json!({}), &[("a", 53, "http")]);
    apply(&mut registry, vec![upsert("rest", http)]);
    let said = told(&registry, &tcp_key);
    assert!(
        said.contains("has no port of protocol tcp or tls") && said.contains("ResolvedRefs=true"),
        "{said}"
    );
    let both = service("web", &json!({}), &[("a", 53, "udp"), ("b", 53, "tls"), ("c", 54, "tcp")]);
    apply(&mut registry, vec![upsert("rest", both)]);
    assert!(!told(&registry, &tcp_key).contains("=false"), "{}", told(&registry, &tcp_key));
    let said = told(&registry, &udp_key);
    assert!(said.starts_with("Accepted=true"), "{said}");
    assert!(said.contains("backend Service default/web has no port 54 of protocol udp"), "{said}");
}

#[test]
fn of_two_kinds_of_routes_on_a_port_the_more_specific_has_it() {
    let mut registry = Registry::default();
    let web = || service("web", &json!({}), &[("a", 80, "http"), ("b", 81, "http"), ("t", 443, "tls")]);
    let route = |kind, parent: Value| {
        let mut spec =
            json!({"parentRefs": [parent], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]});
        if kind == "TLSRoute" {
            spec["hostnames"] = json!(["a.example"]);
        }
        resource(kind, &kind.to_lowercase(), &json!({}), &spec)
    };
    let of = |port| json!({"kind": "Service", "name": "web", "port": port});
    let (http, grpc) =
        (route("HTTPRoute", json!({"kind": "Service", "name": "web"})), route("GRPCRoute", of(81)));
    let (tcp, tls) = (route("TCPRoute", of(443)), route("TLSRoute", of(443)));
    let keys = [&http, &grpc, &tcp, &tls].map(Resource::key);
    apply(&mut registry, vec![upsert("rest", web()), upsert("rest", http), upsert("rest", tcp)]);
    let told = |registry: &Registry, key: &Key| {
        let of = registry.conditions(key);
        let accepted = of.iter().find(|c| c.kind == "Accepted").expect("a condition");
        (accepted.status, accepted.reason.clone(), accepted.message.clone())
    };
    for key in [&keys[0], &keys[2]] {
        assert!(told(&registry, key).0);
    }
    let (grpc_key, foreign) =
        (keys[1].clone(), route("GRPCRoute", json!({"kind": "Service", "name": "web"})));
    apply(&mut registry, vec![upsert("rest", grpc), upsert("rest", tls)]);
    let (status, reason, message) = told(&registry, &keys[0]);
    assert_eq!((status, &*reason), (false, "Conflicted"), "{message}");
    assert!(
        message.starts_with("port 81 of Service default/web has GRPCRoute default/grpcroute"),
        "{message}"
    );
    assert_eq!(told(&registry, &keys[2]).1, "Conflicted");
    assert!(told(&registry, &grpc_key).0 && told(&registry, &keys[3]).0);
    // A consumer's is for other clients.
    let mut foreign = foreign;
    foreign.metadata.namespace = "shop".to_owned();
    if let mesh_api::resource::Spec::GrpcRoute(spec) = &mut foreign.spec {
        spec.parent_refs[0].namespace = Some("default".to_owned());
        spec.parent_refs[0].port = Some(80);
    }
    apply(&mut registry, vec![upsert("rest", foreign)]);
    assert!(!told(&registry, &keys[0]).2.contains("port 80"));
}

#[test]
fn one_number_may_be_a_port_of_udp_and_one_of_tcp() {
    let mut registry = Registry::default();
    let dns = || service("dns", &json!({"app": "dns"}), &[("dns", 53, "udp"), ("dns-tcp", 53, "tcp")]);
    let named = json!([{"service": "dns", "portName": "dns", "targetPort": 5353, "weight": 7}]);
    let both = workload("w1", &json!({"app": "dns"}), &json!([]));
    let one = workload("w2", &json!({"app": "dns"}), &named);
    apply(&mut registry, vec![upsert("rest", dns()), upsert("rest", both), upsert("rest", one)]);
    let served = |name| {
        let wire = registry.wire_of(&Key::new(Kind::Workload, "default", name)).expect("on the wire");
        let message = v1::Workload::decode(&wire.body[..]).expect("decodes");
        let one = |s: v1::WorkloadService| (s.service_port, s.udp, s.target_port, s.weight);
        message.services.into_iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(served("w1"), [(53, false, 53, 1), (53, true, 53, 1)]);
    assert_eq!(served("w2"), [(53, false, 53, 1), (53, true, 5353, 7)], "named wins, for its own port");
}

#[test]
fn a_registration_goes_with_its_lease() {
    let (mut registry, now) = (Registry::new([Owner::store()]), Instant::now());
    assert!(!registry.synced());
    let lease = LeaseRef::of_node("n1", Duration::from_secs(30));
    let owner = Owner::node("n1");
    let one = workload("w1", &json!({}), &json!([]));
    let key = one.key();
    let change = Change::Upsert { resource: Box::new(one), lease: Some(lease.clone()) };
    let events = vec![
        Event { owner: owner.clone(), what: What::Observed(change) },
        Event { owner: Owner::store(), what: What::Synced },
    ];
    registry.apply(Batch { revision: 7, events, refused: Vec::new() }, now);
    assert!(registry.synced() && registry.lease_of(&key) == Some(&lease));
    assert_eq!(registry.leases().expire(now + Duration::from_secs(30)).due, ["node:n1"]);
    let gone = vec![Event { owner, what: What::Observed(Change::Remove(key.clone())) }];
    let delta = registry.apply(Batch { revision: 8, events: gone, refused: Vec::new() }, now);
    assert_eq!((delta.removed, registry.leases().iter().count()), (vec![key], 0));
}

/// A small world in which names, owners, labels and references meet often.
fn any_event() -> impl Strategy<Value = Event> {
    let owner = prop_oneof![Just("rest"), Just("node:n1"), Just("node:n2")];
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    let tier = prop_oneof![
        Just(json!({})),
        Just(json!({"app": "x"})),
        Just(json!({"app": "x", "tier": "1"})),
        Just(json!({"tier": "1"}))
    ];
    let ports = prop_oneof![
        Just(vec![("p", 80, "http")]),
        Just(vec![("p", 80, "tcp"), ("q", 81, "tcp")]),
        Just(vec![("q", 82, "tls")])
    ];
    let member = prop_oneof![
        Just(json!([])),
        Just(json!([{"service": "a"}])),
        Just(json!([{"service": "b", "portName": "q"}, {"service": "a", "portName": "p"}]))
    ];
    (owner, name, tier, ports, member, 0..4_u8, any::<bool>()).prop_map(
        |(owner, name, labels, ports, member, what, observed)| {
            let change = match what {
                0 => Change::Remove(Key::new(Kind::Service, "default", name)),
                1 => Change::Remove(Key::new(Kind::Workload, "default", name)),
                2 => Change::Upsert { resource: Box::new(service(name, &labels, &ports)), lease: None },
                _ => Change::Upsert { resource: Box::new(workload(name, &labels, &member)), lease: None },
            };
            let what = if observed { What::Observed(change) } else { What::Intent(change) };
            Event { owner: Owner::named(owner), what }
        },
    )
}

/// What agents would hold after the deltas, against what a registry holds.
fn content(registry: &Registry) -> BTreeMap<Key, String> {
    registry.wire.iter().map(|(key, wire)| (key.clone(), wire.version.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn incremental_equals_rebuilt(batches in prop::collection::vec(prop::collection::vec(any_event(), 1..4), 1..25)) {
        let mut registry = Registry::default();
        let mut agent: BTreeMap<Key, String> = BTreeMap::new();
        for batch in batches {
            let delta = apply(&mut registry, batch);
            for key in &delta.removed {
                prop_assert!(agent.remove(key).is_some(), "removed what was never sent: {}", key);
            }
            for wire in &delta.changed {
                let old = agent.insert(wire.key.clone(), wire.version.clone());
                prop_assert_ne!(old.as_ref(), Some(&wire.version), "sent again unchanged");
            }
            prop_assert_eq!(&agent, &content(&registry));
            // From scratch: the present claims in their order, all at once.
            let mut rebuilt = Registry::default();
            let events = registry.claims.values().flatten().map(|claim| {
                let change = Change::Upsert { resource: Box::new((*claim.resource).clone()), lease: None };
                let what = match claim.class {
                    Class::Intent => What::Intent(change),
                    Class::Observed => What::Observed(change),
                };
                Event { owner: claim.owner.clone(), what }
            });
            let events = events.collect();
            apply(&mut rebuilt, events);
            prop_assert_eq!(content(&rebuilt), content(&registry));
            for key in registry.claims.keys() {
                prop_assert_eq!(rebuilt.conditions(key), registry.conditions(key));
            }
        }
    }
}

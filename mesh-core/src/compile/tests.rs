//! Resources in, snapshot and conditions out. The builders serve plan's tests, too.

pub mod external;
mod routes;
mod transport;
mod udp;
mod vips;

use std::sync::Arc;

use mesh_api::proto::v1::{self, Health, HttpMode, Protocol};

use super::{Compiler, Condition, Outcome};
use crate::ids::{EndpointKey, IdKind, IdLimits, IdTable};
use crate::model::{Batch, Kind, Model, Resource};
use crate::snapshot::{OnProxyLoss, Revision, Service, ServiceId, Why, Workload};

/// Service `d/<name>` with one port of a protocol.
pub fn service(name: &str, vips: &[&str], port: u32, protocol: Protocol) -> v1::Service {
    v1::Service {
        namespace: "d".into(),
        name: name.into(),
        vips: vips.iter().map(|v| (*v).to_owned()).collect(),
        ports: vec![v1::ServicePort {
            name: "web".into(),
            port,
            protocol: protocol.into(),
            inbound_proxy: false,
            health_check: None,
        }],
        ..v1::Service::default()
    }
}

/// Workload `d/<name>` on node "n1" that serves (service, service port, weight) on port 8080 and up.
pub fn workload(name: &str, addresses: &[&str], serves: &[(&str, u32, u32)]) -> v1::Workload {
    let services = serves.iter().zip(8080..).map(|(&(service, service_port, weight), target_port)| {
        v1::WorkloadService {
            namespace: "d".into(),
            service: service.into(),
            service_port,
            target_port,
            weight,
            health: Health::Healthy.into(),
            udp: false,
        }
    });
    v1::Workload {
        namespace: "d".into(),
        name: name.into(),
        service_account: "default".into(),
        node: "n1".into(),
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        services: services.collect(),
        ..Default::default()
    }
}

/// A rule: the prefix and its backends as (service, port, weight).
pub type Rule<'a> = (&'a str, &'a [(&'a str, u32, u32)]);

/// Route `d/<name>` of a service.
pub fn route(name: &str, parent: &str, rules: &[Rule<'_>]) -> v1::HttpRoute {
    let to = |service: &str, port| v1::ServiceRef { namespace: "d".into(), service: service.into(), port };
    let rules = rules.iter().map(|(prefix, backends)| v1::HttpRule {
        matches: vec![v1::HttpMatch {
            path: Some(v1::http_match::Path::Prefix((*prefix).to_owned())),
            ..v1::HttpMatch::default()
        }],
        backends: backends
            .iter()
            .map(|&(service, port, weight)| v1::WeightedBackend {
                backend: Some(to(service, port)),
                weight,
                filters: None,
            })
            .collect(),
        ..v1::HttpRule::default()
    });
    v1::HttpRoute {
        namespace: "d".into(),
        name: name.into(),
        parents: vec![to(parent, 0)],
        rules: rules.collect(),
        ..Default::default()
    }
}

/// TCP route `d/<name>` of a service: its backends as (service, port, weight).
pub fn tcp_route(name: &str, parent: &str, backends: &[(&str, u32, u32)]) -> v1::TcpRoute {
    let http = route(name, parent, &[("/", backends)]);
    let backends = http.rules.into_iter().flat_map(|rule| rule.backends).collect();
    v1::TcpRoute {
        namespace: http.namespace,
        name: http.name,
        parents: http.parents,
        backends,
        created_ms: 0,
    }
}

/// The same for UDP.
pub fn udp_route(name: &str, parent: &str, backends: &[(&str, u32, u32)]) -> v1::UdpRoute {
    let v1::TcpRoute { namespace, name, parents, backends, created_ms } = tcp_route(name, parent, backends);
    v1::UdpRoute { namespace, name, parents, backends, created_ms }
}

/// A resource without a version.
pub fn of(message: impl Into<Resource>) -> Resource {
    message.into()
}

/// What a model holds.
pub fn names(model: &Model) -> Vec<(Kind, String)> {
    model.resources().iter().map(|(kind, name, _)| (kind, name.to_owned())).collect()
}

/// A compiler on node "n1".
pub fn compiler() -> Compiler {
    Compiler::new("n1", IdTable::default(), IdLimits::default())
}

/// Applies upserts and removals.
pub fn apply(compiler: &mut Compiler, upserts: Vec<Resource>, removes: &[(Kind, &str)]) -> Outcome {
    let removes = removes.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect();
    compiler.apply(Batch { upserts, removes }, Revision::default())
}

fn named(outcome: &Outcome, name: &str) -> Arc<Service> {
    Arc::clone(outcome.snapshot.services.values().find(|s| *s.name == *name).expect("compiled"))
}

fn problems(outcome: &Outcome) -> Vec<String> {
    outcome.conditions.iter().map(|Condition { subject, problem }| format!("{subject}: {problem}")).collect()
}

#[test]
fn a_service_gathers_its_endpoints_serving_ones_first() {
    let mut c = compiler();
    let mut ill = workload("w1", &["10.0.0.1"], &[("s", 80, 1)]);
    ill.services[0].health = Health::Unhealthy.into();
    let mut away = workload("w3", &["10.0.0.3", "fd00::3"], &[("s", 80, 3)]);
    away.node = "n2".into();
    let out = apply(
        &mut c,
        vec![
            of(ill),
            of(workload("w2", &["10.0.0.2"], &[("s", 80, 0)])),
            of(away),
            of(service("s", &["240.0.0.1"], 80, Protocol::Tcp)),
        ],
        &[],
    );
    let s = named(&out, "s");
    assert_eq!((s.serving, s.endpoints.len(), s.why), (1, 3, None));
    assert_eq!(s.serving()[0].v4, Some("10.0.0.3".parse().unwrap()));
    assert_eq!(s.serving()[0].v6, Some("fd00::3".parse().unwrap()));
    assert!(!s.serving()[0].local && s.endpoints[1].local);
    assert_eq!((out.snapshot.epoch, out.dirty.services.len(), out.dirty.workloads.len()), (1, 1, 3));
    assert!(out.conditions.is_empty(), "{:?}", out.conditions);

    let again = apply(&mut c, vec![of(service("s", &["240.0.0.1"], 80, Protocol::Tcp))], &[]);
    assert!(again.dirty.is_empty());
    assert!(Arc::ptr_eq(&again.snapshot, &out.snapshot));

    let out = apply(&mut c, vec![], &[(Kind::Workload, "d/w3")]);
    assert_eq!(
        problems(&out),
        [
            "Service d/s: port 80: none of its 2 endpoints takes connections (weight 0, unhealthy, draining or \
          without an address)"
        ]
    );
}

#[test]
fn what_did_not_change_is_shared_with_the_snapshot_before() {
    let mut c = compiler();
    let services: Vec<String> = (0..50).map(|i| format!("s{i}")).collect();
    let mut all: Vec<Resource> =
        services.iter().map(|name| of(service(name, &[], 80, Protocol::Http))).collect();
    all.extend(
        services.iter().enumerate().map(|(i, name)| {
            of(workload(&format!("w{i}"), &[&format!("10.0.0.{}", i + 1)], &[(name, 80, 1)]))
        }),
    );
    let before = apply(&mut c, all, &[]).snapshot;
    let out = apply(&mut c, vec![of(workload("w7", &["10.0.0.8"], &[("s7", 80, 2)]))], &[]);
    let id = named(&out, "s7").id;
    assert_eq!(out.dirty.services, [id].into());
    assert!(out.dirty.workloads.is_empty(), "its own entries say nothing of weights");
    for (other, service) in out.snapshot.services.iter() {
        assert_eq!(Arc::ptr_eq(service, &before.services[&other]), other != id);
    }
    let same = |(id, w): &(u32, &Arc<Workload>)| Arc::ptr_eq(w, &before.workloads[id]);
    assert_eq!(out.snapshot.workloads.iter().filter(same).count(), before.workloads.len() - 1);
}

#[test]
fn http_goes_to_the_proxy_unless_told_otherwise_and_a_route_always_does() {
    let mut c = compiler();
    let http = || of(service("s", &["240.0.0.1"], 80, Protocol::Http));
    let out = apply(&mut c, vec![http(), of(workload("w", &["10.0.0.1"], &[("s", 80, 1)]))], &[]);
    assert_eq!(named(&out, "s").why, Some(Why::Http));
    assert!(out.snapshot.workloads[&1].ports[0].proxy);

    let kernel = v1::Mesh { http: HttpMode::Kernel.into(), ..Default::default() };
    let out = apply(&mut c, vec![of(kernel)], &[]);
    assert_eq!(named(&out, "s").why, None);
    assert!(!out.snapshot.workloads[&1].ports[0].proxy, "its own address is treated alike");
    assert_eq!(out.dirty.workloads.len(), 1);

    let out = apply(&mut c, vec![of(route("r", "s", &[("/", &[("s", 80, 1)])]))], &[]);
    assert_eq!(named(&out, "s").why, Some(Why::Route));

    let mut policy = v1::TrafficPolicy {
        namespace: "d".into(),
        name: "p".into(),
        targets: vec![v1::PolicyTarget { service: "s".into(), section_name: "web".into() }],
        ..Default::default()
    };
    policy.set_on_proxy_loss(v1::OnProxyLoss::Refuse);
    let out = apply(&mut c, vec![of(policy)], &[]);
    assert_eq!(named(&out, "s").on_proxy_loss, OnProxyLoss::Refuse);
    assert_eq!(out.snapshot.workloads[&1].ports[0].on_proxy_loss, OnProxyLoss::Refuse);

    let out = apply(&mut c, vec![], &[(Kind::TrafficPolicy, "d/p"), (Kind::HttpRoute, "d/r")]);
    assert_eq!((named(&out, "s").why, named(&out, "s").on_proxy_loss), (None, OnProxyLoss::Bypass));
}

#[test]
fn the_fallback_is_the_catch_all_rule() {
    let mut c = compiler();
    let resources = vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Http)),
        of(service("v1", &[], 80, Protocol::Http)),
        of(service("v2", &[], 80, Protocol::Http)),
        of(route(
            "r",
            "s",
            &[("/only", &[("s", 80, 1)]), ("/", &[("v1", 80, 9), ("v2", 80, 1), ("gone", 80, 5)])],
        )),
    ];
    let out = apply(&mut c, resources, &[]);
    let id = |name| named(&out, name).id;
    let (s, v1, v2): (ServiceId, ServiceId, ServiceId) = (id("s"), id("v1"), id("v2"));
    let mut want = vec![(v1, 9), (v2, 1)];
    want.sort_unstable();
    assert_eq!(named(&out, "s").fallback, want);
    let mut backends = vec![s, v1, v2];
    backends.sort_unstable();
    assert_eq!(named(&out, "s").backends, backends);
    assert_eq!(named(&out, "v1").fallback, [(v1, 1)]);
    assert_eq!(problems(&out), ["HTTPRoute d/r: rules[1].backendRefs[2]: service d/gone does not exist"]);

    // A backend's endpoints stand in its parents' tables.
    let out = apply(&mut c, vec![of(workload("w", &["10.0.0.1"], &[("v2", 80, 1)]))], &[]);
    assert_eq!(out.dirty.services.into_iter().collect::<Vec<_>>(), {
        let mut both = vec![s, v2];
        both.sort_unstable();
        both
    });

    // What was missing comes.
    let out = apply(&mut c, vec![of(service("gone", &[], 80, Protocol::Http))], &[]);
    assert_eq!(named(&out, "s").fallback.len(), 3);
    assert!(out.conditions.is_empty());

    let out = apply(&mut c, vec![of(route("r", "s", &[("/only", &[("v1", 80, 1)])]))], &[]);
    assert_eq!(named(&out, "s").fallback, [(s, 1)], "no rule takes every path");
}

#[test]
fn what_leads_nowhere_is_named_and_stops_nothing() {
    let mut c = compiler();
    let mut tcp_parent = route("tcp", "db", &[("/", &[("s", 80, 0)])]);
    tcp_parent.parents[0].port = 5432;
    let mut policy = v1::TrafficPolicy {
        namespace: "d".into(),
        name: "p".into(),
        targets: vec![v1::PolicyTarget { service: "s".into(), section_name: "admin".into() }],
        ..Default::default()
    };
    policy.targets.push(v1::PolicyTarget { service: "none".into(), section_name: String::new() });
    let out = apply(
        &mut c,
        vec![
            of(service("s", &["240.0.0.1", "127.0.0.1", "x"], 80, Protocol::Http)),
            of(service("db", &["240.0.0.2"], 5432, Protocol::Tcp)),
            of(service("bad", &[], 70_000, Protocol::Tcp)),
            of(workload("w", &["10.0.0.1", "10.0.0"], &[("s", 80, 1), ("s", 81, 1), ("none", 80, 1)])),
            of(route("r", "none", &[("/", &[("s", 81, 1)])])),
            of(tcp_parent),
            of(policy),
        ],
        &[],
    );
    assert_eq!(
        problems(&out),
        [
            "Service d/bad: spec.ports[0]: port 70000 is not in 1..=65535",
            "Service d/s: spec.vips: 127.0.0.1 is not an address that a workload can be reached at",
            "Service d/s: spec.vips: \"x\" is not an address",
            "Workload d/w: spec.addresses: \"10.0.0\" is not an address",
            "Workload d/w: spec.services[1]: service d/s has no port 81",
            "Workload d/w: spec.services[2]: service d/none does not exist",
            "HTTPRoute d/r: parent service d/none does not exist",
            "HTTPRoute d/r: rules[0].backendRefs[0]: service d/s has no port 81",
            "HTTPRoute d/tcp: port 5432 of parent service d/db is of protocol tcp, not http",
            "HTTPRoute d/tcp: rules[0].backendRefs: all weights are 0: requests that match it fail",
            "TrafficPolicy d/p: target service d/s has no port named \"admin\"",
            "TrafficPolicy d/p: target service d/none does not exist",
        ]
    );
    assert_eq!(named(&out, "s").serving, 1);
    assert_eq!(named(&out, "s").vips.len(), 1);

    let all: Vec<(Kind, String)> = names(c.model());
    let out = c.apply(Batch { upserts: vec![], removes: all }, Revision::default());
    assert!(out.conditions.is_empty(), "{:?}", out.conditions);
    assert!(out.snapshot.services.is_empty() && out.snapshot.workloads.is_empty());
    assert!(c.ports.is_empty() && c.specs.is_empty() && c.workloads.is_empty());
    assert!(c.senders.is_empty() && c.holds.is_empty());
}

#[test]
fn numbers_outlive_the_agent_and_end_with_their_names() {
    let mut c = compiler();
    let both =
        || vec![of(service("s", &[], 80, Protocol::Tcp)), of(workload("w", &["10.0.0.1"], &[("s", 80, 1)]))];
    apply(&mut c, vec![of(service("x", &[], 80, Protocol::Tcp))], &[]);
    let out = apply(&mut c, both(), &[]);
    let key = EndpointKey { service: 2, workload: 1, port: 8080 };
    assert_eq!((named(&out, "s").id, c.ids().endpoint(key)), (2, Some(1)));

    let mut next = Compiler::new("n1", c.ids().clone(), IdLimits::default()).after_epoch(out.snapshot.epoch);
    let out = apply(&mut next, both(), &[]);
    assert_eq!((named(&out, "s").id, out.snapshot.epoch), (2, 3));
    assert_eq!(next.ids().get(IdKind::Service, "d/x:80"), Some(1), "not yet known to be gone");
    next.end_unknown_ids();
    assert_eq!(next.ids().get(IdKind::Service, "d/x:80"), None);
    assert_eq!((next.ids().get(IdKind::Service, "d/s:80"), next.ids().endpoint(key)), (Some(2), Some(1)));
    assert_eq!(next.ids().get(IdKind::Identity, "d/default"), Some(1));
}

#[test]
fn an_enrolled_workload_keeps_its_numbers_whoever_tells_of_it() {
    let mut c = compiler();
    let ids = c.enrol("d", "w", "default").unwrap();
    let out = apply(&mut c, vec![of(workload("w", &["10.0.0.1"], &[]))], &[]);
    assert_eq!(out.snapshot.workloads[&ids.workload].identity, ids.identity);
    assert_eq!(c.enrol("d", "w", "default").unwrap(), ids);
    apply(&mut c, vec![], &[(Kind::Workload, "d/w")]);
    assert_eq!(c.ids().get(IdKind::Workload, "d/w"), Some(ids.workload));
    c.leave("d", "w");
    assert_eq!(c.ids().get(IdKind::Workload, "d/w"), None);
    assert!(c.holds.is_empty());
}

#[test]
fn a_mesh_that_does_not_fit_says_so() {
    let limits = IdLimits { services: 1, endpoints: 1, ..IdLimits::default() };
    let mut c = Compiler::new("n1", IdTable::default(), limits);
    let out = apply(
        &mut c,
        vec![
            of(service("a", &[], 80, Protocol::Tcp)),
            of(service("b", &[], 80, Protocol::Tcp)),
            of(workload("w", &["10.0.0.1"], &[("a", 80, 1), ("a", 80, 1)])),
        ],
        &[],
    );
    assert_eq!(
        problems(&out),
        [
            "Service d/b: spec.ports[0]: all 1 service ids are taken: raise --map-services",
            "Workload d/w: spec.services[1]: all 1 endpoint ids are taken: raise --map-endpoints",
        ]
    );
    assert_eq!(named(&out, "a").serving, 1);
}

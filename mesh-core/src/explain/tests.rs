//! What is told of requests, by example: resources in, steps out.

use mesh_api::proto::v1::{self, http_match};
use mesh_common::record::Load;

use super::*;
use crate::compile::tests::{apply, compiler, of, route, service, workload};
use crate::snapshot::EndpointId;

/// Endpoints of this id are left out.
struct Ejects(EndpointId);

impl Loads for Ejects {
    fn load(&self, endpoint: EndpointId) -> Load {
        let ejected_until = if endpoint == self.0 { 9_000_000 } else { 0 };
        Load { ejected_until, live: 3, ..Load::default() }
    }

    fn ejected(&self, _: u32) -> u64 {
        0
    }

    fn now(&self) -> u64 {
        4_000_000
    }
}

/// `front` with a route to `v1` (9 of 10; v1-0 of this node) and `v2` (v2-0 of node n2), and `cart`, which calls.
fn snapshot(more: Vec<crate::model::Resource>) -> Snapshot {
    let mut routed = route("front", "front", &[("/api", &[("v1", 80, 9), ("v2", 80, 1)]), ("/gone", &[])]);
    routed.rules[0].filters = Some(v1::HttpFilters {
        rewrite: Some(v1::HttpRewrite {
            path: Some(v1::PathEdit { edit: Some(v1::path_edit::Edit::Prefix("/v2".into())) }),
            ..Default::default()
        }),
        ..Default::default()
    });
    let beta = v1::HttpMatch { path: Some(http_match::Path::Exact("/beta".into())), ..Default::default() };
    routed.rules[1].matches = vec![beta];
    let mut away = workload("v2-0", &["10.0.0.3"], &[("v2", 80, 1)]);
    (away.node, away.hbone) = ("n2".into(), true);
    let http = v1::Protocol::Http;
    let mut all = vec![
        of(service("front", &["240.0.0.1"], 80, http)),
        of(service("v1", &["240.0.0.2"], 80, http)),
        of(service("v2", &["240.0.0.3"], 80, http)),
        of(service("raw", &["240.0.0.4"], 90, v1::Protocol::Tcp)),
        of(routed),
        of(workload("v1-0", &["10.0.0.2"], &[("v1", 80, 1), ("raw", 90, 1)])),
        of(away),
        of(workload("cart", &["10.0.0.9"], &[])),
    ];
    all.extend(more);
    let snapshot = apply(&mut compiler(), all, &[]).snapshot;
    Snapshot::clone(&snapshot)
}

fn told(snapshot: &Snapshot, address: &str, port: u16, path: &str) -> Explanation {
    let source = snapshot.workloads.values().find(|w| &*w.full_name == "d/cart").unwrap().id;
    let request = Sample { method: "GET".into(), path: path.into(), host: "front".into(), headers: vec![] };
    let question = Question { source, address: address.parse().unwrap(), port, request };
    let ejected = snapshot.services.values().find(|s| &*s.name == "v1").unwrap().endpoints[0].id;
    explain(snapshot, &question, &Ejects(ejected)).unwrap()
}

#[track_caller]
fn says(said: &Explanation, what: &str, text: &str) {
    let steps = said.steps.iter().filter(|step| step.what == what);
    let all: Vec<String> = steps.map(|step| format!("{}\n{}", step.says, step.more.join("\n"))).collect();
    assert!(all.iter().any(|step| step.contains(text)), "{what}: {text:?} is not in {all:#?}");
}

#[test]
fn a_request_is_followed_from_its_address_to_whoever_lets_it_in() {
    let deny = v1::AuthorizationRule {
        to: vec![v1::TargetTerms { paths: vec!["/v2/*".into()], ..Default::default() }],
        ports: vec![0],
        ..Default::default()
    };
    let policy = v1::AuthorizationPolicy {
        namespace: "d".into(),
        name: "p".into(),
        action: v1::AuthorizationAction::Deny.into(),
        rules: vec![deny],
        ..Default::default()
    };
    let said = told(&snapshot(vec![of(policy)]), "240.0.0.1", 80, "/api/x?q=1");
    says(&said, "service", "240.0.0.1 is a virtual address of d/front:80");
    says(&said, "path", "proxy: a route is attached that the proxy carries out");
    says(&said, "route", "rule d/front/0");
    says(&said, "route", "d/front/1 (any host, path /beta): no: the path is \"/api/x\"");
    says(&said, "filters", "path becomes /v2/x");
    says(&said, "backends", "d/v1:80 weight 9 (90.0 %)");
    says(&said, "endpoints", "d/v1-0 10.0.0.2:8080");
    says(&said, "endpoints", "left out for 5 ms more, 3 connections now");
    says(&said, "transport", "d/v1-0 port 8080: on this node, plain");
    // What the endpoint gets is asked about, not what was sent.
    says(&said, "authorisation", "d/v1-0: refused, denied by rules[0] of AuthorizationPolicy d/p");
    says(&said, "transport", "d/v2-0 port 8080: in a tunnel of mutual TLS");
    says(&said, "authorisation", "d/v2-0: decided on node n2");
    let [away] = &said.elsewhere[..] else { panic!("{:?}", said.elsewhere) };
    assert_eq!((&*away.workload, &*away.path, away.port), ("d/v2-0", "/v2/x", 8080));
}

#[test]
fn what_goes_nowhere_says_why() {
    let snapshot = snapshot(vec![]);
    says(&told(&snapshot, "240.0.0.1", 80, "/other"), "route", "no rule takes it: 404, no_route");
    says(&told(&snapshot, "240.0.0.1", 80, "/beta"), "backends", "none: 500, no_backend");
    says(&told(&snapshot, "240.0.0.1", 81, "/"), "service", "has no TCP port 81");
    says(&told(&snapshot, "192.0.2.1", 80, "/"), "service", "outside of the mesh: left alone");
    let said = told(&snapshot, "240.0.0.4", 90, "/");
    says(&said, "path", "kernel: nothing of this port needs the proxy");
    says(&said, "authorisation", "d/v1-0: let in, no AuthorizationPolicy selects it");
    says(&told(&snapshot, "10.0.0.2", 8080, "/"), "service", "the own address of workload d/v1-0");
    let question =
        Question { source: 0, address: "240.0.0.1".parse().unwrap(), port: 80, request: Sample::default() };
    assert!(explain(&snapshot, &question, &Ejects(0)).is_err());
}

//! What one decision costs: route, balance, authorise, and reading and writing heads of HTTP/1. `cargo xtask bench core`.
//!
//! Each by itself, in a loop, with everything in the cache: differences between two versions of the code are what it shows.
//! Not here: what a request costs as a whole (`bench l7`).

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_api::http_path::PathPattern;
use mesh_api::proto::v1::Protocol;
use mesh_common::policy::Caller;
use mesh_common::record::Load;
use mesh_core::authorise::request::Target;
use mesh_core::authorise::{Action, Asked, Policy, PolicySet, Rule, Terms};
use mesh_core::balance::{Balancer, Loads};
use mesh_core::http1::{
    HeadScan, Limits, RequestEdits, ResponseEdits, Side, Version, parse_request, parse_response,
    write_request, write_response,
};
use mesh_core::mtls::MtlsMode;
use mesh_core::resilience::sticky::Wanted;
use mesh_core::route::{Backend, Edits, PathMatch, RouteSpec, RouteTable, RuleSpec};
use mesh_core::snapshot::{Balancing, Endpoint, EndpointId, OnProxyLoss, Service, ServiceId, Traffic};

/// As a browser's, in short.
const REQUEST: &[u8] =
    b"GET /r/57/b0?q=1 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\
    Accept-Encoding: gzip\r\nCookie: session=0123456789abcdef\r\nX-Request-Id: 4f1c\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 01 Nov 2026 00:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 1024\r\nETag: \"abc\"\r\nConnection: keep-alive\r\n\r\n";

fn codec(c: &mut Criterion) {
    let limits = Limits::default();
    let mut out = Vec::with_capacity(4096);
    c.bench_function("http1: request head, read and written", |b| {
        b.iter(|| {
            let end = HeadScan::new(Side::Client).end(black_box(REQUEST), &limits).ok().flatten();
            let head = parse_request(&REQUEST[..end.unwrap_or(0)], &limits).expect("a head");
            out.clear();
            write_request(&head, &RequestEdits::default(), &mut out);
            out.len()
        });
    });
    let facts = parse_request(REQUEST, &limits).expect("a head").facts();
    let edits = ResponseEdits { keep_alive: true, client: Version::Http11, headers: None };
    c.bench_function("http1: response head, read and written", |b| {
        b.iter(|| {
            let head = parse_response(black_box(RESPONSE), facts, &limits).expect("a head");
            out.clear();
            write_response(&head, &edits, &mut out);
            out.len()
        });
    });
}

fn route(c: &mut Criterion) {
    let rule = |n: usize| RuleSpec {
        matches: vec![PathMatch::Prefix(format!("/r/{n}")).into()],
        backends: vec![Backend { service: Some(1), weight: 1, edits: None }],
        edits: Edits::default(),
        action: None,
    };
    let limits = Limits::default();
    let head = parse_request(REQUEST, &limits).expect("a head");
    for rules in [100, 10_000] {
        let spec = RouteSpec {
            name: "d/r".into(),
            created_ms: 0,
            hostnames: Vec::new(),
            rules: (0..rules).map(rule).collect(),
        };
        let table = RouteTable::new(&[spec]);
        c.bench_function(&format!("route: one of {rules} rules"), |b| {
            b.iter(|| table.find(black_box(&head)).is_some());
        });
    }
}

struct Idle;

impl Loads for Idle {
    fn load(&self, endpoint: EndpointId) -> Load {
        Load { live: u64::from(endpoint % 7), ..Load::default() }
    }

    fn ejected(&self, _: ServiceId) -> u64 {
        0
    }

    fn now(&self) -> u64 {
        1
    }
}

fn service(balancing: Balancing, weights: fn(u32) -> u32) -> Service {
    let endpoint = |id: u32| Endpoint {
        id,
        workload: id,
        v4: Some([10, 0, 0, 1].into()),
        v6: None,
        port: 80,
        weight: weights(id),
        local: false,
        policy_set: 0,
        mtls: MtlsMode::Off,
        tunnel: false,
    };
    Service {
        id: 1,
        namespace: "d".into(),
        name: "s".into(),
        port: 80,
        port_name: "".into(),
        vips: vec![],
        protocol: Protocol::Http,
        why: None,
        on_proxy_loss: OnProxyLoss::Bypass,
        traffic: Traffic { balancing, ..Traffic::default() },
        resilience: None,
        inbound_proxy: false,
        endpoints: (1..=20).map(endpoint).collect(),
        serving: 20,
        routes: None,
        consumers: None,
        fallback: vec![],
        split: false,
        backends: vec![],
        health: None,
        dns_ttl: None,
    }
}

/// What it is called, how, and the weight of each endpoint.
type Kind = (&'static str, Balancing, fn(u32) -> u32);

fn balance(c: &mut Criterion) {
    let kinds: [Kind; 3] = [
        ("in turns", Balancing::RoundRobin, |_| 1),
        ("in turns by weight", Balancing::RoundRobin, |id| id),
        ("least connections", Balancing::LeastConnections, |_| 1),
    ];
    for (name, balancing, weights) in kinds {
        let service = service(balancing, weights);
        let mut balancer = Balancer::default();
        let mut random = 1_u64;
        c.bench_function(&format!("balance: {name}, 20 endpoints"), |b| {
            b.iter(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                balancer
                    .pick(black_box(&service), (1, Wanted::Any), random, &Idle)
                    .map(|endpoint| endpoint.id)
            });
        });
    }
}

fn authorise(c: &mut Criterion) {
    let allow = |identity: u32| {
        let caller = Caller { identity, namespace: 10 };
        let rule = Rule {
            from: [Terms { identities: [caller].into(), ..Terms::default() }].into(),
            to: [Target {
                methods: ["GET".into()].into(),
                paths: [PathPattern::parse("/r/*").expect("a pattern")].into(),
                ..Target::default()
            }]
            .into(),
            when: Box::default(),
        };
        Arc::new(Policy { name: format!("d/{identity}").into(), action: Action::Allow, rules: [rule].into() })
    };
    let set = PolicySet::new((1..=10).map(allow).collect());
    let asked = Asked::connection(Caller { identity: 10, namespace: 10 }, 80);
    c.bench_function("authorise: the last of 10 policies", |b| {
        b.iter(|| set.refuses(black_box(&asked)).is_none());
    });
}

criterion_group!(decisions, codec, route, balance, authorise);
criterion_main!(decisions);

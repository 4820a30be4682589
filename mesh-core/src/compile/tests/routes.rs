//! Routes of gRPC and TLS, and of a client's own namespace.

use super::*;
use crate::hello::Asked;
use crate::route::Action;

fn grpc(name: &str, parent: &str, backend: (&str, u32, u32)) -> v1::GrpcRoute {
    let v1::HttpRoute { namespace, name, parents, hostnames, mut rules, created_ms } =
        route(name, parent, &[("/", &[backend])]);
    let called = v1::GrpcMethod { service: "shop.Cart".into(), method: "Get".into(), regex: false };
    rules[0].matches[0].path = Some(v1::http_match::Path::Grpc(called));
    v1::GrpcRoute { namespace, name, parents, hostnames, rules, created_ms }
}

fn tls(name: &str, parent: &str, host: &str, backends: &[(&str, u32, u32)]) -> v1::TlsRoute {
    let v1::TcpRoute { namespace, name, mut parents, backends, created_ms } =
        tcp_route(name, parent, backends);
    parents[0].port = 443;
    v1::TlsRoute { namespace, name, parents, hostnames: vec![host.into()], backends, created_ms }
}

#[test]
fn a_route_of_grpc_takes_a_port_from_those_of_http_and_says_so() {
    let mut c = compiler();
    let base = vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Http)),
        of(service("v1", &[], 80, Protocol::Http)),
        of(route("r", "s", &[("/", &[("s", 80, 1)])])),
    ];
    let out = apply(&mut c, base, &[]);
    assert!(problems(&out).is_empty(), "{:?}", problems(&out));
    // The same name is another route.
    let out = apply(&mut c, vec![of(grpc("r", "s", ("v1", 80, 1)))], &[]);
    let table = named(&out, "s").routes.clone().expect("routes");
    let rules: Vec<_> = table.rules().iter().map(|rule| rule.backends[0].service).collect();
    assert_eq!(rules, [Some(named(&out, "v1").id)]);
    assert_eq!(
        problems(&out),
        ["HTTPRoute d/r: port 80 of service d/s has GRPCRoute d/r, which comes first"]
    );
    let out = apply(&mut c, vec![], &[(Kind::GrpcRoute, "d/r")]);
    assert!(problems(&out).is_empty(), "{:?}", problems(&out));
    let table = named(&out, "s").routes.clone().expect("routes");
    assert_eq!(table.rules()[0].backends[0].service, Some(named(&out, "s").id));
}

#[test]
fn a_route_of_tls_is_by_name_comes_before_tcps_and_is_never_bypassed() {
    let mut c = compiler();
    let mut tcp = tcp_route("t", "s", &[("a", 443, 1)]);
    tcp.parents[0].port = 443;
    let port = |name: &str| of(service(name, &["240.0.0.1"], 443, Protocol::Tls));
    let out = apply(&mut c, vec![port("s"), port("a"), port("b"), of(tcp)], &[]);
    assert!(named(&out, "s").split && named(&out, "s").why.is_none());
    let routes = vec![
        of(tls("x", "s", "a.example", &[("a", 443, 1)])),
        of(tls("y", "s", "*.b.example", &[("b", 443, 1)])),
    ];
    let out = apply(&mut c, routes, &[]);
    let s = named(&out, "s");
    assert_eq!((s.why, s.on_proxy_loss, s.split), (Some(Why::Route), OnProxyLoss::Refuse, false));
    let table = s.routes.clone().expect("routes");
    let to = |name: &str| table.find(&Asked(name)).map(|found| found.rule.backends[0].service);
    assert_eq!(to("a.example"), Some(Some(named(&out, "a").id)));
    assert_eq!(to("x.b.example"), Some(Some(named(&out, "b").id)));
    assert_eq!((to("b.example"), to("")), (None, None));
    assert_eq!(problems(&out), ["TCPRoute d/t: port 443 of service d/s has TLSRoute d/x, which comes first"]);
    let out = apply(&mut c, vec![], &[(Kind::TlsRoute, "d/x"), (Kind::TlsRoute, "d/y")]);
    assert!(problems(&out).is_empty() && named(&out, "s").split && named(&out, "s").why.is_none());
}

#[test]
fn a_namespaces_own_route_replaces_the_producers_for_its_clients_alone() {
    let mut c = compiler();
    let mut own = route("r", "s", &[("/", &[("v2", 80, 1)])]);
    own.namespace = "shop".into();
    let base = vec![
        of(service("s", &["240.0.0.1"], 80, Protocol::Http)),
        of(service("v1", &[], 80, Protocol::Http)),
        of(service("v2", &[], 80, Protocol::Http)),
        of(route("r", "s", &[("/", &[("v1", 80, 1)])])),
        of(own),
    ];
    let out = apply(&mut c, base, &[]);
    assert!(problems(&out).is_empty(), "{:?}", problems(&out));
    let s = named(&out, "s");
    let to = |namespace: Option<&'static str>| {
        s.routes_of(|| namespace).map(|table| table.rules()[0].backends[0].service)
    };
    let [v1, v2] = ["v1", "v2"].map(|name| Some(Some(named(&out, name).id)));
    assert_eq!([to(Some("shop")), to(Some("d")), to(None)], [v2, v1, v1]);
    assert_eq!(s.fallback, [(named(&out, "v1").id, 1)]);
    assert!(["v1", "v2"].iter().all(|name| s.backends.contains(&named(&out, name).id)));
    // Without the producer's, others are not routed, and the port still needs the proxy.
    let kernel = v1::Mesh { http: HttpMode::Kernel.into(), ..Default::default() };
    let out = apply(&mut c, vec![of(kernel)], &[(Kind::HttpRoute, "d/r")]);
    let s = named(&out, "s");
    assert_eq!((s.why, s.routes.is_none(), s.fallback.clone()), (Some(Why::Route), true, vec![(s.id, 1)]));
    assert!(s.routes_of(|| Some("shop")).is_some() && s.routes_of(|| Some("d")).is_none());
    let out = apply(&mut c, vec![], &[(Kind::HttpRoute, "shop/r")]);
    assert_eq!((named(&out, "s").why, named(&out, "s").consumers.is_none()), (None, true));
}

#[test]
fn a_rule_that_answers_needs_no_backend() {
    let mut c = compiler();
    let mut answers = route("r", "s", &[("/", &[])]);
    let direct = v1::HttpDirectResponse { status: 503, content_type: "text/plain".into(), body: "no".into() };
    answers.rules[0].filters = Some(v1::HttpFilters { direct: Some(direct), ..Default::default() });
    let s = of(service("s", &["240.0.0.1"], 80, Protocol::Http));
    let out = apply(&mut c, vec![s, of(answers)], &[]);
    assert!(problems(&out).is_empty(), "{:?}", problems(&out));
    let table = named(&out, "s").routes.clone().expect("routes");
    let action = table.rules()[0].action.clone().expect("an action");
    let direct = Action::clone(&action).direct.expect("an answer");
    assert_eq!(
        (direct.status, &*direct.body, direct.content_type.as_deref()),
        (503, "no", Some("text/plain"))
    );
    assert_eq!(named(&out, "s").fallback, [(named(&out, "s").id, 1)]);
}

#[test]
fn a_port_that_says_nothing_is_found_out_unless_http_stays_in_the_kernel() {
    let mut c = compiler();
    let out = apply(&mut c, vec![of(service("s", &["240.0.0.1"], 80, Protocol::Auto))], &[]);
    assert_eq!(named(&out, "s").why, Some(Why::Detect));
    let kernel = v1::Mesh { http: HttpMode::Kernel.into(), ..Default::default() };
    let out = apply(&mut c, vec![of(kernel)], &[]);
    assert_eq!(named(&out, "s").why, None);
    let out = apply(&mut c, vec![of(route("r", "s", &[("/", &[("s", 80, 1)])]))], &[]);
    assert_eq!(named(&out, "s").why, Some(Why::Route));
}

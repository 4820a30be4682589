//! External services: services whose endpoints nobody tells, names that one of them has, TLS that is spoken for them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_api::proto::v1::{self, EgressMode, Protocol};

use super::{Outcome, apply, compiler, named, of, problems, route, service, workload};
use crate::model::Kind;
use crate::outside::{Believed, Egress, Outside};
use crate::snapshot::{OnProxyLoss, Why};

/// `d/<name>` with port 80 of HTTP, in TLS if `sni` is not empty, that leads to port 443.
pub fn external(name: &str, hosts: &[&str], addresses: &[&str], sni: &str) -> v1::ExternalService {
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    let tls = v1::TlsOrigination { sni: sni.into(), ..Default::default() };
    let port = v1::ExternalPort {
        name: "web".into(),
        port: 80,
        target_port: 443,
        protocol: Protocol::Http.into(),
        tls: (!sni.is_empty()).then_some(tls),
    };
    v1::ExternalService {
        namespace: "d".into(),
        name: name.into(),
        vips: vec!["240.240.1.1".into()],
        hosts: texts(hosts),
        addresses: texts(addresses),
        ports: vec![port],
        created_ms: 1,
    }
}

fn endpoints(outcome: &Outcome, name: &str) -> Vec<String> {
    let service = named(outcome, name);
    service.serving().iter().filter_map(|e| e.address(false)).map(|at| at.to_string()).collect()
}

fn resolved(host: &str, ips: &[&str]) -> BTreeMap<String, Vec<IpAddr>> {
    [(host.to_owned(), ips.iter().map(|ip| ip.parse().unwrap()).collect())].into()
}

#[test]
fn addresses_that_are_given_or_resolved_are_endpoints() {
    let mut c = compiler();
    let given = external("given", &["a.example"], &["192.0.2.1", "2001:db8::1"], "");
    let found = external("found", &["b.example"], &[], "");
    let out = apply(&mut c, vec![of(given), of(found)], &[]);
    assert_eq!(endpoints(&out, "given"), ["192.0.2.1:443", "[2001:db8::1]:443"]);
    assert_eq!(endpoints(&out, "found"), Vec::<String>::new());
    let names = |out: &Outcome| out.snapshot.resolves.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&out), ["b.example"]);
    assert_eq!(&*out.snapshot.hosts["a.example"], "d/given");
    let before = out.snapshot.epoch;
    let out = c.resolve(resolved("b.example", &["192.0.2.2"]));
    assert_eq!(endpoints(&out, "found"), ["192.0.2.2:443"]);
    assert!(out.snapshot.epoch > before && !out.dirty.services.is_empty());
    let outside = |ip: &str| {
        let ip: IpAddr = ip.parse().unwrap();
        out.snapshot.workloads.values().find(|w| w.addresses.contains(&ip)).and_then(|w| w.outside)
    };
    assert_eq!((outside("192.0.2.1"), outside("192.0.2.2")), (Some(Outside::Given), Some(Outside::Resolved)));
    let out = c.resolve(BTreeMap::new());
    assert_eq!(endpoints(&out, "found"), Vec::<String>::new());
    let out =
        apply(&mut c, vec![], &[(Kind::ExternalService, "d/given"), (Kind::ExternalService, "d/found")]);
    let snapshot = &out.snapshot;
    assert!(snapshot.hosts.is_empty() && snapshot.resolves.is_empty() && snapshot.workloads.is_empty());
    assert!(snapshot.services.is_empty() && problems(&out).is_empty());
}

#[test]
fn who_is_to_be_spoken_tls_with_is_never_let_go_to_plainly() {
    let mut c = compiler();
    let mut policy = v1::TrafficPolicy { namespace: "d".into(), name: "p".into(), ..Default::default() };
    policy.targets = vec![v1::PolicyTarget { service: "api".into(), section_name: String::new() }];
    policy.set_http(v1::HttpMode::Kernel);
    policy.set_on_proxy_loss(v1::OnProxyLoss::Bypass);
    let api = external("api", &["a.example"], &["192.0.2.1"], "a.example");
    let out = apply(&mut c, vec![of(api.clone()), of(policy)], &[]);
    let compiled = named(&out, "api");
    assert_eq!((compiled.why, compiled.on_proxy_loss), (Some(Why::Tls), OnProxyLoss::Refuse));
    let tls = out.snapshot.originations[&compiled.id].clone();
    assert_eq!((&*tls.sni, &*tls.names[0], &*tls.alpn[0]), ("a.example", "a.example", "http/1.1"));
    assert_eq!(tls.believed, Believed::Node);
    // Who dials the address speaks for himself.
    assert!(out.snapshot.workloads.values().all(|w| w.ports.iter().all(|port| !port.proxy)));
    // A change gives it another number, what is no change does not.
    let again = apply(&mut c, vec![of(api.clone())], &[]);
    assert_eq!(again.snapshot.originations[&compiled.id].number, tls.number);
    let mut other = api;
    other.ports[0].tls.as_mut().unwrap().ca_file = "/ca.pem".into();
    let out = apply(&mut c, vec![of(other)], &[]);
    assert_ne!(out.snapshot.originations[&compiled.id].number, tls.number);
    assert!(out.snapshot.epoch > again.snapshot.epoch);
    // A route may lead there.
    let routes = route("r", "web", &[("/", &[("api", 80, 1)])]);
    let out = apply(&mut c, vec![of(service("web", &["240.0.0.1"], 80, Protocol::Http)), of(routes)], &[]);
    assert_eq!(named(&out, "web").backends, [compiled.id]);
    assert!(problems(&out).is_empty(), "{:?}", problems(&out));
}

#[test]
fn a_name_is_the_older_ones_and_a_services_before() {
    let mut c = compiler();
    let mut new = external("a-new", &["a.example", "b.example"], &["240.0.0.1"], "");
    new.created_ms = 2;
    let old = external("old", &["a.example"], &["192.0.2.1"], "");
    let web = service("web", &["240.0.0.1"], 80, Protocol::Http);
    let out = apply(&mut c, vec![of(new), of(old), of(web)], &[]);
    let hosts = |out: &Outcome, host: &str| out.snapshot.hosts.get(host).map(ToString::to_string);
    assert_eq!(hosts(&out, "a.example").as_deref(), Some("d/old"));
    assert_eq!(hosts(&out, "b.example").as_deref(), Some("d/a-new"));
    let said = problems(&out);
    for words in [
        "ExternalService d/a-new: spec.hosts: a.example",
        "ExternalService d/a-new: spec.addresses: 240.0.0.1",
    ] {
        assert!(said.iter().any(|problem| problem.starts_with(words)), "{words}: {said:?}");
    }
    let out = apply(&mut c, vec![of(service("old", &["240.0.0.9"], 80, Protocol::Http))], &[]);
    assert_eq!(hosts(&out, "a.example").as_deref(), Some("d/a-new"));
    assert!(endpoints(&out, "old").is_empty(), "a Service of the name has none of its endpoints");
    assert!(problems(&out).iter().any(|problem| problem.contains("a Service has its name")));
    let out = apply(&mut c, vec![], &[(Kind::Service, "d/old")]);
    assert_eq!(endpoints(&out, "old"), ["192.0.2.1:443"]);
    assert_eq!(hosts(&out, "a.example").as_deref(), Some("d/old"));
}

#[test]
fn the_mesh_says_what_may_be_opened_and_a_policy_says_otherwise() {
    let mut c = compiler();
    let mut mesh = v1::Mesh::default();
    mesh.set_egress(EgressMode::AllowList);
    let out = apply(&mut c, vec![of(mesh.clone()), of(workload("w", &["10.0.0.1"], &[]))], &[]);
    let egress = |out: &Outcome| {
        let workload = out.snapshot.workloads.values().find(|w| w.name() == "w").cloned().unwrap();
        workload.transport.as_ref().map(|transport| transport.egress)
    };
    assert_eq!(egress(&out), Some(Egress::Listed));
    let mut policy = v1::TransportPolicy { namespace: "d".into(), name: "p".into(), ..Default::default() };
    policy.set_egress(EgressMode::AllowAll);
    let out = apply(&mut c, vec![of(policy)], &[]);
    assert_eq!(egress(&out), Some(Egress::All));
    let out = apply(&mut c, vec![of(v1::Mesh::default())], &[(Kind::TransportPolicy, "d/p")]);
    assert_eq!(egress(&out), None);
    // A mode of a newer control plane opens nothing.
    mesh.egress = 77;
    let out = apply(&mut c, vec![of(mesh)], &[]);
    assert_eq!(egress(&out), Some(Egress::Listed));
}

//! UDP ports, and the routes of TCP and UDP.

use mesh_api::proto::v1::{self, Protocol};

use super::{apply, compiler, named, names, of, problems, service, tcp_route, udp_route, workload};
use crate::ids::{EndpointKey, IdKind};
use crate::model::{Batch, Kind, Resource};
use crate::snapshot::Revision;

#[test]
fn udp_and_tcp_ports_of_one_number_are_told_apart() {
    let mut c = compiler();
    let mut dns = service("dns", &["240.0.0.1"], 53, Protocol::Udp);
    dns.ports.push(v1::ServicePort { name: "tcp".into(), port: 53, ..Default::default() });
    let mut w = workload("w", &["10.0.0.1"], &[("dns", 53, 1), ("dns", 53, 2)]);
    w.services[0].udp = true;
    let out = apply(&mut c, vec![of(dns), of(w)], &[]);
    assert_eq!(problems(&out), [""; 0]);
    let of_port = |udp: bool| out.snapshot.services.values().find(|s| s.udp() == udp).expect("compiled");
    assert_eq!((of_port(true).serving()[0].port, of_port(true).why), (8080, None));
    assert_eq!((of_port(false).serving()[0].port, of_port(false).serving()[0].weight), (8081, 2));
    assert_eq!(c.ids().get(IdKind::Service, "d/dns:53/udp"), Some(of_port(true).id));
    let key = EndpointKey { service: of_port(true).id, workload: 1, port: 8080 };
    assert!(c.ids().endpoint(key).is_some());

    // What serves the one does not serve the other.
    let mut c = compiler();
    let mut w = workload("w", &["10.0.0.1"], &[("dns", 53, 1)]);
    let udp = service("dns", &[], 53, Protocol::Udp);
    let out = apply(&mut c, vec![of(udp), of(w.clone())], &[]);
    assert_eq!(
        problems(&out),
        ["Workload d/w: spec.services[0]: port 53 of service d/dns is of protocol udp"]
    );
    w.services[0].udp = true;
    let out = apply(&mut c, vec![of(w), of(service("dns", &[], 53, Protocol::Tcp))], &[]);
    assert_eq!(
        problems(&out),
        ["Workload d/w: spec.services[0]: port 53 of service d/dns is not of protocol udp"]
    );
}

#[test]
fn a_tcp_or_udp_route_splits_its_ports_and_the_oldest_rules() {
    for udp in [false, true] {
        let mut c = compiler();
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let route = |name: &str, created_ms, backends: &[(&str, u32, u32)]| -> Resource {
            if udp {
                of(v1::UdpRoute { created_ms, ..udp_route(name, "s", backends) })
            } else {
                of(v1::TcpRoute { created_ms, ..tcp_route(name, "s", backends) })
            }
        };
        let (kind, service) = (if udp { Kind::UdpRoute } else { Kind::TcpRoute }, |name: &str| {
            of(service(name, &[], 80, protocol))
        });
        let backends = [("v1", 80, 9), ("v2", 80, 1), ("gone", 80, 5), ("v3", 80, 0)];
        let all = ["s", "v1", "v2", "v3"].map(service).into_iter().chain([route("r", 5, &backends)]);
        let out = apply(&mut c, all.collect(), &[]);
        let id = |name| named(&out, name).id;
        assert_eq!(named(&out, "s").fallback, [(id("v1"), 9), (id("v2"), 1)]);
        assert_eq!((named(&out, "s").split, named(&out, "s").why), (true, None));
        assert_eq!(named(&out, "s").backends, [id("v1"), id("v2")]);
        assert!(!named(&out, "v1").split);
        let gone = format!(
            "{kind} d/r: rules[0].backendRefs[2]: service d/gone does not exist: its share goes to the others"
        );
        assert_eq!(problems(&out), [gone]);

        // A backend's endpoints stand in its parents' tables.
        let mut w = workload("w", &["10.0.0.1"], &[("v2", 80, 1)]);
        w.services[0].udp = udp;
        let both = [id("s"), id("v2")].into();
        assert_eq!(apply(&mut c, vec![of(w)], &[]).dirty.services, both);

        let newer = format!("{kind} d/a: port 80 of service d/s is ruled by the older {kind} d/r");
        let out = apply(&mut c, vec![route("a", 6, &[("v3", 80, 1)]), service("gone")], &[]);
        assert_eq!((named(&out, "s").fallback.len(), problems(&out)), (3, vec![newer]));
        let out = apply(&mut c, vec![], &[(kind, "d/r")]);
        assert_eq!((named(&out, "s").fallback.clone(), problems(&out)), (vec![(id("v3"), 1)], vec![]));
        let out = apply(&mut c, vec![], &[(kind, "d/a")]);
        assert_eq!((named(&out, "s").fallback.clone(), named(&out, "s").split), (vec![(id("s"), 1)], false));
    }
}

#[test]
fn tcp_and_udp_routes_that_lead_nowhere_are_named() {
    let mut c = compiler();
    let mut on_port = udp_route("port", "u", &[("s", 80, 1)]);
    on_port.parents[0].port = 54;
    let out = apply(
        &mut c,
        vec![
            of(service("s", &[], 80, Protocol::Http)),
            of(service("u", &[], 53, Protocol::Udp)),
            of(tcp_route("http", "s", &[("s", 80, 1)])),
            of(tcp_route("none", "none", &[("s", 80, 0)])),
            of(tcp_route("udp", "u", &[("u", 53, 1)])),
            of(on_port),
        ],
        &[],
    );
    assert_eq!(
        problems(&out),
        [
            "TCPRoute d/http: parent service d/s has no port of protocol tcp or tls",
            "TCPRoute d/none: parent service d/none does not exist",
            "TCPRoute d/none: rules[0].backendRefs: all weights are 0: what is sent is refused",
            "TCPRoute d/udp: parent service d/u has no port of protocol tcp or tls",
            "TCPRoute d/udp: rules[0].backendRefs[0]: port 53 of service d/u is of protocol udp: its share goes to the others",
            "UDPRoute d/port: parent service d/u has no port 54 of protocol udp",
            "UDPRoute d/port: rules[0].backendRefs[0]: port 80 of service d/s is not of protocol udp: its share goes to the others",
        ]
    );
    let all: Vec<(Kind, String)> = names(c.model());
    let out = c.apply(Batch { upserts: vec![], removes: all }, Revision::default());
    assert!(out.conditions.is_empty(), "{:?}", out.conditions);
}

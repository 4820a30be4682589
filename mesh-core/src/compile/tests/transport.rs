//! Which transport policies hold for a workload.

use std::sync::Arc;

use mesh_api::proto::v1::{self, Protocol, SpliceMode, UdpMode};

use super::{Outcome, apply, compiler, of, problems, service, workload};
use crate::model::Kind;
use crate::mtls::{MtlsMode, MtlsRules};
use crate::outcome::LogRule;
use crate::snapshot::Transport;

fn policy(name: &str, created_ms: u64) -> v1::TransportPolicy {
    v1::TransportPolicy { namespace: "d".into(), name: name.into(), created_ms, ..Default::default() }
}

fn ports(ports: &[u32]) -> v1::Exclusions {
    v1::Exclusions { ports: ports.to_vec(), ..Default::default() }
}

fn labelled(name: &str, app: &str) -> v1::Workload {
    let mut workload = workload(name, &["10.0.0.1"], &[]);
    workload.labels.insert("app".into(), app.into());
    workload
}

fn transport(outcome: &Outcome, name: &str) -> Option<Arc<Transport>> {
    let all = &outcome.snapshot.workloads;
    all.values().find(|w| *w.full_name == *name).and_then(|w| w.transport.clone())
}

#[test]
fn selector_before_namespace_before_mesh_field_by_field() {
    let mut c = compiler();
    let mut mesh = policy("mesh", 1);
    (mesh.mesh, mesh.namespace) = (true, "nodemesh".into());
    mesh.set_udp(UdpMode::Deny);
    mesh.outbound = Some(ports(&[1]));
    mesh.budget_connections = 10;
    mesh.set_splice(SpliceMode::On);
    mesh.access_log = Some(v1::AccessLog { percent: 1, errors: true });
    let mut whole = policy("whole", 2);
    whole.outbound = Some(ports(&[2, 3]));
    whole.budget_pending = 7;
    let mut db = policy("db", 3);
    db.selector.insert("app".into(), "db".into());
    db.outbound = Some(v1::Exclusions::default());
    db.set_udp(UdpMode::Allow);
    db.set_splice(SpliceMode::Off);
    db.access_log = Some(v1::AccessLog::default());
    let mut other = labelled("other", "web");
    other.namespace = "e".into();
    let mut away = labelled("away", "db");
    away.node = "n2".into();
    let workloads = vec![of(labelled("db-0", "db")), of(labelled("web-0", "web")), of(other), of(away)];
    let out = apply(&mut c, workloads, &[]);
    assert_eq!(transport(&out, "d/db-0"), None);
    let out = apply(&mut c, vec![of(mesh), of(whole), of(db)], &[]);
    assert_eq!(problems(&out), [""; 0]);
    assert_eq!(transport(&out, "d/away"), None, "another node's");

    let db = transport(&out, "d/db-0").unwrap();
    assert!(!db.no_udp && db.outbound.is_empty(), "what is said empty is said");
    assert_eq!((db.connections, db.pending, db.policies.len()), (Some(10), Some(7), 3));
    let web = transport(&out, "d/web-0").unwrap();
    assert_eq!((web.no_udp, &*web.outbound.ports, web.policies.len()), (true, &[2, 3][..], 2));
    assert!(web.splice && !db.splice, "what is said nearer counts");
    assert_eq!((web.log, db.log), (LogRule { percent: 1, errors: true }, LogRule::default()));
    let other = transport(&out, "e/other").unwrap();
    assert_eq!((other.no_udp, &*other.outbound.ports, other.pending), (true, &[1][..], None));

    let out = apply(&mut c, vec![], &[(Kind::TransportPolicy, "nodemesh/mesh")]);
    assert_eq!(transport(&out, "e/other"), None);
    assert!(!transport(&out, "d/web-0").unwrap().no_udp);
    assert_eq!(out.dirty.workloads.len(), 3);
}

#[test]
fn the_older_of_two_says_a_field_and_the_other_one_shows_it() {
    let mut c = compiler();
    let mut old = policy("z", 1);
    old.outbound = Some(ports(&[1]));
    let mut new = policy("a", 2);
    new.outbound = Some(ports(&[2]));
    new.set_udp(UdpMode::Deny);
    let out = apply(&mut c, vec![of(labelled("w", "x")), of(old), of(new)], &[]);
    let w = transport(&out, "d/w").unwrap();
    assert_eq!((&*w.outbound.ports, w.no_udp), (&[1][..], true));
    let shown = ["TransportPolicy d/a: spec.exclude.outbound is ruled by the older policy d/z"];
    assert_eq!(problems(&out), shown);
    let out = apply(&mut c, vec![], &[(Kind::Workload, "d/w")]);
    assert_eq!(problems(&out), [""; 0], "nobody is ruled by either");
    let out = apply(&mut c, vec![of(labelled("w", "x"))], &[]);
    assert_eq!(problems(&out), shown);
    let out = apply(&mut c, vec![], &[(Kind::TransportPolicy, "d/z")]);
    assert_eq!(problems(&out), [""; 0]);
    assert_eq!(&*transport(&out, "d/w").unwrap().outbound.ports, &[2]);
}

#[test]
fn what_cannot_be_understood_excludes_nothing_and_lets_nothing_in() {
    let mut c = compiler();
    let mut bad = policy("bad", 1);
    bad.udp = 77;
    bad.outbound = Some(ports(&[80, 65_536]));
    bad.inbound = Some(v1::Exclusions { cidrs: vec!["10.0.0.1/8".into()], ..Default::default() });
    bad.budget_connections = 5;
    bad.splice = 9;
    bad.mtls = 8;
    let out = apply(&mut c, vec![of(labelled("w", "x")), of(bad)], &[]);
    let w = transport(&out, "d/w").unwrap();
    assert!(w.no_udp && w.outbound.is_empty() && w.inbound.is_empty() && !w.splice);
    assert_eq!(w.connections, Some(5), "the rest holds");
    assert_eq!(mtls(&out, "d/w").mode, MtlsMode::Strict);
    assert_eq!(
        problems(&out),
        [
            "TransportPolicy d/bad: spec.udp: mode 77 is not known here: datagrams are dropped",
            "TransportPolicy d/bad: spec.splice: mode 9 is not known here: nothing is spliced",
            "TransportPolicy d/bad: spec.mtls.mode: mode 8 is not known here: strict holds",
            "TransportPolicy d/bad: spec.exclude.outbound.ports: port 65536 is not in 1..=65535: nothing is \
             excluded by it",
            "TransportPolicy d/bad: spec.exclude.inbound.cidrs: \"10.0.0.1/8\" is not a network: nothing is \
             excluded by it",
        ]
    );
}

fn mtls(outcome: &Outcome, name: &str) -> MtlsRules {
    let all = &outcome.snapshot.workloads;
    all.values().find(|w| *w.full_name == *name).map(|w| w.mtls.clone()).unwrap()
}

#[test]
fn encryption_goes_by_port_then_policy_then_mesh_for_workloads_of_every_node() {
    let mut c = compiler();
    let mut away = labelled("away", "db");
    (away.node, away.hbone) = ("n2".into(), true);
    away.services = workload("", &[], &[("s", 80, 1)]).services;
    let out = apply(
        &mut c,
        vec![of(service("s", &[], 80, Protocol::Tcp)), of(labelled("w", "web")), of(away)],
        &[],
    );
    assert_eq!(mtls(&out, "d/away"), MtlsRules::default());
    let tunnel = |out: &Outcome| out.snapshot.services.values().next().unwrap().endpoints[0].tunnel;
    assert!(tunnel(&out), "permissive is what holds where nobody says");
    assert_eq!(transport(&out, "d/w"), None);

    let out = apply(&mut c, vec![of(mesh(v1::MtlsMode::Off))], &[]);
    assert_eq!((mtls(&out, "d/w").mode, mtls(&out, "d/away").mode), (MtlsMode::Off, MtlsMode::Off));
    assert!(!tunnel(&out) && transport(&out, "d/w").unwrap().plain);

    let mut whole = policy("whole", 1);
    whole.set_mtls(v1::MtlsMode::Strict);
    let mut db = policy("db", 2);
    db.selector.insert("app".into(), "db".into());
    db.mtls_ports.push(v1::PortMtls { port: 8080, mode: v1::MtlsMode::Off.into() });
    let out = apply(&mut c, vec![of(whole), of(db)], &[]);
    assert_eq!(
        (mtls(&out, "d/away").at(8080), mtls(&out, "d/away").at(1)),
        (MtlsMode::Off, MtlsMode::Strict)
    );
    assert!(!tunnel(&out), "its port is plain");
    let w = transport(&out, "d/w").unwrap();
    assert!(w.no_udp && !w.plain, "datagrams are not encrypted");

    let out = apply(&mut c, vec![], &[(Kind::TransportPolicy, "d/db")]);
    assert!(tunnel(&out));
    let out = apply(&mut c, vec![], &[(Kind::TransportPolicy, "d/whole")]);
    assert!(!tunnel(&out));
    let out = apply(&mut c, vec![of(mesh(v1::MtlsMode::Strict))], &[]);
    assert!(tunnel(&out) && transport(&out, "d/w").unwrap().no_udp);
}

fn mesh(mode: v1::MtlsMode) -> v1::Mesh {
    v1::Mesh { mtls: mode.into(), ..Default::default() }
}

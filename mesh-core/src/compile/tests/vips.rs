//! A workload's address that is a service's.

use super::*;

const WRONG: &str = "Workload d/w: spec.addresses: 10.9.0.2 is a virtual address of service d/other, and left out: \
                     give the workload's own address";

fn parts() -> [Resource; 3] {
    [
        of(service("web", &["10.9.0.1"], 80, Protocol::Tcp)),
        of(service("other", &["10.9.0.2"], 80, Protocol::Tcp)),
        of(workload("w", &["10.0.0.1", "10.9.0.2"], &[("web", 80, 1)])),
    ]
}

fn addresses(outcome: &Outcome) -> Vec<String> {
    let workloads = outcome.snapshot.workloads.values();
    workloads.flat_map(|w| w.addresses.iter().map(ToString::to_string)).collect()
}

#[test]
fn a_virtual_address_is_left_out_in_whatever_order_things_came_and_comes_back() {
    for order in [[0, 1, 2], [2, 0, 1], [0, 2, 1], [1, 2, 0]] {
        let mut compiler = compiler();
        let mut last = None;
        for i in order {
            let [web, other, w] = parts();
            let part = [web, other, w].into_iter().nth(i);
            last = Some(apply(&mut compiler, part.into_iter().collect(), &[]));
        }
        let out = last.unwrap();
        assert_eq!(problems(&out), [WRONG], "{order:?}");
        assert_eq!(addresses(&out), ["10.0.0.1"]);
        let out = apply(&mut compiler, vec![of(service("other", &["10.9.0.3"], 80, Protocol::Tcp))], &[]);
        assert!(out.conditions.is_empty(), "{:?}", out.conditions);
        assert_eq!(addresses(&out), ["10.0.0.1", "10.9.0.2"]);
        let out = apply(&mut compiler, vec![of(service("other", &["10.9.0.2"], 80, Protocol::Tcp))], &[]);
        assert_eq!(problems(&out), [WRONG], "{order:?}");
        let out = apply(&mut compiler, Vec::new(), &[(Kind::Service, "d/other")]);
        assert!(out.conditions.is_empty(), "{:?}", out.conditions);
    }
}

#[test]
fn an_address_passes_from_one_service_to_another_in_one_batch() {
    let mut compiler = compiler();
    apply(&mut compiler, parts().into(), &[]);
    let moved = |web: &[&str], other: &[&str]| {
        vec![of(service("web", web, 80, Protocol::Tcp)), of(service("other", other, 80, Protocol::Tcp))]
    };
    // Its own service's: the address is the workload's.
    let out = apply(&mut compiler, moved(&["10.9.0.2"], &["10.9.0.1"]), &[]);
    assert!(out.conditions.is_empty(), "{:?}", out.conditions);
    let out = apply(&mut compiler, moved(&["10.9.0.1"], &["10.9.0.2"]), &[]);
    assert_eq!(problems(&out), [WRONG]);
}

#[test]
fn an_endpoint_at_a_virtual_address_alone_takes_no_connections_and_others_do() {
    let mut compiler = compiler();
    let [web, other, _] = parts();
    let lost = of(workload("w", &["10.9.0.2"], &[("web", 80, 1)]));
    let good = of(workload("good", &["10.0.0.2"], &[("web", 80, 1)]));
    let out = apply(&mut compiler, vec![web, other, lost, good], &[]);
    let web = named(&out, "web");
    assert_eq!((web.endpoints.len(), web.serving), (2, 1));
    assert_eq!(problems(&out), [WRONG]);
}

//! Maps that are too small.

use std::time::Duration;

use mesh_api::proto::v1::Protocol;

use super::{Node, problems};
use crate::compile::Dirty;
use crate::compile::tests::{of, service, workload};
use crate::model::{Kind, Resource};
use crate::plan::GRACE;

fn tcp(name: &str, vip: &str) -> Resource {
    of(service(name, &[vip], 80, Protocol::Tcp))
}

/// `count` workloads of a service, with addresses 10.<net>.0.x.
fn workloads(service: &str, net: u8, count: u8) -> Vec<Resource> {
    (1..=count)
        .map(|i| of(workload(&format!("{service}-{i}"), &[&format!("10.{net}.0.{i}")], &[(service, 80, 1)])))
        .collect()
}

#[test]
fn a_table_that_does_not_fit_leaves_its_service_as_it_was_and_the_rest_goes_on() {
    let mut node = Node::small(10, 100, 5);
    let mut all = vec![tcp("a", "240.0.0.1"), tcp("b", "240.0.0.2")];
    all.extend(workloads("a", 1, 2));
    all.extend(workloads("b", 2, 1));
    node.put(all);
    let before = node.entry("240.0.0.1", 80);
    assert_eq!(before.table_len, 2);

    let plan = node.put(workloads("a", 1, 3));
    assert_eq!(
        problems(&plan),
        [
            "Service d/a: virtual address 240.0.0.1 port 80 stays as it was: map ENDPOINTS is full (5 slots): 3 \
          are needed, 2 are free, 0 soon: raise --map-endpoints"
        ]
    );
    assert_eq!(plan.retry_at, None, "only a change helps");
    assert_eq!(node.entry("240.0.0.1", 80), before);

    // The other goes, and its slots serve after they have rested.
    let plan = node.change(vec![], &[(Kind::Service, "d/b")]);
    assert_eq!(plan.retry_at, Some(node.now + GRACE));
    assert_eq!(plan.conditions.len(), 1);
    node.pass(Duration::from_nanos(999_999_999));
    assert_eq!(node.plan(&Dirty::default()).ops, []);
    node.pass(Duration::from_nanos(1));
    let plan = node.plan(&Dirty::default());
    assert_eq!((plan.conditions.len(), plan.retry_at, plan.ops.len()), (0, None, 2));
    assert_eq!(node.entry("240.0.0.1", 80).table_len, 3);
    assert_eq!(node.view.slots.unused(), (0, 2));
}

#[test]
fn fragments_are_named_as_such() {
    let mut node = Node::small(10, 100, 5);
    let mut all: Vec<Resource> = Vec::new();
    for i in 1..=5 {
        all.push(tcp(&format!("s{i}"), &format!("240.0.0.{i}")));
        all.extend(workloads(&format!("s{i}"), i, 1));
    }
    node.put(all);
    node.change(vec![], &[(Kind::Service, "d/s2"), (Kind::Service, "d/s4")]);
    node.pass(GRACE);
    let plan = node.put(workloads("s1", 1, 2));
    assert_eq!(
        problems(&plan),
        ["Service d/s1: virtual address 240.0.0.1 port 80 stays as it was: map ENDPOINTS (5 slots) is \
          fragmented: 2 slots in a row are needed, 2 are free, the longest range has 1: raise --map-endpoints"]
    );
}

#[test]
fn entries_that_do_not_fit_wait_for_others_to_go() {
    let mut node = Node::small(1, 2, 100);
    let plan = node.put(vec![
        tcp("a", "240.0.0.1"),
        tcp("b", "240.0.0.2"),
        of(workload("w1", &["10.0.0.1"], &[("a", 80, 1)])),
        of(workload("w2", &["10.0.0.2"], &[])),
    ]);
    assert_eq!(
        problems(&plan),
        [
            "Service d/b: virtual address 240.0.0.2 port 80 stays as it was: map SERVICES is full (1 entries): \
             raise --map-services",
            "Workload d/w2: address 10.0.0.2 is left out: map WORKLOADS is full (2 entries): raise \
             --map-workloads",
        ]
    );
    let plan = node.change(vec![], &[(Kind::Service, "d/a"), (Kind::Workload, "d/w1")]);
    assert_eq!(plan.retry_at, Some(node.now), "this plan has made room");
    let plan = node.plan(&Dirty::default());
    assert_eq!((plan.conditions.len(), plan.retry_at), (0, None));
    assert_eq!(node.maps.services.len(), 1);
    assert_eq!(node.direct("10.0.0.2", 0).workload, 2);
}

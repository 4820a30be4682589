//! An agent that finds the maps of one before it.

use mesh_api::proto::v1::Protocol;

use super::{Capacities, MapOp, Node, View};
use crate::compile::Dirty;
use crate::compile::tests::{of, service, workload};
use crate::model::Resource;
use crate::plan::{Adopted, GRACE};

fn world() -> Vec<Resource> {
    vec![
        of(service("a", &["240.0.0.1"], 80, Protocol::Http)),
        of(service("b", &["240.0.0.2"], 80, Protocol::Tcp)),
        of(workload("w1", &["10.0.0.1"], &[("a", 80, 1), ("b", 80, 1)])),
        of(workload("w2", &["10.0.0.2"], &[("a", 80, 1)])),
    ]
}

/// The same maps under a new agent that knows nothing yet.
fn restarted() -> Node {
    let mut old = Node::new(Capacities::default());
    old.put(world());
    let mut node = Node::new(Capacities::default());
    let adopted = Adopted {
        services: old.maps.services.clone().into_iter().collect(),
        workloads: old.maps.workloads.clone().into_iter().collect(),
        ..Adopted::default()
    };
    node.view = View::adopt(adopted, Capacities::default());
    (node.maps, node.full) = (old.maps, false);
    node
}

fn is_deletion(op: &MapOp) -> bool {
    matches!(op, MapOp::DelService { .. } | MapOp::DelWorkload { .. })
}

#[test]
fn what_is_known_again_gets_new_tables_and_what_is_the_same_is_left_alone() {
    let mut node = restarted();
    let before = node.entry("240.0.0.1", 80);
    let plan = node.put(world());
    assert!(plan.ops.iter().all(|op| !matches!(op, MapOp::PutWorkload { .. }) && !is_deletion(op)));
    let after = node.entry("240.0.0.1", 80);
    assert!(after.generation > before.generation && after.table >= before.table + before.table_len);
    assert_eq!(node.tables(&after).0.len(), 2);
    assert_eq!(node.view.slots.unused().1, 3, "the slots of both tables rest");
    node.pass(GRACE);
    node.full = true;
    let plan = node.plan(&Dirty::default());
    // The rules are not read: those of services that have none are emptied, whether they are there or not.
    let empty = |op: &MapOp| matches!(op, MapOp::PutRules { rules, .. } if rules.flags == 0);
    assert!(plan.ops.iter().all(empty), "the barrier finds nothing else to do: {plan:?}");
    assert_eq!(node.plan(&Dirty::default()).ops, []);
    assert_eq!(node.view.slots.unused(), (Capacities::default().endpoints - 3, 0));
}

#[test]
fn nothing_shrinks_before_everything_has_come() {
    let mut node = restarted();
    let (a, b) = (node.entry("240.0.0.1", 80), node.entry("240.0.0.2", 80));
    let plan = node.put(world().drain(..1).collect());
    assert_eq!(plan.ops, [MapOp::SetEpoch(1)], "a service without its endpoints yet");
    node.put(world().drain(2..3).collect());
    assert_eq!((node.entry("240.0.0.1", 80), node.entry("240.0.0.2", 80)), (a, b));

    node.full = true;
    let plan = node.plan(&Dirty::default());
    assert_eq!(plan.ops.iter().filter(|op| is_deletion(op)).count(), 4, "b, port 8081 of w1, both of w2");
    assert_eq!((node.maps.services.len(), node.maps.workloads.len()), (1, 2));
    assert_eq!(node.entry("240.0.0.1", 80).table_len, 1);
    let plan = node.put(world());
    assert_eq!(plan.conditions, []);
    assert_eq!((node.maps.services.len(), node.maps.workloads.len()), (2, 5));
}

#[test]
fn a_service_that_goes_before_everything_has_come_goes_with_the_barrier() {
    let mut node = restarted();
    node.put(world());
    let plan = node.change(vec![], &[(crate::model::Kind::Service, "d/b")]);
    assert!(!plan.ops.iter().any(is_deletion));
    node.full = true;
    let plan = node.plan(&Dirty::default());
    assert_eq!(plan.ops.iter().filter(|op| is_deletion(op)).count(), 2);
}

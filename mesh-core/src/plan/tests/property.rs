//! Whatever changes come in whatever order: the maps say what the snapshot says, and no reader is misled.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::proto::v1::Protocol;
use mesh_common::record::{Endpoint, Service, flags};
use proptest::prelude::*;

use super::{Node, Plan};
use crate::compile::tests::{apply, names, of, route, service, tcp_route, workload};
use crate::compile::{Compiler, Dirty, Outcome};
use crate::ids::IdLimits;
use crate::model::{Kind, Resource};
use crate::plan::{GRACE, plan};
use crate::snapshot::{self, Snapshot};

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Service { number: u8, vip: u8, http: bool },
    Workload { number: u8, address: u8, v6: bool, serves: Vec<(u8, u32)> },
    Route { number: u8, parent: u8, backends: Vec<(u8, u32)>, tcp: bool },
    Remove { kind: Kind, number: u8 },
    Pass { ms: u64 },
}

const SERVICES: u8 = 5;
const NAMES: [&str; SERVICES as usize] = ["s0", "s1", "s2", "s3", "s4"];

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![Kind::Service, Kind::Workload, Kind::HttpRoute, Kind::TcpRoute]);
    let serves = prop::collection::vec((0..SERVICES, 0u32..4), 0..4);
    let backends = prop::collection::vec((0..SERVICES, 0u32..4), 0..3);
    prop_oneof![
        3 => (0..SERVICES, 0u8..6, any::<bool>()).prop_map(|(number, vip, http)| Step::Service { number, vip, http }),
        6 => (0u8..8, 0u8..9, any::<bool>(), serves)
            .prop_map(|(number, address, v6, serves)| Step::Workload { number, address, v6, serves }),
        3 => (0u8..3, 0..SERVICES, backends, any::<bool>())
            .prop_map(|(number, parent, backends, tcp)| Step::Route { number, parent, backends, tcp }),
        3 => (kind, 0u8..8).prop_map(|(kind, number)| Step::Remove { kind, number }),
        2 => (0u64..1500).prop_map(|ms| Step::Pass { ms }),
    ]
}

fn name(kind: Kind, number: u8) -> String {
    match kind {
        Kind::Service => format!("s{number}"),
        Kind::Workload => format!("w{number}"),
        _ => format!("r{number}"),
    }
}

fn resource(step: &Step) -> Option<Resource> {
    Some(match step {
        Step::Service { number, vip, http } => {
            let vips = [format!("240.0.0.{vip}"), format!("fd00:a::{vip}")];
            let protocol = if *http { Protocol::Http } else { Protocol::Tcp };
            of(service(&name(Kind::Service, *number), &[&vips[0], &vips[1]], 80, protocol))
        }
        Step::Workload { number, address, v6, serves } => {
            let addresses = [format!("10.0.0.{address}"), format!("fd00:b::{address}")];
            let addresses: Vec<&str> =
                addresses.iter().take(1 + usize::from(*v6)).map(String::as_str).collect();
            let serves: Vec<(&str, u32, u32)> =
                serves.iter().map(|(s, weight)| (NAMES[usize::from(*s)], 80, *weight)).collect();
            of(workload(&name(Kind::Workload, *number), &addresses, &serves))
        }
        Step::Route { number, parent, backends, tcp } => {
            let backends: Vec<(&str, u32, u32)> =
                backends.iter().map(|(s, weight)| (NAMES[usize::from(*s)], 80, *weight)).collect();
            let (name, parent) = (name(Kind::HttpRoute, *number), NAMES[usize::from(*parent)]);
            if *tcp {
                of(tcp_route(&name, parent, &backends))
            } else {
                of(route(&name, parent, &[("/", &backends)]))
            }
        }
        Step::Remove { .. } | Step::Pass { .. } => return None,
    })
}

/// A reader in the kernel that has copied an entry and has not yet read its slots.
struct Reader {
    entry: Service,
    slots: Vec<Endpoint>,
    since: Duration,
}

/// Every range that an entry points to, each once.
fn ranges(entry: &Service) -> Vec<(u32, u32)> {
    let mut ranges = vec![(entry.table, entry.table_len)];
    if (entry.fallback, entry.fallback_len) != ranges[0] {
        ranges.push((entry.fallback, entry.fallback_len));
    }
    ranges.retain(|&(_, len)| len > 0);
    ranges
}

/// What a table of a family should hold: endpoint → share.
fn wanted(weights: &[(&snapshot::Service, f64)], v6: bool) -> BTreeMap<u32, f64> {
    let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
    for (service, weight) in weights {
        let reached: Vec<&snapshot::Endpoint> =
            service.serving().iter().filter(|e| if v6 { e.v6.is_some() } else { e.v4.is_some() }).collect();
        let sum: f64 = reached.iter().map(|e| f64::from(e.weight)).sum();
        for e in reached {
            *shares.entry(e.id).or_default() += weight * f64::from(e.weight) / sum;
        }
    }
    let total: f64 = shares.values().sum();
    for share in shares.values_mut() {
        *share /= total;
    }
    shares
}

fn same(left: &BTreeMap<u32, f64>, right: &BTreeMap<u32, f64>) -> bool {
    let left: Vec<_> = left.iter().filter(|(_, share)| **share > 0.0).collect();
    left.len() == right.len()
        && left.iter().zip(right).all(|((a, p), (b, q))| *a == b && (*p - q).abs() < 1e-6)
}

fn check_entries(node: &Node, snapshot: &Snapshot) {
    for (key, entry) in &node.maps.services {
        let service = &snapshot.services[&entry.service];
        let v6 = mesh_common::addr::to_ip(&key.addr).is_ipv6();
        let (own, bypass) = node.tables(entry);
        let backends: Vec<_> =
            service.fallback.iter().map(|(id, w)| (&*snapshot.services[id], f64::from(*w))).collect();
        let choices = if service.split { &backends } else { &vec![(&**service, 1.0)] };
        assert!(same(&own, &wanted(choices, v6)), "{own:?} for {service:?}");
        let slots = node.maps.read(entry, entry.table, entry.table_len);
        assert!(slots.is_sorted_by_key(|slot| slot.map(|slot| slot.endpoint)), "the kernel searches them");
        assert_eq!(entry.flags & flags::PROXY != 0, service.why.is_some());
        if entry.flags & flags::BYPASS != 0 {
            assert!(same(&bypass, &wanted(&backends, v6)), "{bypass:?} for {service:?}");
        } else if service.why.is_some() {
            let anyone = service.backends.iter().any(|id| !snapshot.services[id].serving().is_empty());
            assert_eq!(!bypass.is_empty(), anyone, "{service:?}");
        }
    }
}

/// Keys in the maps are those that somebody wants, each its first claimant's.
fn check_keys(node: &Node, snapshot: &Snapshot) {
    let mut vips: BTreeMap<_, u32> = BTreeMap::new();
    for service in snapshot.services.values() {
        for vip in &service.vips {
            let first = vips.entry(*vip).or_insert(service.id);
            *first = (*first).min(service.id);
        }
    }
    let held: BTreeMap<_, u32> =
        node.maps.services.iter().map(|(k, v)| (mesh_common::addr::to_ip(&k.addr), v.service)).collect();
    assert_eq!(held, vips);
    let mut places: BTreeMap<_, u32> = BTreeMap::new();
    for workload in snapshot.workloads.values() {
        for ip in &workload.addresses {
            for port in workload.ports.iter().map(|p| p.port).chain([0]) {
                let first = places.entry((*ip, port)).or_insert(workload.id);
                *first = (*first).min(workload.id);
            }
        }
    }
    let held: BTreeMap<_, u32> = node
        .maps
        .workloads
        .iter()
        .map(|(k, v)| ((mesh_common::addr::to_ip(&k.addr), u16::from_be(k.port_be)), v.workload))
        .collect();
    assert_eq!(held, places);
}

/// No slot is in two tables, and every slot is somewhere.
fn check_slots(node: &Node, capacity: u32) {
    let mut taken = vec![false; capacity as usize];
    let mut used = 0;
    for entry in node.maps.services.values() {
        for (first, len) in ranges(entry) {
            for slot in &mut taken[first as usize..(first + len) as usize] {
                assert!(!std::mem::replace(slot, true), "two tables share a slot");
                used += 1;
            }
        }
    }
    let (free, resting) = node.view.slots.unused();
    assert_eq!(used + free + resting, capacity, "slots leak");
}

/// Executes a plan one operation at a time under the eyes of the readers.
fn execute(node: &mut Node, plan: &Plan, readers: &mut Vec<Reader>) {
    for op in &plan.ops {
        node.maps.execute(op);
        for reader in readers.iter() {
            let seen = ranges(&reader.entry)
                .into_iter()
                .flat_map(|(first, len)| node.maps.read(&reader.entry, first, len));
            for (seen, was) in seen.zip(&reader.slots) {
                let recent = node.now < reader.since + GRACE;
                assert!(seen.as_ref() == Some(was) || (seen.is_none() && !recent), "{seen:?} {was:?}");
            }
        }
        // An entry that is there is good from its first moment on.
        for entry in node.maps.services.values() {
            let known = readers.iter_mut().find(|r| r.entry == *entry);
            let slots = ranges(entry).into_iter().flat_map(|(first, len)| node.maps.read(entry, first, len));
            let slots: Vec<Endpoint> =
                slots.map(|slot| slot.expect("slots come before their entry")).collect();
            match known {
                Some(reader) => reader.since = node.now,
                None => readers.push(Reader { entry: *entry, slots, since: node.now }),
            }
        }
    }
}

fn run(steps: &[Step], capacity: u32) -> (Node, bool) {
    let mut node = Node::small(64, 256, capacity);
    let mut readers = Vec::new();
    let mut short = false;
    for step in steps {
        let upserts: Vec<Resource> = resource(step).into_iter().collect();
        let removed = match step {
            Step::Remove { kind, number } => Some((*kind, format!("d/{}", name(*kind, *number)))),
            _ => None,
        };
        if let Step::Pass { ms } = step {
            node.pass(Duration::from_millis(*ms));
        }
        let removes: Vec<(Kind, &str)> = removed.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
        let dirty = apply(&mut node.compiler, upserts, &removes).dirty;
        let snapshot = node.compiler.snapshot();
        let plan = plan(&mut node.view, &snapshot, &dirty, &node.locals, true, node.now);
        execute(&mut node, &plan, &mut readers);
        check_slots(&node, capacity);
        let waiting = plan.conditions.iter().any(|c| c.problem.contains(mesh_common::maps::ENDPOINTS.name));
        short |= waiting;
        if !waiting {
            check_entries(&node, &snapshot);
            check_keys(&node, &snapshot);
        }
    }
    (node, short)
}

/// The resources of a compiler, all at once in another order, under the same numbers.
fn from_scratch(node: &Node) -> Outcome {
    let model = node.compiler.model();
    let all = |kind| {
        let names = names(model).into_iter().filter(move |(k, _)| *k == kind);
        names.map(move |(_, name)| model.resources().get(kind, &name).unwrap())
    };
    let mut upserts: Vec<Resource> = Vec::new();
    upserts.extend(all(Kind::HttpRoute));
    upserts.extend(all(Kind::TcpRoute));
    upserts.extend(all(Kind::Workload));
    upserts.extend(all(Kind::Service));
    let mut compiler = Compiler::new("n1", node.compiler.ids().clone(), IdLimits::default());
    apply(&mut compiler, upserts, &[])
}

proptest! {
    #[test]
    fn the_maps_say_what_the_snapshot_says(steps in prop::collection::vec(step(), 1..40)) {
        let (mut node, short) = run(&steps, 4096);
        prop_assert!(!short);
        // Step by step or all at once: the same.
        let (stepwise, at_once) = (apply(&mut node.compiler, vec![], &[]), from_scratch(&node));
        prop_assert_eq!(&stepwise.snapshot.services, &at_once.snapshot.services);
        prop_assert_eq!(&stepwise.snapshot.workloads, &at_once.snapshot.workloads);
        prop_assert_eq!(stepwise.conditions, at_once.conditions);
        // A second look finds nothing to do; and everything goes.
        let snapshot = node.compiler.snapshot();
        prop_assert_eq!(node.plan(&Dirty::all(&snapshot)).ops, []);
        let all = names(node.compiler.model());
        let all: Vec<(Kind, &str)> = all.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
        let plan = node.change(vec![], &all);
        prop_assert_eq!(plan.conditions, []);
        prop_assert!(node.maps.services.is_empty() && node.maps.workloads.is_empty());
        node.pass(GRACE);
        node.plan(&Dirty::default());
        prop_assert_eq!(node.view.slots.unused(), (4096, 0));
    }

    #[test]
    fn too_few_slots_mislead_nobody_and_suffice_again_later(steps in prop::collection::vec(step(), 1..60)) {
        let (mut node, _) = run(&steps, 24);
        // Fewer services, and time: what waited comes by itself.
        let some: Vec<(Kind, String)> = (2..SERVICES).map(|i| (Kind::Service, format!("d/s{i}"))).collect();
        let some: Vec<(Kind, &str)> = some.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
        node.change(vec![], &some);
        for _ in 0..4 {
            node.pass(GRACE);
            node.plan(&Dirty::default());
        }
        let snapshot = node.compiler.snapshot();
        let plan = node.plan(&Dirty::default());
        check_slots(&node, 24);
        if plan.conditions.iter().all(|c| !c.problem.contains(mesh_common::maps::ENDPOINTS.name)) {
            check_entries(&node, &snapshot);
        }
    }
}

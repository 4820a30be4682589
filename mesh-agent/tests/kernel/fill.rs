//! How full the maps are is counted exactly, however many entries they hold.

use std::net::Ipv4Addr;

use mesh_common::addr::from_ip;
use mesh_common::maps;
use mesh_common::record::{PROTO_TCP, Service, ServiceKey, Workload, WorkloadKey};
use mesh_core::plan::MapOp;

use crate::place::Place;

#[test]
fn each_entry_is_counted_once() {
    const ENTRIES: u32 = 3_000;
    let place = Place::new();
    let kernel = place.kernel();
    let put = |number: u32| {
        let key = ServiceKey {
            addr: from_ip(Ipv4Addr::from(0xf0f0_0000 + number).into()),
            scope: 0,
            port_be: 80u16.to_be(),
            proto: PROTO_TCP,
            network: 0,
        };
        // Every two share a table of three slots.
        let value = Service {
            service: number,
            generation: 1,
            table: number / 2 * 3,
            table_len: 3,
            fallback: 0,
            fallback_len: 0,
            flags: 0,
            protocol: 0,
        };
        MapOp::PutService { key, value }
    };
    let fill = |map: &str| {
        let all = kernel.fill();
        assert_eq!(all.len(), maps::ALL.len(), "a map cannot be looked at: {all:?}");
        all.into_iter().find(|fill| fill.map == map).and_then(|fill| fill.entries)
    };
    assert_eq!(fill(maps::SERVICES.name), Some(0));
    kernel.apply(&(0..ENTRIES).map(put).collect::<Vec<_>>()).unwrap();
    assert_eq!(fill(maps::SERVICES.name), Some(u64::from(ENTRIES)));
    assert_eq!(fill(maps::ENDPOINTS.name), Some(u64::from(ENTRIES) / 2 * 3));
    // The place that is kept for what finds no room.
    assert_eq!(fill(maps::FLOW_TOTALS.name), Some(1));
    assert_eq!(fill(maps::FLOW_EVENTS.name), Some(0));
}

#[test]
fn many_workloads_are_written_at_once_and_what_has_no_room_is_named() {
    // More than go with one call, and an entry of another kind in between.
    const ENTRIES: u32 = 2_500;
    let place = Place::new();
    let kernel = place.sized(vec![(maps::WORKLOADS.name, ENTRIES)]);
    let put = |number: u32, workload: u32| {
        let addr = from_ip(Ipv4Addr::from(0x0a00_0000 + number).into());
        let key = WorkloadKey { addr, port_be: 0, proto: PROTO_TCP, network: 0 };
        let value = Workload {
            workload,
            identity: 1,
            policy_set: 0,
            endpoint: 0,
            service: 0,
            flags: 0,
            inbound_slot: 0,
            heartbeat_slot: 0,
            protocol: 0,
        };
        MapOp::PutWorkload { key, value }
    };
    let held = || {
        let mut held: Vec<u32> = kernel.held().unwrap().workloads.iter().map(|(_, w)| w.workload).collect();
        held.sort_unstable();
        held
    };
    let mut ops: Vec<MapOp> = (1..=ENTRIES).map(|number| put(number, number)).collect();
    ops.insert(1_500, MapOp::SetEpoch(1));
    kernel.apply(&ops).unwrap();
    assert!(held().into_iter().eq(1..=ENTRIES));

    let again: Vec<MapOp> = (1..=ENTRIES).map(|number| put(number, number + 10_000)).collect();
    kernel.apply(&again).unwrap();
    assert!(held().into_iter().eq(10_001..=10_000 + ENTRIES), "replaced");

    let too_many: Vec<MapOp> = (ENTRIES - 5..=ENTRIES + 5).map(|number| put(number, number)).collect();
    let error = kernel.apply(&too_many).unwrap_err();
    assert!(error.full && error.map == maps::WORKLOADS.name, "{error}");
    let first = held();
    assert_eq!(first[..6], [2_495, 2_496, 2_497, 2_498, 2_499, 2_500], "what came before holds");
}

//! How full the maps are is counted exactly, however many entries they hold.

use std::net::Ipv4Addr;

use mesh_common::addr::from_ip;
use mesh_common::maps;
use mesh_common::record::{PROTO_TCP, Service, ServiceKey};
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

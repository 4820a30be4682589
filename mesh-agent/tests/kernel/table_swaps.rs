//! A million tables are swapped under readers, and no connection reaches a foreign service.
//!
//! Two services take turns in the same ring of slots: the range that one leaves is soon the other's. A
//! reader that holds an old entry must see by the generation that the slots are no longer its own. Ranges
//! come back here after one round of the ring, a fraction of the planner's grace period: a program may be held
//! for longer than that between reading a slot and going there, and then refuses rather than lead astray.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_agent::sys::{in_netns, netns_cookie};
use mesh_common::addr::from_ip;
use mesh_common::maps;
use mesh_common::record::{Endpoint, PROTO_TCP, Service, ServiceKey};
use mesh_common::verdict::Verdict;
use mesh_core::plan::MapOp;

use crate::place::{OWN, Place, enrol};

const SWAPS: u32 = 1_000_000;
const SLOTS: u32 = 3;
const VIPS: [&str; 2] = ["240.9.0.1", "240.9.0.2"];

/// The operations of one swap: a new range for a service, then the entry that points to it.
fn swap(which: usize, generation: u32, first: u32, port: u16) -> [MapOp; 2] {
    let service = which as u32 + 1;
    let slot = Endpoint {
        addr: from_ip(OWN.parse().unwrap()),
        service,
        generation,
        endpoint: service,
        workload: 2,
        flags: 0,
        threshold: u32::MAX / 2,
        alias: (generation + 1) % SLOTS,
        port_be: port.to_be(),
        pad: 0,
        policy_set: 0,
        weight: 1,
        reserved: [0; 2],
    };
    let key = ServiceKey {
        addr: from_ip(VIPS[which].parse().unwrap()),
        scope: 0,
        port_be: 80u16.to_be(),
        proto: PROTO_TCP,
        network: 0,
    };
    let value = Service {
        service,
        generation,
        table: first,
        table_len: SLOTS,
        fallback: 0,
        fallback_len: 0,
        flags: 0,
        protocol: 0,
    };
    [MapOp::PutSlots { first, slots: vec![slot; SLOTS as usize] }, MapOp::PutService { key, value }]
}

/// Says its name to whoever connects, until it is told to stop.
fn serve(listener: &TcpListener, name: u8, stop: &AtomicBool) {
    while let Ok((mut stream, _)) = listener.accept() {
        // The client leaves with a reset as soon as it has read: nothing stays in TIME_WAIT.
        let _ = stream.write_all(&[name]);
        let _ = stream.read(&mut [0]);
        if stop.load(Relaxed) {
            return;
        }
    }
}

/// What a server behind a virtual address calls itself.
fn ask(vip: &str) -> io::Result<u8> {
    let mut stream = TcpStream::connect(SocketAddr::new(vip.parse().unwrap(), 80))?;
    let mut name = [0];
    stream.read_exact(&mut name)?;
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(name[0])
}

#[test]
fn a_million_swaps_under_readers_lead_nobody_astray() {
    let place = Place::new();
    let kernel = place.kernel();
    let ns = place.netns();
    let listeners: [TcpListener; 2] = std::array::from_fn(|_| {
        in_netns(ns.as_fd(), || TcpListener::bind((OWN, 0))).expect("listen in the namespace")
    });
    let ports: [u16; 2] = std::array::from_fn(|i| listeners[i].local_addr().unwrap().port());
    enrol(&kernel, netns_cookie(listeners[0].as_fd()).unwrap());
    for (which, port) in ports.into_iter().enumerate() {
        kernel.apply(&swap(which, 1, which as u32 * SLOTS, port)).unwrap();
    }

    let (stop, served) = (AtomicBool::new(false), AtomicBool::new(false));
    let (asked, astray) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = parking_lot::Mutex::new(Vec::new());
    let read = |name: u8| {
        in_netns(ns.as_fd(), || {
            while !stop.load(Relaxed) {
                match ask(VIPS[usize::from(name)]) {
                    Ok(answer) if answer == name => {}
                    Ok(_) => drop(astray.fetch_add(1, Relaxed)),
                    Err(error) => failed.lock().push(error.to_string()),
                }
                asked.fetch_add(1, Relaxed);
            }
            Ok(())
        })
    };
    let took = std::thread::scope(|servers| {
        for (listener, name) in listeners.iter().zip([0u8, 1]) {
            let served = &served;
            servers.spawn(move || serve(listener, name, served));
        }
        let took = std::thread::scope(|readers| {
            let read = &read;
            let both = [0, 1].map(|name| readers.spawn(move || read(name)));
            let begun = Instant::now();
            let ring = kernel.capacity(maps::ENDPOINTS) / SLOTS;
            for n in 2..SWAPS + 2 {
                let which = n as usize % 2;
                kernel.apply(&swap(which, n, n % ring * SLOTS, ports[which])).unwrap();
            }
            let took = begun.elapsed();
            stop.store(true, Relaxed);
            for reader in both {
                reader.join().unwrap().unwrap();
            }
            took
        });
        // The servers wait in accept(), each for one more.
        served.store(true, Relaxed);
        for listener in &listeners {
            let at = listener.local_addr().unwrap();
            in_netns(ns.as_fd(), || TcpStream::connect(at).map(drop)).unwrap();
        }
        took
    });
    let verdicts = kernel.verdicts().unwrap();
    let changed = verdicts[Verdict::TableChanged as usize];
    let asked = asked.into_inner();
    println!(
        "{SWAPS} swaps in {took:?} under {asked} connections; {changed} refused because a table changed"
    );
    assert_eq!(astray.into_inner(), 0, "connections that reached a foreign service");
    assert_eq!(
        failed.lock().len() as u64,
        changed,
        "failed: {:?}",
        &failed.lock()[..failed.lock().len().min(5)]
    );
    assert!(changed * 1_000 <= asked, "{changed} of {asked} were refused");
    assert!(asked > 1_000, "only {asked} connections were made: nothing was tested");
    assert!(verdicts[Verdict::Balanced as usize] >= asked, "{verdicts:?}");
}

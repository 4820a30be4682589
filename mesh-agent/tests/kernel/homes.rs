//! What stands in front of a hash never says anything else than the hash: neither right after a change, nor when
//! keys have moved in, nor where two share a home, nor for an agent that takes over.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mesh_agent::kernel::Kernel;
use mesh_agent::sys::{in_netns, netns_cookie};
use mesh_common::addr::from_ip;
use mesh_common::homes::Lodger;
use mesh_common::maps;
use mesh_common::record::{Endpoint, EnrolledKey, KIND_NETNS, PROTO_TCP, Service, ServiceKey};
use mesh_core::plan::MapOp;

use crate::place::{OWN, Place, enrol};

fn key(number: u32) -> ServiceKey {
    let addr = from_ip(Ipv4Addr::from(0xf0f0_0000 + number).into());
    ServiceKey { addr, scope: 0, port_be: 80u16.to_be(), proto: PROTO_TCP, network: 0 }
}

/// A service whose only endpoint is `port` of the workload.
fn put(number: u32, generation: u32, port: u16) -> [MapOp; 2] {
    let (first, service) = (generation, number);
    let slot = Endpoint {
        addr: from_ip(OWN.parse().unwrap()),
        service,
        generation,
        endpoint: 1,
        workload: 2,
        flags: 0,
        threshold: u32::MAX,
        alias: 0,
        port_be: port.to_be(),
        pad: 0,
        policy_set: 0,
        weight: 1,
        reserved: [0; 2],
    };
    let (fallback, fallback_len) = (0, 0);
    let value = Service {
        service,
        generation,
        table: first,
        table_len: 1,
        fallback,
        fallback_len,
        flags: 0,
        protocol: 0,
    };
    [MapOp::PutSlots { first, slots: vec![slot] }, MapOp::PutService { key: key(number), value }]
}

/// Lets keys move in until `map` holds `wanted`.
fn at_home(kernel: &Kernel, map: &str, wanted: u64) {
    let begin = Instant::now();
    loop {
        kernel.move_in();
        let seen = kernel.fill().into_iter().find(|fill| fill.map == map).and_then(|fill| fill.entries);
        if seen == Some(wanted) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{map} holds {seen:?}, not {wanted}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn homes_say_what_the_hash_says() {
    let place = Place::new();
    let kernel = place.kernel();
    let ns = place.netns();
    let listeners = [(); 2]
        .map(|()| in_netns(ns.as_fd(), || TcpListener::bind((OWN, 0))).expect("listen in the namespace"));
    let [one, other] = [&listeners[0], &listeners[1]].map(|l| l.local_addr().unwrap().port());
    let cookie = netns_cookie(listeners[0].as_fd()).unwrap();
    // The port that a connection to the service's address arrives at.
    let arrives = |number: u32| -> io::Result<u16> {
        let vip = IpAddr::from(Ipv4Addr::from(0xf0f0_0000 + number));
        let mut stream = in_netns(ns.as_fd(), || {
            TcpStream::connect_timeout(&SocketAddr::new(vip, 80), Duration::from_millis(200))
        })?;
        stream.write_all(b"?")?;
        let came = |listener: &&TcpListener| {
            listener.set_nonblocking(true).unwrap();
            listener.accept().is_ok()
        };
        let listener = listeners.iter().find(came).expect("an accepted connection");
        Ok(listener.local_addr().unwrap().port())
    };
    let neighbour = (2..100_000).find(|number| key(*number).home() == key(1).home()).unwrap();

    enrol(&kernel, cookie);
    kernel.apply(&put(1, 1, one)).unwrap();
    assert_eq!(arrives(1).unwrap(), one, "through the hash");
    at_home(&kernel, maps::SERVICE_HOMES.name, 1);
    at_home(&kernel, maps::ENROLLED_HOMES.name, 1);
    assert_eq!(arrives(1).unwrap(), one, "at home");
    assert!(arrives(neighbour).is_err(), "not enrolled at all");

    kernel.apply(&put(1, 2, other)).unwrap();
    assert_eq!(arrives(1).unwrap(), other, "changed");
    at_home(&kernel, maps::SERVICE_HOMES.name, 1);
    assert_eq!(arrives(1).unwrap(), other, "changed, and at home again");

    kernel.apply(&put(neighbour, 3, one)).unwrap();
    assert_eq!((arrives(1).unwrap(), arrives(neighbour).unwrap()), (other, one), "two in one home");
    drop(kernel);
    let kernel = place.kernel();
    assert_eq!((arrives(1).unwrap(), arrives(neighbour).unwrap()), (other, one), "under another agent");
    at_home(&kernel, maps::ENROLLED_HOMES.name, 1);

    kernel.apply(&[MapOp::DelService { key: key(1) }]).unwrap();
    assert!(arrives(1).is_err(), "removed");
    assert_eq!(arrives(neighbour).unwrap(), one);
    at_home(&kernel, maps::SERVICE_HOMES.name, 1);
    assert!(arrives(1).is_err(), "removed, and the other one at home");
    assert_eq!(arrives(neighbour).unwrap(), one);

    kernel.unenrol(EnrolledKey { kind: KIND_NETNS, id: cookie }).unwrap();
    assert!(arrives(neighbour).is_err(), "no workload of the mesh any more");
    at_home(&kernel, maps::ENROLLED_HOMES.name, 0);
    assert!(arrives(neighbour).is_err());
}

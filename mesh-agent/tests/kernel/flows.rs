//! What the programs know of connections: nothing is left when they end, wherever it lived.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use mesh_agent::kernel::Kernel;
use mesh_agent::sys::{in_netns, netns_cookie};
use mesh_common::addr::from_ip;
use mesh_common::flows;
use mesh_common::maps::FLOWS;
use mesh_common::record::{Endpoint, PROTO_TCP, Service, ServiceKey};
use mesh_common::verdict::Verdict;
use mesh_core::plan::MapOp;
use rustix::net::sockopt::{set_socket_linger, socket_cookie};

use crate::place::{OWN, Place, enrol};

const VIP: &str = "240.9.0.1";
const ENDPOINT: u32 = 7;

/// A service of one endpoint.
fn lead(kernel: &Kernel, vip: &str, to: SocketAddr) {
    let slot = Endpoint {
        addr: from_ip(to.ip()),
        service: 1,
        generation: 1,
        endpoint: ENDPOINT,
        workload: 2,
        flags: 0,
        threshold: u32::MAX,
        alias: 0,
        port_be: to.port().to_be(),
        pad: 0,
        policy_set: 0,
        weight: 1,
        reserved: [0; 2],
    };
    let key = ServiceKey {
        addr: from_ip(vip.parse().unwrap()),
        scope: 0,
        port_be: 80u16.to_be(),
        proto: PROTO_TCP,
        network: 0,
    };
    let value = Service {
        service: 1,
        generation: 1,
        table: 0,
        table_len: 1,
        fallback: 0,
        fallback_len: 0,
        flags: 0,
        protocol: 0,
    };
    kernel
        .apply(&[MapOp::PutSlots { first: 0, slots: vec![slot] }, MapOp::PutService { key, value }])
        .unwrap();
}

fn vip() -> SocketAddr {
    SocketAddr::new(VIP.parse().unwrap(), 80)
}

/// Connects, on one CPU: cookies are given out by it in sequence.
fn connect() -> TcpStream {
    let stream = TcpStream::connect(vip()).unwrap();
    set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
    stream
}

/// Uses cookies up until the next ones share their homes with those that `first` began.
fn come_round(first: u64) {
    let wanted = flows::home(first);
    loop {
        let socket = std::net::UdpSocket::bind((OWN, 0)).unwrap();
        if flows::home(socket_cookie(&socket).unwrap() + 1) == wanted {
            return;
        }
    }
}

/// What each connection carries is read from its socket, wherever its flow lives.
fn open_flows_carry(kernel: &Kernel, held: &mut [TcpStream], listener: &TcpListener) -> std::io::Result<()> {
    let mut wanted = Vec::new();
    for (number, stream) in held.iter_mut().enumerate() {
        // Ends of connections that are no longer held stand in the queue as well.
        let mut server = loop {
            let (server, peer) = listener.accept()?;
            if peer == stream.local_addr()? {
                break server;
            }
        };
        stream.write_all(&vec![1; number + 1])?;
        server.read_exact(&mut vec![0; number + 1])?;
        wanted.push((socket_cookie(&*stream)?, number as u64 + 1));
        // Kept open: the client's end is what is looked at.
        std::mem::forget(server);
    }
    let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
    kernel.attach_inbound(1, namespace.as_fd()).unwrap();
    let open = kernel.open_flows().unwrap();
    let mut seen: Vec<_> = open.iter().map(|flow| (flow.cookie, flow.standing.sent)).collect();
    seen.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(seen, wanted);
    assert!(open.iter().all(|flow| kernel.still_open(flow)));
    kernel.detach_inbound(1).unwrap();
    // Without its namespace a flow is known, and what it carries is not.
    assert_eq!(kernel.open_flows().unwrap().iter().map(|flow| flow.standing.sent).sum::<u64>(), 0);
    Ok(())
}

#[test]
fn flows_whose_homes_are_taken_live_abroad_and_leave_nothing() {
    const HELD: usize = 40;
    const TRIES: u32 = 2;
    let place = Place::new();
    let kernel = place.kernel();
    let ns = place.netns();
    in_netns(ns.as_fd(), || {
        let mut one = rustix::thread::CpuSet::new();
        one.set(0);
        rustix::thread::sched_setaffinity(None, &one)?;
        let listener = TcpListener::bind((OWN, 0))?;
        enrol(&kernel, netns_cookie(listener.as_fd())?);
        lead(&kernel, VIP, listener.local_addr()?);

        let mut held = vec![connect()];
        let first = socket_cookie(&held[0])?;
        held.extend((1..HELD).map(|_| connect()));
        // Others on this CPU take cookies too: now and then the second half misses the first one's homes. The
        // listener's queue has room for three times those held.
        for _ in 0..TRIES {
            held.truncate(HELD);
            come_round(first);
            held.extend((0..HELD).map(|_| connect()));
            if kernel.flows().abroad > HELD as u32 / 2 {
                break;
            }
        }

        let known = kernel.flows();
        assert_eq!(known.home + known.abroad, 2 * HELD as u32, "{known:?}");
        assert!(known.abroad > HELD as u32 / 2, "only {known:?}: the homes were not taken");
        assert_eq!(kernel.load_of(ENDPOINT).live, 2 * HELD as u64);
        for stream in &held {
            assert_eq!(stream.peer_addr()?, vip(), "shown by getpeername()");
        }
        open_flows_carry(&kernel, &mut held, &listener)?;
        // Those at home leave first, then those abroad, then one of each by turns.
        held.drain(..HELD / 2);
        held.drain(held.len() - HELD / 2..);
        let known = kernel.flows();
        assert_eq!(known.home + known.abroad, HELD as u32, "{known:?}");
        while !held.is_empty() {
            held.swap_remove(held.len() / 2);
        }
        let known = kernel.flows();
        assert_eq!((known.home, known.abroad), (0, 0), "left: {known:?} of {} homes", FLOWS.capacity);
        assert_eq!(kernel.load_of(ENDPOINT).live, 0);
        assert_eq!(kernel.verdicts().unwrap()[Verdict::RecordFull as usize], 0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_connect_that_never_left_leaves_nothing() {
    let place = Place::new();
    let kernel = place.kernel();
    let ns = place.netns();
    in_netns(ns.as_fd(), || {
        let listener = TcpListener::bind((OWN, 0))?;
        enrol(&kernel, netns_cookie(listener.as_fd())?);
        // The namespace has no route there.
        lead(&kernel, VIP, "203.0.113.1:80".parse().unwrap());
        for _ in 0..100 {
            let error = TcpStream::connect(vip()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
        }
        let known = kernel.flows();
        assert_eq!((known.home, known.abroad), (0, 0), "left: {known:?}");
        assert_eq!(kernel.load_of(ENDPOINT).live, 0);
        assert_eq!(kernel.verdicts().unwrap()[Verdict::Balanced as usize], 100);
        Ok(())
    })
    .unwrap();
}

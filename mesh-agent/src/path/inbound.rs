//! Where an inbound connection goes: to the workload that it came to, as opaque bytes or request by request.
//!
//! sk_lookup ──▶ accept ──▶ intercept ──▶ **inbound** ──Way──▶ http1, tcp ◀──Way── **inbound** ◀── tunnels
//!
//! The accepted socket's own address is where the client wanted to go, and its peer is the real client. Where policies
//! look at requests a port is one of HTTP, whatever it says of itself, but for callers who may send what they like.
//!
//! Invariant: a connection that the kernel has handed over because requests decide goes nowhere before the snapshot
//! says the same.

use std::net::SocketAddr;
use std::rc::Rc;

use mesh_api::proto::v1::Protocol;
use mesh_core::snapshot::{Snapshot, Workload};

use super::authorise::{Whose, sends_anything};
use super::intercept::{Found, Hop, To, Way, plain};
use super::member::Member;
use super::sockets::Sockets;
use super::stats::Spoken;
use super::transport::Stream;
use super::worker::Worker;

/// Client and destination of an accepted connection.
pub fn ends(stream: &Stream) -> Option<(SocketAddr, SocketAddr)> {
    Some((plain(stream.peer().ok()?), plain(stream.local().ok()?)))
}

/// An inbound connection on which HTTP is spoken, as long as it lives: a change of policies asks about its next request
/// and does not end it.
pub struct Noted {
    worker: Rc<Worker>,
    ends: (SocketAddr, SocketAddr),
}

impl Noted {
    /// Notes one.
    pub fn new(worker: &Rc<Worker>, ends: (SocketAddr, SocketAddr)) -> Self {
        worker.shared.inbound.add(ends.0, ends.1);
        Self { worker: worker.clone(), ends }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.worker.shared.inbound.remove(self.ends.0, self.ends.1);
    }
}

/// What the snapshot says of an inbound connection.
pub fn way(worker: &Worker, member: &Member, whose: &Whose) -> Found {
    let Whose::Other(other) = whose else { return Found::Nothing };
    let (client, wanted) = other.ends();
    if !member.is_at(wanted.ip()) {
        return Found::Nothing;
    }
    worker.with_snapshot(|snapshot| {
        let Some(called) = snapshot.workloads.get(&member.workload) else { return Found::Behind };
        if called.looks_at(wanted.port()).is_none() && worker.sockets.assigns(wanted) {
            return Found::Behind;
        }
        match way_in(called, wanted, client) {
            Some(way) => Found::Way(judged(snapshot, &*worker.sockets, called, whose, way)),
            None => Found::Nothing,
        }
    })
}

/// Where requests decide, who may not send everything is asked about each.
fn judged(snapshot: &Snapshot, sockets: &dyn Sockets, called: &Workload, whose: &Whose, way: Way) -> Way {
    let To::Hop(hop) = way.to else { return way };
    let tcp = way.spoken == Spoken::Tcp;
    if tcp && !sends_anything(snapshot, sockets, called, whose, hop.address.port()) {
        return Way { spoken: Spoken::Http1, ..way };
    }
    way
}

/// Where an inbound connection goes: to the workload's own address, showing its client. `None`: to a port
/// that serves nothing, such as the listener's own, which somebody has dialled. Carried on, that connection
/// would arrive here again, and again: so would one from the workload itself.
fn way_in(workload: &Workload, wanted: SocketAddr, client: SocketAddr) -> Option<Way> {
    let port = workload.ports.iter().find(|p| p.port == wanted.port() && !p.udp());
    if port.is_none() {
        let own = client.ip().is_loopback() || workload.addresses.contains(&client.ip());
        workload.looks_at(wanted.port()).filter(|_| !own)?;
    }
    let http = port.is_some_and(|port| port.protocol == Protocol::Http);
    Some(Way {
        to: To::Hop(Hop {
            service: port.map_or(0, |port| port.service),
            // The caller's leg is counted on the endpoint already where the caller is of this node.
            endpoint: 0,
            local: true,
            address: wanted,
            show: Some(client),
            // The kernel has asked before it handed the connection over.
            policed: 0,
            tunnel: 0,
        }),
        spoken: if http { Spoken::Http1 } else { Spoken::Tcp },
        prefer_v6: wanted.is_ipv6(),
        unknown: None,
    })
}

/// Where a connection goes that came through a tunnel for this address of the workload: as if it had come there, but
/// to every port that it has, and through the HTTP path only where inbound connections are meant to.
pub fn way_to_own(
    snapshot: &Snapshot,
    sockets: &dyn Sockets,
    workload: u32,
    whose: &Whose,
    (wanted, client): (SocketAddr, SocketAddr),
) -> (Hop, Spoken) {
    let show = Some(client);
    let bare = Hop { service: 0, endpoint: 0, local: true, address: wanted, show, policed: 0, tunnel: 0 };
    let Some(called) = snapshot.workloads.get(&workload) else { return (bare, Spoken::Tcp) };
    let proxied = called.looks_at(wanted.port()).is_some()
        || called.ports.iter().any(|p| p.port == wanted.port() && !p.udp() && p.inbound_proxy);
    let way = way_in(called, wanted, client).unwrap_or(Way {
        to: To::Hop(bare),
        spoken: Spoken::Tcp,
        prefer_v6: wanted.is_ipv6(),
        unknown: None,
    });
    let way = judged(snapshot, sockets, called, whose, way);
    match way.to {
        To::Hop(hop) => (hop, if proxied { way.spoken } else { Spoken::Tcp }),
        To::Service(_) => (bare, Spoken::Tcp),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rig::workload;
    use super::*;
    use mesh_core::authorise::{Action, Policy, PolicySet, Rule, Target};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::sync::Arc;

    const A: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);
    const B: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8002);

    #[test]
    fn an_inbound_connection_goes_where_it_was_going_and_shows_its_client() {
        let client = SocketAddr::new(Ipv6Addr::from(77).into(), 5000);
        let mut called = workload(7, A, Protocol::Tcp);
        // A port that serves nothing, as the listener's own: carried on it would come back for ever.
        assert!(way_in(&called, B, client).is_none());
        let way = way_in(&called, A, client).expect("a port that serves");
        let To::Hop(hop) = way.to else { panic!("{way:?}") };
        assert_eq!((hop.address, hop.show, hop.local, way.spoken), (A, Some(client), true, Spoken::Tcp));
        // Where policies look at what comes there, it is carried on, but for what comes from the workload itself.
        let target = Target { methods: ["GET".into()].into(), ..Target::default() };
        let rules = [Rule { to: [target].into(), ..Rule::default() }].into();
        let policy = Policy { name: "d/p".into(), action: Action::Allow, rules };
        called.looks = Some(Arc::new(PolicySet::new([Arc::new(policy)].into())));
        assert!(way_in(&called, B, client).is_some());
        assert!(way_in(&called, B, A).is_none());
    }
}

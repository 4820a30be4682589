//! First step of the path: an accepted connection becomes a [`Session`]: who calls, where to, what is spoken.
//!
//! accept ──socket──▶ **intercept** ──Session──▶ http1, tcp
//!
//! Outbound, the kernel's capture record says where the application wanted to go. A virtual address of a
//! service means the service: its routes and its balancing. Any other address (headless, a workload's own)
//! means that one endpoint. Inbound connections: [`super::inbound`].
//!
//! Invariant: a connection whose destination is not known is reset, never guessed.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::proto::v1::Protocol;
use mesh_api::spiffe::SpiffeId;
use mesh_common::addr;
use mesh_common::record::{Capture, captured, role};
use mesh_core::balance::pick_other;
use mesh_core::error::ProxyError;
use mesh_core::snapshot::{Endpoint, Service, Snapshot, Workload};

use super::accept::Job;
use super::account::Account;
use super::authorise::{Other, Whose, opaque};
use super::clock::Watched;
use super::hbone::client::Via;
use super::inbound::Noted;
use super::judged::Judged;
use super::link::Link;
use super::member::{Admitted, Held, Member};
use super::pool::is_plain;
use super::stats::{Direction, Spoken, one};
use super::transport::{self, Stream, Target};
use super::worker::Worker;
use super::{detect, hbone, http1, http2, inbound, tcp, tls};
use crate::dns;

/// One place that a connection can be opened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Service that it serves; 0: none.
    pub service: u32,
    /// Endpoint; 0: none.
    pub endpoint: u32,
    /// Its workload lives on this node.
    pub local: bool,
    /// Where.
    pub address: SocketAddr,
    /// The client that the application is to see.
    pub show: Option<SocketAddr>,
    /// Its workload, where that lives here: it may have policies, or get some while the hop lasts; 0: nobody is asked.
    pub policed: u32,
    /// The workload of another node to which the way is a tunnel; 0: the way is plain.
    pub tunnel: u32,
}

impl Hop {
    /// The way to an endpoint of a service.
    pub fn to(service: u32, endpoint: &Endpoint, prefer_v6: bool) -> Option<Self> {
        let address = endpoint.address(prefer_v6)?;
        let policed = if endpoint.local { endpoint.workload } else { 0 };
        let tunnel = if endpoint.tunnel { endpoint.workload } else { 0 };
        Some(Self {
            service,
            endpoint: endpoint.id,
            local: endpoint.local,
            address,
            show: None,
            policed,
            tunnel,
        })
    }

    /// The way to an address of a workload where it serves no service; `None`: it has another address by now.
    fn to_workload(workload: &Workload, address: SocketAddr) -> Option<Self> {
        workload.addresses.contains(&address.ip()).then(|| Self {
            service: 0,
            endpoint: 0,
            local: workload.local,
            address,
            show: None,
            policed: if workload.local { workload.id } else { 0 },
            tunnel: if workload.tunnels(address.port()) { workload.id } else { 0 },
        })
    }

    /// As a target of `source`.
    pub fn target(&self, worker: &Worker, source: &Arc<Member>) -> Result<Target, ProxyError> {
        let (via, origination) = worker.with_snapshot(|snapshot| {
            let via = self.via(snapshot, source.workload);
            via.map(|via| (via, snapshot.originations.get(&self.service).cloned()))
        })?;
        Ok(Target {
            source: source.clone(),
            address: self.address,
            service: self.service,
            endpoint: self.endpoint,
            local: self.local,
            show: self.show,
            within: worker.limits.connect,
            via,
            origination,
        })
    }

    /// The tunnel on the way, if there is one. Where its workload has left there is no other way: plainly, whoever
    /// has its address now would be believed.
    fn via(&self, snapshot: &Snapshot, source: u32) -> Result<Option<Via>, ProxyError> {
        if self.tunnel == 0 {
            return Ok(None);
        }
        if is_plain(snapshot, source) {
            return Ok(None);
        }
        let workload = snapshot.workloads.get(&self.tunnel).ok_or(ProxyError::NoEndpoints)?;
        let expected = SpiffeId::new(&snapshot.trust_domain, workload.namespace(), &workload.service_account);
        Ok(Some(Via {
            address: SocketAddr::new(self.address.ip(), mesh_core::hbone::PORT),
            authority: self.address,
            expected: [expected.map_err(|_| ProxyError::TlsWrongIdentity)?].into(),
            workload: workload.full_name.clone(),
        }))
    }
}

/// Where a session's requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Wherever routes and balancing of this service send them.
    Service(u32),
    /// Here.
    Hop(Hop),
}

/// What was found out about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where.
    pub to: To,
    /// What is spoken.
    pub spoken: Spoken,
    /// The client used an IPv6 address.
    pub prefer_v6: bool,
    /// What is spoken is to be found out; where it is opaque bytes, they go there.
    pub unknown: Option<Hop>,
}

/// An accepted connection that is being proxied.
pub struct Session {
    /// The worker that it lives on.
    pub worker: Rc<Worker>,
    /// The workload that calls (outbound) or is called (inbound).
    pub member: Arc<Member>,
    /// Which way it goes.
    pub direction: Direction,
    /// Where its requests go.
    pub to: To,
    /// Who calls, to policies.
    pub whose: Whose,
    /// The client used an IPv6 address.
    pub prefer_v6: bool,
    /// The client's side.
    pub client: Rc<Link>,
    /// Its deadlines, and the worker's calls to it.
    pub watch: Watched,
    /// The bytes that it holds back.
    pub held: Held,
}

/// A connection of which everything is known, as what is spoken serves it; with its place in the budget, given back last.
struct Begun {
    serving: Pin<Box<dyn Future<Output = ()>>>,
    _noted: Option<Noted>,
    _admitted: Admitted,
}

/// Serves one accepted connection to its end. What it takes to begin is given back before: most connections wait most of
/// their time, and cost what their protocol's task is large.
pub async fn serve(worker: Rc<Worker>, job: Job) {
    if let Some(mut begun) = Box::pin(begin(worker, job)).await {
        begun.serving.as_mut().await;
    }
}

/// Finds out all about it; `None`: it has ended.
async fn begin(worker: Rc<Worker>, job: Job) -> Option<Begun> {
    let Job { socket, admitted, direction } = job;
    let member = admitted.member().clone();
    let stream = socket.into_stream().ok()?;
    if direction == Direction::In && hbone::server::is_asked(&member, &stream) {
        let serving = Box::pin(hbone::server::serve(worker, member, stream));
        return Some(Begun { serving, _noted: None, _admitted: admitted });
    }
    let record = if direction == Direction::Out { client_of(&worker, &stream) } else { None };
    if direction == Direction::Out && record.is_none() {
        stream.reset();
        return None;
    }
    let spliced = record.as_ref().is_some_and(|record| record.flags & captured::SPLICE != 0);
    let stream = if spliced { stream.spliced() } else { stream };
    if let Some(resolver) = record.as_ref().and_then(dns::resolver) {
        if let Err(stream) = dns::tcp::serve(&worker, &member, stream, resolver).await {
            stream.reset();
        }
        return None;
    }
    let ends = if record.is_none() { inbound::ends(&stream) } else { None };
    let whose = ends.map_or(Whose::Member, |(client, wanted)| Whose::Other(Other::new(client, wanted)));
    let Some(way) = way(&worker, &member, record.as_ref(), &whose).await else {
        stream.reset();
        return None;
    };
    let noted = ends.filter(|_| way.spoken != Spoken::Tcp).map(|ends| Noted::new(&worker, ends));
    let client = Rc::new(Link::new(stream));
    let watch = worker.clock.watch(&member);
    client.own(Some(watch.rc().clone()));
    let session = Session {
        direction,
        to: way.to,
        whose,
        prefer_v6: way.prefer_v6,
        held: Held::new(&member),
        worker,
        member,
        client,
        watch,
    };
    let serving = speak(session, &way).await?;
    Some(Begun { serving, _noted: noted, _admitted: admitted })
}

/// What serves it; `None`: it has ended.
async fn speak(session: Session, way: &Way) -> Option<Pin<Box<dyn Future<Output = ()>>>> {
    if session.worker.common.shed.is_on() {
        one(&session.worker.shared.counters.overloaded);
        if way.spoken == Spoken::Tcp {
            session.client.reset();
            return None;
        }
        return Some(Box::pin(http1::refuse(session, ProxyError::Overloaded)));
    }
    Some(match (way.spoken, way.to, way.unknown) {
        (.., Some(hop)) => Box::pin(detect::serve(session, hop)),
        (Spoken::Tls, To::Service(_), _) => Box::pin(tls::serve(session)),
        (Spoken::Tcp, To::Hop(hop), _) => Box::pin(serve_tcp(session, hop)),
        _ if http2::is_spoken(&session).await => Box::pin(http2::serve(session)),
        _ => Box::pin(http1::serve(session)),
    })
}

/// What the snapshot says of a connection.
pub enum Found {
    /// It goes there.
    Way(Way),
    /// Nowhere.
    Nothing,
    /// The kernel knows more than the snapshot: an agent that has just begun is not yet in step with what its
    /// predecessor put into the maps.
    Behind,
}

/// How long a connection waits for the snapshot to catch up with the kernel, and how often it looks.
const BEHIND_MOST: Duration = Duration::from_secs(2);
const BEHIND_STEP: Duration = Duration::from_millis(10);

/// Where a connection goes; `None`, counted: nowhere.
async fn way(worker: &Worker, member: &Member, record: Option<&Capture>, whose: &Whose) -> Option<Way> {
    let begun = Instant::now();
    loop {
        let found = match (record, member.usage.gone()) {
            (_, true) => return None,
            (Some(record), false) => outbound(worker, record),
            (None, false) => inbound::way(worker, member, whose),
        };
        match found {
            Found::Way(way) => return Some(way),
            Found::Behind if begun.elapsed() < BEHIND_MOST => tokio::time::sleep(BEHIND_STEP).await,
            Found::Behind | Found::Nothing => {
                one(&worker.shared.counters.no_destination);
                return None;
            }
        }
    }
}

/// Serves opaque bytes.
pub async fn serve_tcp(session: Session, hop: Hop) {
    let begun = Instant::now();
    let opened = open(&session, &hop).await.map(|stream| Rc::new(Link::new(stream)));
    carry(session, hop, opened, begun).await;
}

/// Opens a connection for opaque bytes, where they may go.
pub async fn open(session: &Session, hop: &Hop) -> Result<Stream, ProxyError> {
    let Session { worker, member, whose, watch, .. } = session;
    opaque(worker, member, whose, hop)?;
    let target = hop.target(worker, member)?;
    let opened = transport::open(worker, &target, watch).await;
    let counters = &worker.shared.counters;
    one(if opened.is_ok() { &counters.upstream_opened } else { &counters.upstream_failed });
    opened
}

/// Carries opaque bytes over the connection that was opened for them.
pub async fn carry(session: Session, hop: Hop, opened: Result<Rc<Link>, ProxyError>, begun: Instant) {
    let reason = match opened {
        Ok(upstream) => copy(&session, hop, upstream).await,
        Err(error) => {
            session.client.reset();
            error.reason()
        }
    };
    record_tcp(&session, &hop, reason, begun);
}

/// Copies until both sides have ended; how that was. Policies that change may end it.
pub async fn copy(session: &Session, hop: Hop, upstream: Rc<Link>) -> &'static str {
    let Session { worker, member, whose, watch, client, held, .. } = session;
    let _judged = (hop.policed != 0).then(|| Judged::add(worker, (member, whose), hop, None, watch.rc()));
    upstream.own(Some(watch.rc().clone()));
    tcp::copy(worker, watch, client, &upstream, held).await.reason()
}

/// Counts a connection of opaque bytes that has ended.
pub fn record_tcp(session: &Session, hop: &Hop, reason: &'static str, begun: Instant) {
    let mut account = Account { begun, reason, ..Account::begun_now() };
    account.sent_to(hop);
    account.record(&session.parties(), Spoken::Tcp);
}

/// The record of a captured connection; `None`, counted: it has none.
fn client_of(worker: &Worker, stream: &Stream) -> Option<Capture> {
    let record = stream.tcp().and_then(|tcp| worker.sockets.capture(tcp.as_fd()).ok().flatten());
    let record = record.filter(|r| r.role == role::ACCEPTED);
    if record.is_none() {
        one(&worker.shared.counters.record_lost);
    }
    record
}

fn outbound(worker: &Worker, record: &Capture) -> Found {
    worker.with_snapshot(|snapshot| match way_out(snapshot, record, || fastrand::u64(..)) {
        Some(way) => Found::Way(way),
        None if snapshot.epoch < record.epoch => Found::Behind,
        None => Found::Nothing,
    })
}

/// Where the record's connection goes, as the snapshot has it now.
fn way_out(snapshot: &Snapshot, record: &Capture, random: impl Fn() -> u64) -> Option<Way> {
    let wanted = SocketAddr::new(addr::to_ip(&record.addr), u16::from_be(record.port_be));
    let prefer_v6 = wanted.is_ipv6();
    let straight = |hop, spoken| Way { to: To::Hop(hop), spoken, prefer_v6, unknown: None };
    if record.flags & captured::WORKLOAD != 0 {
        let workload = snapshot.workloads.get(&record.endpoint)?;
        return Some(straight(Hop::to_workload(workload, wanted)?, Spoken::Tcp));
    }
    let chosen = |service: &Service| {
        service
            .endpoints
            .iter()
            .find(|e| e.id == record.endpoint)
            .and_then(|e| Hop::to(service.id, e, prefer_v6))
    };
    let Some(service) = snapshot.services.get(&record.service) else {
        // The service has gone since, or the address was a workload's own.
        let hop = snapshot.services.values().find_map(|s| chosen(s))?;
        return Some(straight(hop, Spoken::Tcp));
    };
    let virtually = service.vips.contains(&wanted.ip());
    let spoken = match service.protocol {
        Protocol::Http => Spoken::Http1,
        Protocol::Tls if service.routes.is_some() && virtually => Spoken::Tls,
        _ => Spoken::Tcp,
    };
    let unknown = |hop| (service.protocol == Protocol::Auto).then_some(hop);
    if !virtually {
        // Its own address was asked for, so nobody else will do.
        let endpoint = service.endpoints.iter().find(|e| e.address(prefer_v6) == Some(wanted));
        let hop = endpoint.and_then(|e| Hop::to(service.id, e, prefer_v6)).or_else(|| chosen(service))?;
        return Some(Way { unknown: unknown(hop), ..straight(hop, spoken) });
    }
    if spoken != Spoken::Tcp {
        return Some(Way { to: To::Service(service.id), spoken, prefer_v6, unknown: None });
    }
    // Where a route splits them the kernel has chosen among the endpoints of others.
    let backends = || service.backends.iter().filter_map(|id| snapshot.services.get(id));
    let routed = || backends().find_map(|backend| chosen(backend));
    let any = || pick_other(service, &[], random()).and_then(|e| Hop::to(service.id, e, prefer_v6));
    let Some(hop) = chosen(service).or_else(routed).or_else(any) else {
        // Only requests can go elsewhere.
        let http = service.protocol == Protocol::Auto && service.routes.is_some();
        let to = To::Service(service.id);
        return http.then_some(Way { to, spoken: Spoken::Http1, prefer_v6, unknown: None });
    };
    let to = unknown(hop).map_or(To::Hop(hop), |_| To::Service(service.id));
    Some(Way { to, unknown: unknown(hop), ..straight(hop, spoken) })
}

/// The address without the v4-mapped form that an IPv6 listener shows.
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::super::tests::rig::{VIP, service, workload};
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    const A: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);
    const B: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8002);

    /// Service 1 is HTTP with endpoints 1 and 2, service 2 TCP with 200 and 201.
    #[track_caller]
    fn check(wanted: (IpAddr, u16), service_id: u32, endpoint: u32, want: Option<(To, Spoken)>) {
        let mut snapshot = Snapshot::default();
        for s in [service(1, Protocol::Http, &[A, B]), service(2, Protocol::Tcp, &[A, B])] {
            snapshot.services.insert(s.id, Arc::new(s));
        }
        let (addr, port_be) = (addr::from_ip(wanted.0), wanted.1.to_be());
        let record = Capture { addr, service: service_id, endpoint, port_be, ..nobodys() };
        let way = way_out(&snapshot, &record, || 0);
        assert_eq!(way.map(|w| (w.to, w.spoken)), want, "{wanted:?} {service_id} {endpoint}");
    }

    fn nobodys() -> Capture {
        Capture {
            addr: addr::UNSPECIFIED,
            epoch: 1,
            workload: 7,
            service: 0,
            endpoint: 0,
            role: role::ACCEPTED,
            port_be: 0,
            identity: 0,
            flags: 0,
        }
    }

    fn direct(address: SocketAddr) -> Hop {
        Hop { service: 0, endpoint: 0, local: true, address, show: None, policed: 0, tunnel: 0 }
    }

    fn hop(service: u32, endpoint: u32, address: SocketAddr) -> To {
        // Workloads and endpoints have the same numbers.
        To::Hop(Hop { service, endpoint, policed: endpoint, ..direct(address) })
    }

    #[test]
    fn a_records_way() {
        let vip = (IpAddr::V4(VIP), 80);
        let own = |at: SocketAddr| (at.ip(), at.port());
        check(vip, 1, 0, Some((To::Service(1), Spoken::Http1)));
        check(vip, 1, 2, Some((To::Service(1), Spoken::Http1)));
        check(vip, 2, 201, Some((hop(2, 201, B), Spoken::Tcp)));
        // The kernel chose none, or one that has gone.
        check(vip, 2, 0, Some((hop(2, 200, A), Spoken::Tcp)));
        check(vip, 2, 999, Some((hop(2, 200, A), Spoken::Tcp)));
        // A workload's own address.
        check(own(B), 1, 2, Some((hop(1, 2, B), Spoken::Http1)));
        check(own(B), 1, 0, Some((hop(1, 2, B), Spoken::Http1)));
        // The service has gone; its endpoint serves another, or has gone too.
        check(vip, 99, 200, Some((hop(2, 200, A), Spoken::Tcp)));
        check(vip, 99, 999, None);
        check((IpAddr::V4(Ipv4Addr::new(1, 2, 3, 4)), 80), 1, 0, None);
    }

    #[test]
    fn where_no_service_is_served_the_way_is_to_the_workload_that_the_kernel_names() {
        let mut snapshot = Snapshot::default();
        snapshot.workloads.insert(7, Arc::new(workload(7, A, Protocol::Tcp)));
        let way = |endpoint, ip: IpAddr| {
            let flags = captured::WORKLOAD;
            let record =
                Capture { endpoint, flags, addr: addr::from_ip(ip), port_be: 99_u16.to_be(), ..nobodys() };
            way_out(&snapshot, &record, || 0).map(|way| way.to)
        };
        let want = Hop { endpoint: 0, service: 0, policed: 7, ..direct(SocketAddr::new(A.ip(), 99)) };
        assert_eq!(way(7, A.ip()), Some(To::Hop(want)));
        assert_eq!(way(7, VIP.into()), None, "it is not there any more");
        assert_eq!(way(8, A.ip()), None);
    }

    #[test]
    fn a_mapped_address_is_shown_as_ipv4() {
        let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), 1);
        assert_eq!(plain(mapped), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1));
    }
}

//! May this workload be called, and with this request? Asked before a connection to a workload of this node is opened
//! or used again, and of each request where its policies look at requests; a workload of another node is asked there,
//! by the kernel, or by the agent at the end of a tunnel ([`admits`]).
//!
//! ```text
//! route ──Hop──▶ acquire ──head, as it is passed on──▶ **authorise** ──▶ pool, transport
//! intercept, tunnels ──bytes──▶ **authorise** ──▶ transport
//! ```
//!
//! The head is read once more as it will be passed on: what is decided upon is what the application gets. Where policies
//! have services outside decide, those are asked last ([`ext_authz`]). What was let in and is no HTTP any more is asked
//! about again when policies change ([`super::judged`]).
//!
//! Invariant: where requests decide, nothing reaches the application that was not asked about.
//! Cost: nothing where the hop's workload has no policy. Not here: what policies mean (mesh-core's authorise).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_api::spiffe::SpiffeId;
use mesh_common::policy::{Caller, UNPROVED};
use mesh_core::authorise::{Asked, Claims, Headers, PolicySet, Refusal, Request, Seen, at};
use mesh_core::error::ProxyError;
use mesh_core::ext_authz::{Ends, question};
use mesh_core::head::Head as _;
use mesh_core::http1::{Limits, RequestHead, parse_request};
use mesh_core::jwt::{JwtError, Provider};
use mesh_core::route::HeaderEdits;
use mesh_core::snapshot::{Snapshot, Workload};

use super::ext_authz::{self, Granted, Question};
use super::http2::shown;
use super::intercept::Hop;
use super::member::Member;
use super::routing::Account;
use super::sockets::Sockets;
use super::stats::one;
use super::told::{Told, Without};
pub use super::whose::{Other, Whose};
use super::worker::Worker;
use crate::authorise::Quota;

/// Refusals of the proxy that are logged.
static LOGGED: Quota = Quota::new();
/// Matches of policies that audit, that are logged.
static AUDITED: Quota = Quota::new();

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Who is called by whom, and the policies that are to be asked.
struct Case<'s> {
    called: &'s Workload,
    set: &'s PolicySet,
    caller: Caller,
    from: IpAddr,
    /// The workload that calls; 0: none that is known.
    source: u32,
}

impl Whose {
    /// `None`: nobody is to be asked.
    fn case<'s>(
        &self,
        sockets: &dyn Sockets,
        snapshot: &'s Snapshot,
        member: &Member,
        hop: &Hop,
    ) -> Result<Option<Case<'s>>, ProxyError> {
        let called = if let Self::Member = self { hop.policed } else { member.workload };
        if called == 0 || (matches!(self, Self::Member) && called == member.workload) {
            return Ok(None);
        }
        let called = snapshot.workloads.get(&called).ok_or(ProxyError::DeniedByPolicy)?;
        let (caller, from, source) = match self {
            Self::Member => {
                // What the connection will come from: sockets are made in the workload's own namespace.
                let from = match hop.address {
                    SocketAddr::V4(_) => IpAddr::V4(member.addr4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
                    SocketAddr::V6(_) => IpAddr::V6(member.addr6.unwrap_or(Ipv6Addr::UNSPECIFIED)),
                };
                (Caller { identity: member.identity, namespace: member.namespace }, from, member.workload)
            }
            // The rest was asked when it came.
            _ if called.looks_at(hop.address.port()).is_none() => return Ok(None),
            Self::Other(other) => {
                let (caller, source) = other.caller(sockets, snapshot, false);
                (caller, other.client.ip(), source)
            }
            Self::Tunnel(tunnel) => (tunnel.caller(snapshot), tunnel.address.ip(), 0),
        };
        // A workload may always call itself.
        if called.policy_set == 0 || source == called.id {
            return Ok(None);
        }
        let set = snapshot.policies.get(&called.policy_set).ok_or(ProxyError::DeniedByPolicy)?;
        Ok(Some(Case { called, set, caller, from, source }))
    }
}

impl Case<'_> {
    fn decide(
        &self,
        worker: &Worker,
        snapshot: &Snapshot,
        port: u16,
        seen: Seen<'_>,
    ) -> Result<(), ProxyError> {
        let network = at(self.from);
        let asked = Asked { caller: self.caller, addresses: Some(&network), port: Some(port), seen };
        for (policy, rule) in self.set.audits(&asked) {
            worker.shared.audits.count(&policy.name);
            if AUDITED.take() {
                let (source, destination) = (self.source(snapshot), &*self.called.full_name);
                let policy = &*policy.name;
                tracing::info!(source, destination, port, policy, rule, "matched by a policy that audits");
            }
        }
        let Some(refusal) = self.set.refuses(&asked) else { return Ok(()) };
        if LOGGED.take() {
            let (source, destination) = (self.source(snapshot), &*self.called.full_name);
            tracing::warn!(source, destination, port, %refusal, "refused by policy");
        }
        Err(match (refusal, seen) {
            (Refusal::Unclear { .. }, _) => ProxyError::UnclearPath,
            (_, Seen::Request(Request { claims: Some(Claims::Good(tokens)), .. }))
                if tokens.is_empty() && self.set.lacks_token(&asked) =>
            {
                ProxyError::Jwt(JwtError::Missing)
            }
            _ => ProxyError::DeniedByPolicy,
        })
    }

    /// May this request, by its rules?
    fn request(
        &self,
        worker: &Worker,
        snapshot: &Snapshot,
        request: &Request<'_>,
        about: &About<'_>,
    ) -> Result<Passed, ProxyError> {
        let port = about.hop.address.port();
        let providers = self.providers(snapshot, port);
        if providers.is_empty() {
            self.decide(worker, snapshot, port, Seen::Request(request))?;
            return Ok(Passed { told: None, questions: self.questions(snapshot, request, about, &[]) });
        }
        let claims = self.tokens(worker, snapshot, port, &providers, request.headers)?;
        let told = Told::of(&providers, &claims);
        // What the mesh says of a token is never believed of anybody else, neither here nor behind us.
        let headers = Without { all: request.headers, names: &told.claimed };
        let seen = Request { claims: Some(&claims), headers: &headers, ..*request };
        self.decide(worker, snapshot, port, Seen::Request(&seen))?;
        let questions = self.questions(snapshot, &seen, about, told.lines());
        Ok(Passed { told: Some(told).filter(|told| *told != Told::default()), questions })
    }

    /// Whom to ask about a request that rules let in. `told`: lines that its endpoint gets beside its own.
    fn questions(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        about: &About<'_>,
        told: &[(Box<str>, Box<str>)],
    ) -> Vec<Question> {
        let (port, network) = (about.hop.address.port(), at(self.from));
        let asked = Asked {
            caller: self.caller,
            addresses: Some(&network),
            port: Some(port),
            seen: Seen::Request(request),
        };
        let mut questions = self.set.questions(&asked).peekable();
        let own = |service| self.called.ports.iter().any(|own| own.port == port && own.service == service);
        let decides = || snapshot.ext_authz.iter().filter_map(|provider| provider.service).any(own);
        // What decides about requests is asked about by nobody: else one question would be another's, without an end.
        if questions.peek().is_none() || decides() {
            return Vec::new();
        }
        let ends = self.ends(snapshot, about);
        questions
            .map(|(policy, _, name)| Question {
                provider: snapshot.ext_authz(name).cloned(),
                called: self.called.id,
                message: question(&ends, request, about.query, told, &policy.name),
            })
            .collect()
    }

    fn ends(&self, snapshot: &Snapshot, about: &About<'_>) -> Ends {
        let id = |workload: &Workload| {
            SpiffeId::new(&snapshot.trust_domain, workload.namespace(), &workload.service_account)
                .map(|id| id.to_string())
                .ok()
        };
        let known = || snapshot.workloads.get(&self.source).filter(|_| self.caller != UNPROVED);
        let (source, principal) = match about.whose {
            Whose::Member => (SocketAddr::new(self.from, 0), known().and_then(|own| id(own))),
            Whose::Other(other) => (other.client, known().and_then(|own| id(own))),
            Whose::Tunnel(tunnel) => (tunnel.address, Some(tunnel.peer.to_string())),
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ends {
            source,
            principal: principal.unwrap_or_default(),
            destination: about.hop.address,
            called: id(self.called).unwrap_or_default(),
            protocol: about.protocol,
            unix_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Whose tokens decide; none where the mesh does not have them.
    fn providers(&self, snapshot: &Snapshot, port: u16) -> Vec<Arc<Provider>> {
        let mut all: Vec<Arc<Provider>> = Vec::new();
        for name in self.set.providers(port) {
            if let Some(provider) = snapshot.jwt.get(name)
                && !all.iter().any(|one| one.stamp == provider.stamp)
            {
                all.push(provider.clone());
            }
        }
        all
    }

    /// What the request's tokens say; refused where one is there and not good.
    fn tokens(
        &self,
        worker: &Worker,
        snapshot: &Snapshot,
        port: u16,
        providers: &[Arc<Provider>],
        head: &dyn Headers,
    ) -> Result<Claims, ProxyError> {
        let counters = &worker.shared.counters;
        let found = worker.tokens.find(providers, head, unix_s()).map_err(|error| {
            one(&counters.tokens_refused);
            if LOGGED.take() {
                let (source, destination) = (self.source(snapshot), &*self.called.full_name);
                tracing::warn!(source, destination, port, reason = error.reason(), "a token is refused");
            }
            ProxyError::Jwt(error)
        })?;
        counters.tokens_checked.fetch_add(found.checked, Relaxed);
        counters.tokens_known.fetch_add(found.tokens.len() as u64 - found.checked, Relaxed);
        Ok(Claims::Good(found.tokens))
    }

    fn source(&self, snapshot: &Snapshot) -> String {
        let name = snapshot.workloads.get(&self.source).map(|caller| caller.full_name.to_string());
        name.unwrap_or_else(|| self.from.to_string())
    }
}

/// May opaque bytes go this way?
pub fn opaque(worker: &Worker, member: &Member, whose: &Whose, hop: &Hop) -> Result<(), ProxyError> {
    worker.with_snapshot(|snapshot| match whose.case(&*worker.sockets, snapshot, member, hop)? {
        None => Ok(()),
        Some(case) => case.decide(worker, snapshot, hop.address.port(), Seen::Opaque),
    })
}

/// A request on its way, beside its head.
struct About<'a> {
    whose: &'a Whose,
    hop: &'a Hop,
    query: Option<&'a str>,
    protocol: &'static str,
}

/// A request that rules let in.
#[derive(Default)]
struct Passed {
    /// What is to be changed in it, where tokens say that.
    told: Option<Told>,
    /// Who is to be asked before it goes on.
    questions: Vec<Question>,
}

/// The name of HTTP/1 to those who are asked.
const HTTP1: &str = "HTTP/1.1";

/// May this request go this way? `head`: as it is passed on, in HTTP/1. Its head as the endpoint gets it, where that is
/// another, and what changes in the response.
pub async fn request(
    worker: &Rc<Worker>,
    member: &Member,
    whose: &Whose,
    hop: &Hop,
    head: &[u8],
    account: &mut Account,
) -> Result<(Option<Vec<u8>>, Option<Box<HeaderEdits>>), ProxyError> {
    let passed = asked(worker, member, whose, hop, |case, snapshot| {
        let (passed, head) = decided(worker, whose, hop, head, case, snapshot)?;
        if passed.questions.is_empty() {
            return Ok(Err(passed.told.map(|told| told.write(head))));
        }
        Ok(Ok(passed))
    })?;
    let Passed { told, questions } = match passed {
        None => return Ok((None, None)),
        Some(Err(head)) => return Ok((head, None)),
        Some(Ok(passed)) => passed,
    };
    let granted = Box::pin(ext_authz::ask(worker, questions, told, account)).await?;
    let head = granted.told.map(|told| parse_request(head, &Limits::default()).map(|head| told.write(head)));
    Ok((head.transpose()?, granted.response))
}

/// Would rules let this request of HTTP/1 go this way now?
pub fn still(worker: &Worker, member: &Member, whose: &Whose, hop: &Hop, head: &[u8]) -> bool {
    asked(worker, member, whose, hop, |case, snapshot| {
        decided(worker, whose, hop, head, case, snapshot).map(|_| ())
    })
    .is_ok()
}

fn decided<'h>(
    worker: &Worker,
    whose: &Whose,
    hop: &Hop,
    head: &'h [u8],
    case: &Case<'_>,
    snapshot: &Snapshot,
) -> Result<(Passed, RequestHead<'h>), ProxyError> {
    // It may have grown a little on its way.
    let head = parse_request(head, &Limits::default())?;
    let about = About { whose, hop, query: head.query(), protocol: HTTP1 };
    let passed = case.request(worker, snapshot, &head.request(), &about)?;
    Ok((passed, head))
}

/// The same of HTTP/2, with the query of its path: what is to be changed in it, and in its response.
pub async fn request_as(
    worker: &Rc<Worker>,
    member: &Member,
    whose: &Whose,
    hop: &Hop,
    head: &http::Request<()>,
    account: &mut Account,
) -> Result<Granted, ProxyError> {
    let passed = asked(worker, member, whose, hop, |case, snapshot| {
        let about = About { whose, hop, query: head.uri().query(), protocol: "HTTP/2" };
        shown(head, |request| case.request(worker, snapshot, request, &about))
    })?;
    let Passed { told, questions } = passed.unwrap_or_default();
    if questions.is_empty() {
        return Ok(Granted { told, response: None });
    }
    Box::pin(ext_authz::ask(worker, questions, told, account)).await
}

/// `None`: nobody was to be asked about requests.
fn asked<T>(
    worker: &Worker,
    member: &Member,
    whose: &Whose,
    hop: &Hop,
    decide: impl FnOnce(&Case<'_>, &Snapshot) -> Result<T, ProxyError>,
) -> Result<Option<T>, ProxyError> {
    if let (Whose::Member, 0) = (whose, hop.policed) {
        return Ok(None);
    }
    worker.with_snapshot(|snapshot| {
        let Some(case) = whose.case(&*worker.sockets, snapshot, member, hop)? else { return Ok(None) };
        let port = hop.address.port();
        if !case.set.looks(Some(port)) {
            return case.decide(worker, snapshot, port, Seen::Unknown).map(|()| None);
        }
        decide(&case, snapshot).map(Some)
    })
}

/// May whoever is at the other end send what it likes to this port of our workload, for all that is known now? Else its
/// requests are asked about one by one.
pub fn sends_anything(
    snapshot: &Snapshot,
    sockets: &dyn Sockets,
    called: &Workload,
    whose: &Whose,
    port: u16,
) -> bool {
    let Some(set) = called.looks_at(port) else { return true };
    if set.providers(port).next().is_some() {
        // What the application is told of tokens nobody else may tell it.
        return false;
    }
    let (caller, source, from) = match whose {
        Whose::Member => return true,
        Whose::Other(other) => {
            let (caller, source) = other.caller(sockets, snapshot, true);
            (caller, source, other.client.ip())
        }
        Whose::Tunnel(tunnel) => (tunnel.caller(snapshot), 0, tunnel.address.ip()),
    };
    let network = at(from);
    let asked = Asked::connection(caller, port).from(&network).seeing(Seen::Opaque);
    source == called.id || set.refuses(&asked).is_none()
}

/// May a peer that has proved who it is connect to this workload of ours, from that address to this port? `caller` says
/// who it is to policies, where there are any.
pub fn admits(
    snapshot: &Snapshot,
    member: &Member,
    (peer, caller): (&SpiffeId, impl FnOnce(&Snapshot) -> Caller),
    from: IpAddr,
    (port, seen): (u16, Seen<'_>),
) -> bool {
    let Some(called) = snapshot.workloads.get(&member.workload) else { return false };
    if called.policy_set == 0 {
        return true;
    }
    let Some(set) = snapshot.policies.get(&called.policy_set) else { return false };
    let network = at(from);
    let asked = Asked { caller: caller(snapshot), addresses: Some(&network), port: Some(port), seen };
    match set.refuses(&asked) {
        None => true,
        // That it is asked about request by request is nothing to tell of.
        Some(refusal) => {
            if LOGGED.take() {
                let source = peer;
                tracing::warn!(%source, destination = %called.full_name, port, %refusal, "refused by policy");
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rig::workload;
    use super::*;
    use crate::path::tests::rig::Fake;
    use mesh_api::proto::v1::Protocol;
    use mesh_core::authorise::{Action, Policy, Rule, Terms};

    const A: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);

    fn snapshot(allowed: Caller) -> Snapshot {
        let terms = Terms { identities: [allowed].into(), ..Terms::default() };
        let rule = Rule { from: [terms].into(), ..Rule::default() };
        let policy = Policy { name: "default/p".into(), action: Action::Allow, rules: [rule].into() };
        let mut snapshot = Snapshot::default();
        snapshot.policies.insert(4, Arc::new(PolicySet::new([Arc::new(policy)].into())));
        let mut called = workload(9, A, Protocol::Http);
        called.policy_set = 4;
        snapshot.workloads.insert(9, Arc::new(called));
        snapshot
    }

    fn refused(snapshot: &Snapshot, policed: u32) -> bool {
        let member = Member::for_tests();
        let hop = Hop { service: 1, endpoint: 1, local: true, address: A, show: None, policed, tunnel: 0 };
        match Whose::Member.case(&Fake::default(), snapshot, &member, &hop) {
            Err(_) => true,
            Ok(None) => false,
            Ok(Some(case)) => {
                case.set.refuses(&Asked::connection(case.caller, 8001).seeing(Seen::Opaque)).is_some()
            }
        }
    }

    #[test]
    fn a_hop_to_a_workload_with_policies_asks_them() {
        // The member of tests has identity 0, which is nobody's.
        let ours = Caller { identity: 1, namespace: 1 };
        assert!(refused(&snapshot(ours), 9));
        assert!(refused(&snapshot(ours), 77), "gone meanwhile");
        assert!(!refused(&snapshot(ours), 0) && !refused(&snapshot(ours), 7), "nobody, and itself");
        let mut open = snapshot(ours);
        let mut called = workload(9, A, Protocol::Http);
        called.policy_set = 0;
        open.workloads.insert(9, Arc::new(called));
        assert!(!refused(&open, 9));
    }
}

//! Which endpoint gets a request, whatever version of HTTP brought it, and what happens to it on the way.
//!
//! intercept ──`To`──▶ **routing** (mesh-core's route, then its balance) ──`Hop`──▶ authorise, pool, transport
//!
//! Invariant: one look at the snapshot a request. Not here: how a head is read or written (http1, http2).

use std::rc::Rc;
use std::sync::Arc;

use mesh_core::balance::{Loads, pick_other};
use mesh_core::error::ProxyError;
use mesh_core::head::Head;
use mesh_core::resilience::sticky::Wanted;
use mesh_core::route::{Action, DirectResponse, Edits, Found, Redirect};
use mesh_core::snapshot::{Service, Snapshot, Workload};

pub use super::account::Account;
use super::intercept::{Hop, To};
use super::member::Member;
use super::worker::Worker;

/// Who asks, and for what.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The worker.
    pub worker: &'a Rc<Worker>,
    /// The workload whose connection it is.
    pub member: &'a Arc<Member>,
    /// Where its requests go.
    pub to: To,
    /// The client used an IPv6 address.
    pub prefer_v6: bool,
}

/// Where a request goes, and what happens to it on the way.
pub struct Routed<'s> {
    /// The endpoint.
    pub hop: Hop,
    /// Whom to ask for another; `None`: nobody else will do.
    pub backend: Option<Arc<Service>>,
    /// What changes in heads.
    pub edits: Option<&'s Arc<Edits>>,
    /// What else the rule says.
    pub action: Option<&'s Arc<Action>>,
    /// Bytes of the path that are the rule's prefix.
    pub matched: usize,
}

impl<'s> Routed<'s> {
    /// The path that the endpoint sees, in two parts; `None`: as it came.
    pub fn path<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)>
    where
        's: 'p,
    {
        self.action?.rewrite.path.as_ref().map(|edit| edit.apply(path, self.matched))
    }
}

/// Which way it is.
pub enum Way<'s> {
    /// To an endpoint.
    To(Routed<'s>),
    /// The client is sent elsewhere; with the bytes of the path that are the rule's prefix.
    Elsewhere(&'s Redirect, usize),
    /// The route answers itself.
    Answered(&'s DirectResponse),
}

impl Caller<'_> {
    /// Which endpoint gets the request, and of which service it is.
    pub fn route<'s>(
        &self,
        snapshot: &'s Snapshot,
        head: &impl Head,
        account: &mut Account,
    ) -> Result<Way<'s>, ProxyError> {
        account.note(self.worker, self.member, head);
        let plainly = |hop, backend| Routed { hop, backend, edits: None, action: None, matched: 0 };
        let id = match self.to {
            To::Hop(hop) => {
                account.service = hop.service;
                return Ok(Way::To(plainly(hop, None)));
            }
            To::Service(id) => id,
        };
        account.service = id;
        let asked = snapshot.services.get(&id).ok_or(ProxyError::NoEndpoints)?;
        let Some(routes) = asked.routes_of(|| self.namespace(snapshot)) else {
            account.strike(asked, head);
            account.want(asked, head);
            return Ok(Way::To(plainly(self.balance_for(asked, account.wanted)?, Some(asked.clone()))));
        };
        let Found { rule, matched } = routes.find(head).ok_or(ProxyError::NoRoute)?;
        account.route = self.worker.routes.number(&rule.name, &self.worker.shared.requests);
        let action = rule.action.as_ref();
        if let Some(redirect) = action.and_then(|action| action.redirect.as_ref()) {
            return Ok(Way::Elsewhere(redirect, matched));
        }
        if let Some(answer) = action.and_then(|action| action.direct.as_ref()) {
            return Ok(Way::Answered(answer));
        }
        let (chosen, backend) = rule.pick(fastrand::u64(..))?;
        account.service = chosen;
        let service = snapshot.services.get(&chosen).ok_or(ProxyError::NoBackend)?;
        account.strike(service, head);
        account.want(service, head);
        let hop = self.balance_for(service, account.wanted)?;
        let edits = backend.edits.as_ref();
        Ok(Way::To(Routed { hop, backend: Some(service.clone()), edits, action, matched }))
    }

    /// The mesh namespace of the workload that asks.
    pub fn namespace<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s str> {
        snapshot.workloads.get(&self.member.workload).map(|workload| Workload::namespace(workload))
    }

    /// The endpoint whose turn it is.
    pub fn balance(&self, service: &Service) -> Result<Hop, ProxyError> {
        self.balance_for(service, Wanted::Any)
    }

    /// The one that is wanted, or else whose turn it is.
    pub fn balance_for(&self, service: &Service, wanted: Wanted) -> Result<Hop, ProxyError> {
        let hop = match &service.resilience {
            Some(asked) if asked.follows() => self.balance_followed(service, asked, wanted),
            _ => self.pick(service, wanted, &*self.worker.sockets),
        };
        hop.ok_or(ProxyError::NoEndpoints)
    }

    /// The same by these loads; `None`: nobody takes requests.
    pub fn pick(&self, service: &Service, wanted: Wanted, loads: &(impl Loads + ?Sized)) -> Option<Hop> {
        let mut balancer = self.worker.balance.borrow_mut();
        let client = (self.member.number(), wanted);
        let endpoint = balancer.pick(service, client, fastrand::u64(..), loads)?;
        Hop::to(service.id, endpoint, self.prefer_v6)
    }

    /// One that was not tried. As many turns are taken as it may take to meet one; a client's own endpoint comes up
    /// every time, and then any other will do.
    pub fn other(&self, service: &Service, tried: &[u32]) -> Option<Hop> {
        (0..service.serving * 2)
            .filter_map(|_| self.balance(service).ok())
            .find(|hop| !tried.contains(&hop.endpoint))
            .or_else(|| {
                let endpoint = pick_other(service, tried, fastrand::u64(..))?;
                Hop::to(service.id, endpoint, self.prefer_v6)
            })
    }
}

/// When something must have ended, and as what it fails then.
pub type Deadline = (tokio::time::Instant, ProxyError);

/// The nearer of a route's limits: of one try, and of all together.
pub fn nearest(one: Option<tokio::time::Instant>, all: Option<tokio::time::Instant>) -> Option<Deadline> {
    let one = one.map(|at| (at, ProxyError::TryTimeout));
    let all = all.map(|at| (at, ProxyError::RequestTimeout));
    match (one, all) {
        (Some(one), Some(all)) => Some(if one.0 < all.0 { one } else { all }),
        (one, all) => one.or(all),
    }
}

/// Carries something out until a deadline.
pub async fn within<T, E: From<ProxyError>>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match deadline {
        None => work.await,
        Some((at, error)) => tokio::time::timeout_at(at, work).await.unwrap_or_else(|_| Err(error.into())),
    }
}

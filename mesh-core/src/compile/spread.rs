//! Levels of a service's endpoints: who stands in which, and what part of the load each takes.
//!
//! Only where a policy prefers a locality, or a workload has a priority; the endpoints of all other services are left
//! as they are, and cost one comparison each.
//!
//! Invariant: the weights in the endpoints and those that `Spread` gives are the same function of the same members.
//! Not here: the split (`crate::locality`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::proto::v1;

use super::workloads::Changed;
use super::{Compiler, Outcome, Work};
use crate::locality::{Health, Locality, Member, Nearness, OVERPROVISIONING, Preference, Spread};
use crate::snapshot::{Endpoint, EndpointId, Service, ServiceId};

/// Endpoints that are ejected, by service.
pub type Ejected = BTreeMap<ServiceId, BTreeSet<EndpointId>>;

/// What the levels of this node depend on beside the resources.
#[derive(Debug, Default)]
pub(super) struct Here {
    /// Where it is.
    pub locality: Locality,
    /// Who is ejected now.
    pub ejected: Ejected,
}

/// What a policy on the wire asks for.
pub(super) fn preference(policy: v1::LocalityPolicy) -> Preference {
    let scopes =
        [(policy.node, Nearness::Node), (policy.zone, Nearness::Zone), (policy.region, Nearness::Region)];
    let scopes: Vec<Nearness> =
        scopes.into_iter().filter(|(asked, _)| *asked).map(|(_, scope)| scope).collect();
    let percent = match policy.overprovisioning_percent {
        0 => OVERPROVISIONING,
        percent => u16::try_from(percent).unwrap_or(u16::MAX).max(100),
    };
    let mut preference = Preference::of(&scopes);
    (preference.strict, preference.overprovisioning) = (policy.strict, percent);
    preference
}

impl Compiler {
    /// Where this node is. Before the first batch.
    #[must_use]
    pub fn at(mut self, locality: Locality) -> Self {
        self.here.locality = locality;
        self
    }

    /// How near a workload is.
    pub(super) fn nearness(&self, spec: &v1::Workload) -> Nearness {
        if !spec.node.is_empty() && *spec.node == *self.node {
            return Nearness::Node;
        }
        spec.locality
            .as_ref()
            .map_or(Nearness::Elsewhere, |at| self.here.locality.nearness(&at.region, &at.zone))
    }

    /// Who is ejected by now, of the services in [`crate::snapshot::Snapshot::spreads`]; `None`: as before.
    pub fn eject(&mut self, ejected: Ejected) -> Option<Outcome> {
        let before = std::mem::replace(&mut self.here.ejected, ejected);
        let after = &self.here.ejected;
        let all: BTreeSet<ServiceId> = before.keys().chain(after.keys()).copied().collect();
        let changed: Vec<ServiceId> = all.into_iter().filter(|id| before.get(id) != after.get(id)).collect();
        if changed.is_empty() {
            return None;
        }
        let mut work = Work::default();
        for id in changed {
            self.gather_endpoints(id, Changed::All, &mut work);
        }
        let revision = self.next.revision.clone();
        (!work.dirty.is_empty()).then(|| self.conclude(work, false, revision))
    }

    /// Splits the load of a service among its endpoints: those that serve get the weights of their parts, those that
    /// are not to be sent to rest.
    pub(super) fn spread(
        &self,
        service: &Service,
        serving: &mut Vec<Endpoint>,
        resting: &mut Vec<Endpoint>,
    ) -> Arc<Spread> {
        let preference = service.traffic.locality.unwrap_or_default();
        let place = |e: &Endpoint| {
            self.next
                .workloads
                .get(&e.workload)
                .map_or((Nearness::Elsewhere, 0), |w| (w.nearness, w.priority))
        };
        let admitted = |e: &Endpoint| preference.admits(place(e).0);
        let ejected = self.here.ejected.get(&service.id);
        let member = |e: &Endpoint, health: Health| {
            let (near, priority) = place(e);
            let weight = if admitted(e) { u16::try_from(e.weight).unwrap_or(u16::MAX) } else { 0 };
            Member { level: preference.level(priority, near), health, weight }
        };
        resting.extend(serving.extract_if(.., |e| !admitted(e)));
        resting.sort_unstable_by_key(|e| e.id);
        let serves = serving.iter().map(|e| {
            let out = ejected.is_some_and(|ejected| ejected.contains(&e.id));
            member(e, if out { Health::Ejected } else { Health::Healthy })
        });
        let rests = resting.iter().map(|e| member(e, Health::Resting));
        let spread =
            Spread { overprovisioning: preference.overprovisioning, members: serves.chain(rests).collect() };
        for (endpoint, weight) in serving.iter_mut().zip(spread.weights(usize::MAX, |_| true)) {
            endpoint.weight = weight;
        }
        match self.next.spreads.get(&service.id) {
            Some(same) if **same == spread => Arc::clone(same),
            _ => Arc::new(spread),
        }
    }

    /// Notes how a service is split; `false`: as before.
    pub(super) fn note_spread(&mut self, id: ServiceId, spread: Option<&Arc<Spread>>) -> bool {
        match spread {
            None => !self.next.spreads.is_empty() && self.next.spreads.remove(&id).is_some(),
            Some(new) if self.next.spreads.get(&id) == Some(new) => false,
            Some(new) => {
                self.next.spreads.insert(id, Arc::clone(new));
                true
            }
        }
    }
}

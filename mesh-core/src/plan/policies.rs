//! The entries of `POLICY` and `POLICY_CIDRS`: policy sets spelt out for the kernel, and which of them fit.
//!
//! A set that does not fit is closed: the workloads that have it are written with the number
//! [`policy::CLOSED`], which has no entries, so that nobody gets in; everything else goes on. It is tried again
//! with every plan.
//! Not here: what policies mean (authorise), how the kernel reads entries (`mesh_common::policy`).

use std::collections::{BTreeMap, BTreeSet};

use mesh_common::policy::{self, Caller, UNPROVED, class};
use mesh_common::record::{PolicyCidr, PolicyKey};
use mesh_common::{addr, maps};

use super::{Condition, MapOp, Ops, Scope, View, condition};
use crate::authorise::{Asked, IPV4, NOBODY, Network, PolicySet, Seen};
use crate::model::Kind;
use crate::snapshot::{PolicySetId, Snapshot};

/// Most combinations of source, address range and port that a set may tell apart.
const MOST_CASES: usize = 65_536;
/// Bits of the set's number in a prefix.
const SET_BITS: u32 = 32;

/// What a set stands as in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub verdicts: Vec<(PolicyKey, u32)>,
    /// Prefix length in bits, the prefix, the number of its range.
    pub cidrs: Vec<(u32, PolicyCidr, u32)>,
}

/// The keys of a set that the maps hold.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldSet {
    pub verdicts: Vec<PolicyKey>,
    pub cidrs: Vec<(u32, PolicyCidr)>,
}

/// Writes the sets that are new and fit, and deletes those that are gone. `true`: a set was closed or opened
/// that stands in entries of other maps already.
pub(super) fn plan(
    view: &mut View,
    snapshot: &Snapshot,
    dirty: &BTreeSet<PolicySetId>,
    scope: Scope,
    ops: &mut Ops,
) -> bool {
    let before = std::mem::take(&mut view.closed);
    let mut ids: BTreeSet<PolicySetId> = dirty.iter().chain(before.keys()).copied().collect();
    if scope.sweep {
        ids.extend(snapshot.policies.keys().chain(view.sets.keys()));
    }
    let (wanted, unwanted): (Vec<_>, Vec<_>) =
        ids.into_iter().partition(|id| snapshot.policies.contains_key(id));
    for id in wanted {
        if view.sets.contains_key(&id) {
            continue;
        }
        let Some(set) = snapshot.policies.get(&id) else { continue };
        match fitting(view, id, set) {
            Ok(entries) => put(view, id, entries, ops),
            Err(problem) => drop(view.closed.insert(id, trouble(set, &problem))),
        }
    }
    // Last, as in the map: an entry has its room until it is deleted.
    for id in unwanted {
        if scope.full
            && let Some(held) = view.sets.remove(&id)
        {
            view.verdicts_held -= held.verdicts.len();
            view.cidrs_held -= held.cidrs.len();
            view.policy_room = true;
            ops.deletions.extend(held.verdicts.into_iter().map(|key| MapOp::DelPolicy { key }));
            let cidrs = held.cidrs.into_iter();
            ops.deletions.extend(cidrs.map(|(length, prefix)| MapOp::DelPolicyCidr { length, prefix }));
        }
    }
    before.keys().any(|id| snapshot.policies.contains_key(id) && !view.closed.contains_key(id))
        || view.closed.keys().any(|id| !before.contains_key(id))
}

/// The entries of a set, or why they cannot be written.
fn fitting(view: &View, id: PolicySetId, set: &PolicySet) -> Result<Entries, String> {
    let entries = entries(id, set)?;
    let room = |map: &str, flag: &str, capacity: u32, held: usize, needed: usize| {
        if held + needed <= capacity as usize {
            return Ok(());
        }
        let free = (capacity as usize).saturating_sub(held);
        Err(format!(
            "map {map} is full ({capacity} entries): {needed} are needed, {free} are free: raise {flag}"
        ))
    };
    let held = (view.verdicts_held, view.cidrs_held);
    room(maps::POLICY.name, "--map-policy", view.capacities.policy, held.0, entries.verdicts.len())?;
    let capacity = view.capacities.policy_cidrs;
    room(maps::POLICY_CIDRS.name, "--map-policy-cidrs", capacity, held.1, entries.cidrs.len())?;
    Ok(entries)
}

fn put(view: &mut View, id: PolicySetId, entries: Entries, ops: &mut Ops) {
    view.verdicts_held += entries.verdicts.len();
    view.cidrs_held += entries.cidrs.len();
    let held = HeldSet {
        verdicts: entries.verdicts.iter().map(|(key, _)| *key).collect(),
        cidrs: entries.cidrs.iter().map(|(length, prefix, _)| (*length, *prefix)).collect(),
    };
    view.sets.insert(id, held);
    ops.policies.extend(entries.verdicts.into_iter().map(|(key, value)| MapOp::PutPolicy { key, value }));
    ops.policies.extend(entries.cidrs.into_iter().map(|(length, prefix, value)| MapOp::PutPolicyCidr {
        length,
        prefix,
        value,
    }));
}

fn trouble(set: &PolicySet, problem: &str) -> Condition {
    let names: Vec<&str> = set.policies().iter().map(|policy| &*policy.name).collect();
    let (namespace, name) = names.first().and_then(|name| name.split_once('/')).unwrap_or_default();
    let with = match names.len() {
        0 | 1 => String::new(),
        several => format!(" (with {} more policies)", several - 1),
    };
    let problem = format!("connections to the workloads that it selects{with} are refused: {problem}");
    condition(Kind::AuthorizationPolicy, namespace, name, problem)
}

/// What a source may do, by port: the last is every port that is not named.
type Row = Vec<u32>;
/// What is told apart for one range of addresses: class, port, of datagrams alone, verdict.
type Column = Vec<(u32, Option<u16>, bool, u32)>;

/// Spells a set out.
pub(super) fn entries(id: PolicySetId, set: &PolicySet) -> Result<Entries, String> {
    let ports: BTreeSet<u16> = set.ports().collect();
    let callers: BTreeSet<Caller> =
        set.terms().flat_map(|terms| &terms.identities).filter(|id| **id != NOBODY).copied().collect();
    let namespaces: BTreeSet<u32> = set.terms().flat_map(|terms| &terms.namespaces).copied().collect();
    let mut networks: BTreeSet<Network> = set.terms().flat_map(|terms| &terms.networks).copied().collect();
    if networks.iter().any(Network::spans_v4) {
        // Its bits would catch IPv4 addresses, which are not its own.
        networks.insert(IPV4);
    }
    let carried = 1 + usize::from(set.asks_any_requests());
    let cases = (callers.len() + namespaces.len() + 2) * (ports.len() + 1) * (networks.len() + 1) * carried;
    if cases > MOST_CASES {
        return Err(format!(
            "it tells {cases} combinations of sources, addresses and ports apart, more than {MOST_CASES}: name \
             fewer, or split it over several workloads"
        ));
    }
    let case =
        Cases { set, ports: ports.iter().copied().map(Some).chain([None]).collect(), callers, namespaces };
    let mut entries = Entries::default();
    // Ranges in which the same holds share a number.
    let mut numbers: BTreeMap<Column, u32> = BTreeMap::new();
    for network in std::iter::once(None).chain(networks.iter().map(Some)) {
        let column = case.column(network);
        let next = numbers.len() as u32;
        let known = numbers.get(&column).copied();
        let addresses = known.unwrap_or(next);
        if known.is_none() {
            entries.verdicts.extend(column.iter().map(|&(class, port, datagrams, said)| {
                let port_be = port.map_or(policy::OTHER_PORTS, u16::to_be);
                (PolicyKey { set: id, class, addresses, port_be, datagrams: datagrams.into() }, said)
            }));
            numbers.insert(column, addresses);
        }
        if let Some(network) = network {
            let prefix = PolicyCidr { set: id, addr: addr::from_ip(network.first()) };
            entries.cidrs.push((SET_BITS + u32::from(network.length()), prefix, addresses));
        }
    }
    Ok(entries)
}

struct Cases<'a> {
    set: &'a PolicySet,
    ports: Vec<Option<u16>>,
    callers: BTreeSet<Caller>,
    namespaces: BTreeSet<u32>,
}

impl Cases<'_> {
    /// What holds for the addresses of a network, without what follows from the rest.
    fn column(&self, network: Option<&Network>) -> Column {
        let mut column = Vec::new();
        self.add(network, false, &mut column);
        if self.set.asks_any_requests() {
            self.add(network, true, &mut column);
        }
        column
    }

    /// The same of connections, which may bring any request, or of datagrams, which bring none.
    fn add(&self, network: Option<&Network>, datagrams: bool, column: &mut Column) {
        // A stranger has an identity and a namespace that no term names.
        let stranger = Caller { identity: NOBODY.identity, namespace: u32::MAX };
        let row = |caller| self.row(caller, network, datagrams);
        let mut write = |class, row: &Row| write(column, (class, datagrams), &self.ports, row);
        let anybody = row(stranger);
        write(class::ANYBODY, &anybody);
        write(class::UNPROVED, &row(UNPROVED));
        let mut wider = BTreeMap::new();
        for &namespace in &self.namespaces {
            let row = row(Caller { namespace, ..stranger });
            if row != anybody {
                write(class::namespace(namespace), &row);
                wider.insert(namespace, row);
            }
        }
        for &caller in &self.callers {
            let row = row(caller);
            if row != *wider.get(&caller.namespace).unwrap_or(&anybody) {
                write(class::identity(caller.identity), &row);
            }
        }
    }

    fn row(&self, caller: Caller, addresses: Option<&Network>, datagrams: bool) -> Row {
        let seen = if datagrams { Seen::Opaque } else { Seen::Unknown };
        let said =
            |port: &Option<u16>| match self.set.refuses(&Asked { caller, addresses, port: *port, seen }) {
                None => policy::ALLOW,
                Some(_) => policy::DENY,
            };
        self.ports.iter().map(said).collect()
    }
}

/// A row, but for the ports that are as all others.
fn write(column: &mut Column, (class, datagrams): (u32, bool), ports: &[Option<u16>], row: &Row) {
    let others = row.last().copied().unwrap_or(policy::DENY);
    let told = ports.iter().zip(row).filter(|(port, said)| port.is_none() || **said != others);
    column.extend(told.map(|(port, said)| (class, *port, datagrams, *said)));
}

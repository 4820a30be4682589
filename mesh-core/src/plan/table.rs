//! What an entry of `SERVICES` is to say: its tables as lists of choices, its flags; and the slots of them.
//!
//! A table holds addresses of the family of its virtual address: an IPv6 socket may be IPv6-only, so a
//! v4-mapped destination is not for it.
//!
//! Invariant: the slots of a table are in the order of their endpoint ids, each once: the kernel searches them
//! (`mesh_common::udp`).

use std::hash::Hash;
use std::net::IpAddr;

use mesh_api::proto::v1::Protocol;
use mesh_common::addr::{self, Addr};
use mesh_common::pick;
use mesh_common::record::{self, MAGLEV_ROW, PROTO_TCP, PROTO_UDP, app, flags};

use super::view::View;
use crate::alias;
use crate::maglev;
use crate::mtls::MtlsMode;
use crate::snapshot::{
    Endpoint, EndpointId, OnProxyLoss, PolicySetId, Service, ServiceId, Snapshot, Why, WorkloadId,
};

/// An endpoint in a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Choice {
    addr: Addr,
    port: u16,
    endpoint: EndpointId,
    workload: WorkloadId,
    flags: u32,
    policy_set: PolicySetId,
    weight: u64,
}

/// The second table of a service that needs the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fallback {
    /// None: the kernel path needs no other.
    Absent,
    /// The first table serves.
    Table,
    /// One of its own, behind the first.
    Own(Vec<Choice>),
}

/// See [`super::ramps::Ramps::steps`].
pub(super) type Steps<'a> = dyn Fn(ServiceId, EndpointId) -> Option<u64> + 'a;

/// An entry, but for where its tables lie.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub service: ServiceId,
    pub table: Vec<Choice>,
    pub fallback: Fallback,
    pub flags: u32,
    pub protocol: u32,
}

impl Content {
    /// The entry of `service` under a virtual address of this family. `steps`: how much of its weight an
    /// endpoint has, where its service has slow start; those that a route sends to have all of it.
    pub fn of(service: &Service, v6: bool, snapshot: &Snapshot, view: &View, steps: &Steps<'_>) -> Self {
        let table = if service.split {
            weighted(&service.fallback, v6, snapshot, view)
        } else {
            choices(service, v6, snapshot, view, steps)
        };
        let mut content = Self {
            service: service.id,
            flags: super::rules::flags(&service.traffic, table.len()),
            table,
            fallback: Fallback::Absent,
            protocol: protocol(service.protocol),
        };
        if service.why.is_none() {
            return content;
        }
        content.flags |= flags::PROXY;
        let own = service.routes.is_none();
        let backends = if own { Vec::new() } else { weighted(&service.fallback, v6, snapshot, view) };
        let bypass = if own { &content.table } else { &backends };
        if !bypass.is_empty() {
            if service.on_proxy_loss == OnProxyLoss::Bypass {
                content.flags |= flags::BYPASS;
            }
            let same = own || backends == content.table;
            content.fallback = if same { Fallback::Table } else { Fallback::Own(backends) };
            return content;
        }
        // Nothing that a connection could be let go to, but the proxy may have something: another rule of
        // the route, or the other family. The slots say so; without BYPASS nobody is sent to them.
        let reachable = service.backends.iter().filter_map(|id| snapshot.services.get(id));
        let any = reachable.flat_map(|s| s.serving().iter().map(move |e| (e, s))).find_map(|(e, s)| {
            choice(e, s, e.weight, v6, view).or_else(|| choice(e, s, e.weight, !v6, view))
        });
        content.fallback = Fallback::Own(any.into_iter().collect());
        content
    }

    /// Slots of the first table.
    pub fn table_len(&self) -> u32 {
        self.table.len() as u32
    }

    /// Slots of the fallback table, wherever it lies.
    pub fn fallback_len(&self) -> u32 {
        match &self.fallback {
            Fallback::Absent => 0,
            Fallback::Table => self.table_len(),
            Fallback::Own(choices) => choices.len() as u32,
        }
    }

    /// Slots of both, and of the rows of a Maglev table behind the first.
    pub fn slots_len(&self) -> u32 {
        match &self.fallback {
            Fallback::Own(choices) => self.first_len() + choices.len() as u32,
            Fallback::Absent | Fallback::Table => self.first_len(),
        }
    }

    fn first_len(&self) -> u32 {
        first_len(self.table_len(), self.flags)
    }

    /// What it says of its tables, whatever its other flags.
    pub fn tables(&self) -> impl Hash + '_ {
        (self.service, &self.table, &self.fallback, self.flags & flags::MAGLEV)
    }

    /// The entry with its tables from slot `first` on.
    pub fn value(&self, first: u32, generation: u32) -> record::Service {
        let fallback = match &self.fallback {
            Fallback::Own(choices) if !choices.is_empty() => first + self.first_len(),
            Fallback::Table if !self.table.is_empty() => first,
            _ => 0,
        };
        record::Service {
            service: self.service,
            generation,
            table: if self.table.is_empty() { 0 } else { first },
            table_len: self.table_len(),
            fallback,
            fallback_len: self.fallback_len(),
            flags: self.flags,
            protocol: self.protocol,
        }
    }

    /// The slots of both tables, one behind the other.
    pub fn slots(&self, generation: u32) -> Vec<record::Endpoint> {
        let mut slots = Vec::with_capacity(self.slots_len() as usize);
        self.fill(&self.table, generation, &mut slots);
        if self.flags & flags::MAGLEV != 0 {
            self.fill_rows(generation, &mut slots);
        }
        if let Fallback::Own(choices) = &self.fallback {
            self.fill(choices, generation, &mut slots);
        }
        slots
    }

    fn fill(&self, choices: &[Choice], generation: u32, slots: &mut Vec<record::Endpoint>) {
        let weights: Vec<u64> = choices.iter().map(|c| c.weight).collect();
        slots.extend(choices.iter().zip(alias::table(&weights)).map(|(choice, slot)| record::Endpoint {
            addr: choice.addr,
            service: self.service,
            generation,
            endpoint: choice.endpoint,
            workload: choice.workload,
            flags: choice.flags,
            threshold: slot.threshold,
            alias: slot.alias,
            port_be: choice.port.to_be(),
            pad: 0,
            policy_set: choice.policy_set,
            weight: u32::try_from(choice.weight).unwrap_or(u32::MAX),
            reserved: [0; 2],
        }));
    }

    fn fill_rows(&self, generation: u32, slots: &mut Vec<record::Endpoint>) {
        let items: Vec<maglev::Item> =
            self.table.iter().map(|c| maglev::item(&c.addr, c.port, c.weight)).collect();
        let entries = maglev::table(&items, pick::maglev_size(self.table_len()));
        slots.extend(entries.chunks(MAGLEV_ROW).map(|part| {
            let mut row = [0; MAGLEV_ROW];
            row[..part.len()].copy_from_slice(part);
            record::MaglevRow { pad: [0; 4], service: self.service, generation, pad2: [0; 2], slots: row }
                .into_slot()
        }));
    }
}

/// Slots of a first table with this many endpoints, the rows behind it included.
pub(super) fn first_len(table_len: u32, entry_flags: u32) -> u32 {
    if entry_flags & flags::MAGLEV == 0 { table_len } else { table_len + pick::maglev_rows(table_len) }
}

/// An endpoint of `service` with so much weight.
fn choice(e: &Endpoint, service: &Service, weight: u32, v6: bool, view: &View) -> Option<Choice> {
    // Its port wants to know who is calling.
    let asks = service.inbound_proxy || e.policy_set != 0 || e.mtls == MtlsMode::Strict;
    let plain_if_lost = service.on_proxy_loss == OnProxyLoss::Bypass && e.mtls == MtlsMode::Permissive;
    let flags = match (e.local, e.tunnel) {
        (true, _) if asks => flags::LOCAL | flags::ASKS,
        (true, _) => flags::LOCAL,
        (false, true) if plain_if_lost => flags::TUNNEL | flags::BYPASS,
        (false, true) => flags::TUNNEL,
        // Whoever is led here: through the agent, or not at all.
        (false, false) if service.why == Some(Why::Tls) => flags::PROXY,
        (false, false) => 0,
    };
    address(e, v6).map(|ip| Choice {
        addr: addr::from_ip(ip),
        port: e.port,
        endpoint: e.id,
        workload: e.workload,
        flags,
        policy_set: view.asked(e.policy_set),
        weight: u64::from(weight),
    })
}

fn address(e: &Endpoint, v6: bool) -> Option<IpAddr> {
    if v6 { e.v6.map(IpAddr::V6) } else { e.v4.map(IpAddr::V4) }
}

/// The endpoints of a service that can be reached so; those of weight 0 are spares.
fn choices(service: &Service, v6: bool, snapshot: &Snapshot, view: &View, steps: &Steps<'_>) -> Vec<Choice> {
    let parts = parts(service, v6, snapshot);
    let all = service.serving().iter().enumerate().filter_map(|(i, e)| {
        let weight = parts.as_ref().map_or(e.weight, |parts| parts.get(i).copied().unwrap_or(0));
        choice(e, service, weight, v6, view)
    });
    all.map(|c| Choice { weight: c.weight * steps(service.id, c.endpoint).unwrap_or(1), ..c }).collect()
}

/// The weights of a service whose load is split: of its endpoints those count that have an address of the family.
fn parts(service: &Service, v6: bool, snapshot: &Snapshot) -> Option<Vec<u32>> {
    let spread = if snapshot.spreads.is_empty() { None } else { snapshot.spreads.get(&service.id) }?;
    let has = |i: usize| service.endpoints.get(i).is_some_and(|e| address(e, v6).is_some());
    Some(spread.weights(service.serving, has))
}

/// The endpoints of several services, each service's weight shared out among its endpoints by theirs. A
/// service without an endpoint leaves its share to the others.
fn weighted(backends: &[(ServiceId, u32)], v6: bool, snapshot: &Snapshot, view: &View) -> Vec<Choice> {
    let mut all = Vec::new();
    for &(id, weight) in backends {
        let Some(service) = snapshot.services.get(&id) else { continue };
        let mut own = choices(service, v6, snapshot, view, &|_, _| None);
        let sum: u128 = own.iter().map(|c| u128::from(c.weight)).sum();
        if weight == 0 || sum == 0 {
            continue;
        }
        // Alone, its own weights will do: its table may then be that of the parent itself.
        if backends.len() > 1 {
            // Nobody looks for them there: such a table is drawn from, and that is all.
            own.retain(|c| c.weight > 0);
            for c in &mut own {
                let share = (u128::from(weight) << 32) * u128::from(c.weight) / sum;
                c.weight = u64::try_from(share).unwrap_or(u64::MAX).max(1);
            }
        }
        all.append(&mut own);
    }
    all.sort_unstable_by_key(|c| c.endpoint);
    all
}

/// `proto` of a key.
pub(super) fn proto(udp: bool) -> u8 {
    if udp { PROTO_UDP } else { PROTO_TCP }
}

/// [`app`] of a protocol.
pub(super) fn protocol(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Http => app::HTTP,
        Protocol::Tls => app::TLS,
        Protocol::Udp => app::UDP,
        Protocol::Tcp | Protocol::Http2 | Protocol::Grpc | Protocol::Auto => app::TCP,
    }
}

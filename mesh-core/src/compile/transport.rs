//! Transport policies: which of them hold for a workload of this node, field by field.
//!
//! A policy with a selector comes before one for the namespace, that before one for the mesh; of two of the
//! same level that say the same field the older one counts, then the first by name, and the other one shows it.
//!
//! Only workloads of this node are ruled: its kernel and its agent carry their connections.
//! Invariant: what an exclusion says that cannot be understood excludes nothing, what a policy says of UDP that
//! cannot be understood lets nothing in, and what it says of splicing that cannot be understood splices nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::proto::v1::{self, SpliceMode, UdpMode};
use mesh_api::resource::Cidr;

use super::{Compiler, Work, port};
use crate::authorise::Network;
use crate::model::{Kind, Name};
use crate::mtls::{MtlsMode, MtlsRules, PortModes};
use crate::outcome::LogRule;
use crate::outside::Egress;
use crate::snapshot::{Exclusions, Transport};

/// A policy as it is held.
#[derive(Debug)]
pub(super) struct TransportHeld {
    level: Level,
    /// Namespace of the policy.
    namespace: String,
    /// Labels that a workload must have.
    selector: Vec<(String, String)>,
    created_ms: u64,
    no_udp: Option<bool>,
    outbound: Option<Exclusions>,
    inbound: Option<Exclusions>,
    connections: Option<u32>,
    pending: Option<u16>,
    splice: Option<bool>,
    egress: Option<Egress>,
    log: Option<LogRule>,
    mtls: Option<MtlsMode>,
    /// By port, in order.
    mtls_ports: Vec<(u16, MtlsMode)>,
}

/// How near a policy is to a workload: the nearest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Selector,
    Namespace,
    Mesh,
}

/// A field that a policy may say.
struct Field {
    name: &'static str,
    said: fn(&TransportHeld) -> bool,
}

const FIELDS: [Field; 10] = [
    Field { name: "spec.udp", said: |p| p.no_udp.is_some() },
    Field { name: "spec.exclude.outbound", said: |p| p.outbound.is_some() },
    Field { name: "spec.exclude.inbound", said: |p| p.inbound.is_some() },
    Field { name: "spec.budget.connections", said: |p| p.connections.is_some() },
    Field { name: "spec.budget.pending", said: |p| p.pending.is_some() },
    Field { name: "spec.splice", said: |p| p.splice.is_some() },
    Field { name: "spec.egress", said: |p| p.egress.is_some() },
    Field { name: "spec.accessLog", said: |p| p.log.is_some() },
    Field { name: "spec.mtls.mode", said: |p| p.mtls.is_some() },
    Field { name: "spec.mtls.ports", said: |p| !p.mtls_ports.is_empty() },
];

/// Group of the problems between policies, beside those of a policy itself.
const BETWEEN: u32 = 1;

impl TransportHeld {
    /// Does it say anything of encryption?
    fn encrypts(&self) -> bool {
        self.mtls.is_some() || !self.mtls_ports.is_empty()
    }

    fn is_for(&self, spec: &v1::Workload) -> bool {
        match self.level {
            Level::Mesh => true,
            Level::Namespace => self.namespace == spec.namespace,
            Level::Selector => {
                self.namespace == spec.namespace
                    && self.selector.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
            }
        }
    }
}

impl Compiler {
    /// What holds where no policy says, as the mesh has it now: all that it concerns is compiled anew where it changes.
    pub(super) fn take_defaults(&mut self, mesh: &v1::Mesh, work: &mut Work) {
        let mode = mesh.mtls();
        if std::mem::replace(&mut self.mtls, mode) != mode {
            work.workloads.extend(self.workloads.iter().map(|held| Name::clone(&held.0.full_name)));
        }
        let default = egress(mesh.egress).unwrap_or_default();
        if std::mem::replace(&mut self.egress, default) != default {
            work.workloads.extend(self.locals.iter().map(Arc::clone));
        }
    }

    /// Compiles a policy anew; the workloads that it was for, or is, are looked at again.
    pub(super) fn compile_transport(&mut self, name: &Name, work: &mut Work) {
        let mut problems = Vec::new();
        let after = self.model.transport(name).map(|spec| read(spec, &mut problems));
        let before = self.transports.remove(name);
        for policy in before.iter().chain(&after) {
            let first =
                if policy.level == Level::Mesh { String::new() } else { format!("{}/", policy.namespace) };
            let concerned =
                self.locals.range(Name::from(&*first)..).take_while(|name| name.starts_with(&first));
            work.workloads.extend(concerned.map(Arc::clone));
            if policy.encrypts() {
                // Wherever they live: who calls them has to know.
                let all = self.workloads.iter().map(|held| &held.0.full_name);
                work.workloads.extend(all.filter(|name| name.starts_with(&first)).map(Arc::clone));
            }
        }
        if let Some(after) = after {
            self.transports.insert(Name::clone(name), after);
        }
        self.problems.set(Kind::TransportPolicy, name, 0, problems);
    }

    /// The policies that are for a workload, those that count first.
    fn transports_of(&self, spec: &v1::Workload) -> Vec<(&Name, &TransportHeld)> {
        let mut all: Vec<_> = self.transports.iter().filter(|(_, policy)| policy.is_for(spec)).collect();
        all.sort_by_key(|(name, policy)| (policy.level, policy.created_ms, Name::clone(name)));
        all
    }

    /// How the connections of a workload are encrypted: by port, else as its nearest policy says, else as the mesh.
    pub(super) fn mtls(&self, spec: &v1::Workload) -> MtlsRules {
        let mesh = self.model.mesh().mtls();
        let default = MtlsRules { mode: mode(mesh).unwrap_or_default(), ports: None };
        if self.transports.values().all(|policy| !policy.encrypts()) {
            return default;
        }
        let all = self.transports_of(spec);
        let mut ports: BTreeMap<u16, MtlsMode> = BTreeMap::new();
        for (port, mode) in all.iter().flat_map(|(_, policy)| &policy.mtls_ports) {
            ports.entry(*port).or_insert(*mode);
        }
        let ports: Box<[_]> = ports.into_iter().collect();
        MtlsRules {
            mode: all.iter().find_map(|(_, policy)| policy.mtls).unwrap_or(default.mode),
            ports: (!ports.is_empty()).then(|| Arc::new(PortModes(ports))),
        }
    }

    /// What holds for a workload of this node whose own mode is `mtls`; `None`: nothing but what holds everywhere.
    pub(super) fn transport(&self, spec: &v1::Workload, mtls: MtlsMode) -> Option<Arc<Transport>> {
        let all = self.transports_of(spec);
        if all.is_empty() && mtls == MtlsMode::Permissive && self.egress == Egress::All {
            return None;
        }
        let policies = || all.iter().map(|(_, policy)| *policy);
        let mut names: Vec<Name> = all.iter().map(|(name, _)| Name::clone(name)).collect();
        names.sort_unstable();
        Some(Arc::new(Transport {
            policies: names.into(),
            // Datagrams are not encrypted: who says strict says no to them, too, until he says otherwise.
            no_udp: policies().find_map(|p| p.no_udp).unwrap_or(mtls == MtlsMode::Strict),
            outbound: policies().find_map(|p| p.outbound.clone()).unwrap_or_default(),
            inbound: policies().find_map(|p| p.inbound.clone()).unwrap_or_default(),
            connections: policies().find_map(|p| p.connections),
            pending: policies().find_map(|p| p.pending),
            splice: policies().find_map(|p| p.splice).unwrap_or(false),
            plain: mtls == MtlsMode::Off,
            egress: policies().find_map(|p| p.egress).unwrap_or(self.egress),
            log: policies().find_map(|p| p.log).unwrap_or_default(),
        }))
    }

    /// Names the policies that an older one of the same level comes before, where one of them (`changed`)
    /// or a workload of this node (`locals`) has changed.
    pub(super) fn check_transports(&mut self, changed: &BTreeSet<Name>, locals: bool) {
        if changed.is_empty() && (self.transports.len() < 2 || !locals) {
            return;
        }
        let mut ruled: BTreeMap<Name, Vec<String>> = BTreeMap::new();
        for workload in &self.locals {
            let Some(spec) = self.model.workload(workload) else { continue };
            let all = self.transports_of(&spec);
            for (i, (name, policy)) in all.iter().enumerate() {
                let older = |said: fn(&TransportHeld) -> bool| {
                    all[..i].iter().find(|(_, other)| other.level == policy.level && said(other))
                };
                for field in FIELDS.iter().filter(|field| (field.said)(policy)) {
                    if let Some((other, _)) = older(field.said) {
                        let line = format!("{} is ruled by the older policy {other}", field.name);
                        let lines = ruled.entry(Name::clone(name)).or_default();
                        if !lines.contains(&line) {
                            lines.push(line);
                        }
                    }
                }
            }
        }
        let names: BTreeSet<&Name> = self.transports.keys().chain(changed).collect();
        for name in names {
            let problems = ruled.remove(name).unwrap_or_default();
            self.problems.set(Kind::TransportPolicy, name, BETWEEN, problems);
        }
    }
}

/// The policy as it is held; names what of it cannot be understood.
fn read(spec: v1::TransportPolicy, problems: &mut Vec<String>) -> TransportHeld {
    let level = match (spec.mesh, spec.selector.is_empty()) {
        (true, _) => Level::Mesh,
        (false, true) => Level::Namespace,
        (false, false) => Level::Selector,
    };
    let no_udp = match UdpMode::try_from(spec.udp) {
        Ok(UdpMode::Unset) => None,
        Ok(mode) => Some(mode == UdpMode::Deny),
        Err(_) => {
            problems.push(format!("spec.udp: mode {} is not known here: datagrams are dropped", spec.udp));
            Some(true)
        }
    };
    let splice = match SpliceMode::try_from(spec.splice) {
        Ok(SpliceMode::Unset) => None,
        Ok(mode) => Some(mode == SpliceMode::On),
        Err(_) => {
            problems.push(format!("spec.splice: mode {} is not known here: nothing is spliced", spec.splice));
            Some(false)
        }
    };
    if v1::EgressMode::try_from(spec.egress).is_err() {
        problems.push(format!("spec.egress: mode {} is not known here: allowList holds", spec.egress));
    }
    let mut read_mode = |field: &str, said: i32| {
        if let Ok(said) = v1::MtlsMode::try_from(said) {
            return mode(said);
        }
        problems.push(format!("spec.mtls.{field}: mode {said} is not known here: strict holds"));
        Some(MtlsMode::Strict)
    };
    let mtls = read_mode("mode", spec.mtls);
    let mut mtls_ports = Vec::with_capacity(spec.mtls_ports.len());
    for (i, one) in spec.mtls_ports.iter().enumerate() {
        let said = read_mode(&format!("ports[{i}].mode"), one.mode).unwrap_or_default();
        match u16::try_from(one.port) {
            Ok(port) if port > 0 => mtls_ports.push((port, said)),
            _ => {}
        }
    }
    mtls_ports.sort_unstable_by_key(|(port, _)| *port);
    let mut exclusions = |field: &str, said: Option<v1::Exclusions>| {
        said.map(|said| {
            read_exclusions(&said).unwrap_or_else(|why| {
                problems.push(format!("spec.exclude.{field}.{why}: nothing is excluded by it"));
                Exclusions::default()
            })
        })
    };
    let outbound = exclusions("outbound", spec.outbound);
    let inbound = exclusions("inbound", spec.inbound);
    let mut selector: Vec<_> = spec.selector.into_iter().collect();
    selector.sort_unstable();
    TransportHeld {
        level,
        namespace: spec.namespace,
        selector,
        created_ms: spec.created_ms,
        no_udp,
        outbound,
        inbound,
        connections: (spec.budget_connections > 0).then_some(spec.budget_connections),
        pending: (spec.budget_pending > 0).then(|| u16::try_from(spec.budget_pending).unwrap_or(u16::MAX)),
        splice,
        egress: egress(spec.egress),
        log: spec.access_log.map(|log| LogRule { percent: log.percent.min(100) as u8, errors: log.errors }),
        mtls,
        mtls_ports,
    }
}

/// What may be opened to the outside; `None`: nothing is said. A mode that is not known here opens nothing.
pub(super) fn egress(said: i32) -> Option<Egress> {
    match v1::EgressMode::try_from(said) {
        Ok(v1::EgressMode::Unset) => None,
        Ok(v1::EgressMode::AllowAll) => Some(Egress::All),
        Ok(v1::EgressMode::AllowList) | Err(_) => Some(Egress::Listed),
    }
}

/// A mode as it is held; `None`: nothing is said.
fn mode(said: v1::MtlsMode) -> Option<MtlsMode> {
    match said {
        v1::MtlsMode::Unset => None,
        v1::MtlsMode::Off => Some(MtlsMode::Off),
        v1::MtlsMode::Permissive => Some(MtlsMode::Permissive),
        v1::MtlsMode::Strict => Some(MtlsMode::Strict),
    }
}

fn read_exclusions(said: &v1::Exclusions) -> Result<Exclusions, String> {
    let ports: Result<BTreeSet<u16>, String> = said.ports.iter().map(|number| port(*number)).collect();
    let networks: Result<BTreeSet<Network>, String> = said
        .cidrs
        .iter()
        .map(|text| {
            let cidr = Cidr::parse(text).ok_or_else(|| format!("cidrs: {text:?} is not a network"))?;
            Ok(Network::new(cidr.address, cidr.length))
        })
        .collect();
    let interfaces: BTreeSet<Box<str>> = said.interfaces.iter().map(|name| name.as_str().into()).collect();
    Ok(Exclusions {
        ports: ports.map_err(|why| format!("ports: {why}"))?.into_iter().collect(),
        networks: networks?.into_iter().collect(),
        interfaces: interfaces.into_iter().collect(),
    })
}

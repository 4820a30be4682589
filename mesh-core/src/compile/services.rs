//! Service ports: their ids, what they are, and the endpoints behind them.

mod health;

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::proto::v1::{self, Protocol};

use super::external::origination;
use super::policy::{needs_proxy, resolve};
use super::routes::Routed;
use super::workloads::Changed;
use super::{Compiler, Work, address};
use crate::ids::IdKind;
use crate::model::{Kind, Name, join};
use crate::mtls::MtlsMode;
use crate::snapshot::{Endpoint, OnProxyLoss, Service, ServiceId, Why, Workload, WorkloadId, WorkloadPort};

/// A port that has an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub number: u16,
    /// Of two ports with one number, the one of UDP.
    pub udp: bool,
    pub id: ServiceId,
}

impl Port {
    fn is(self, spec: &v1::ServicePort) -> bool {
        u32::from(self.number) == spec.port && self.udp == is_udp(spec)
    }
}

pub(super) fn is_udp(port: &v1::ServicePort) -> bool {
    port.protocol() == Protocol::Udp
}

/// The name that a service port's number is kept under.
pub(super) fn port_name(service: &str, port: u32, udp: bool) -> String {
    format!("{service}:{port}{}", if udp { "/udp" } else { "" })
}

/// A port of a workload as an endpoint of the service port that it serves.
fn endpoint(workload: &Workload, port: &WorkloadPort) -> Endpoint {
    Endpoint {
        id: port.endpoint,
        workload: workload.id,
        v4: workload.v4(),
        v6: workload.v6(),
        port: port.port,
        weight: u32::from(port.weight),
        local: workload.local,
        policy_set: workload.policy_set,
        mtls: if port.udp() { MtlsMode::Off } else { workload.mtls.at(port.port) },
        tunnel: !port.udp() && workload.tunnels(port.port),
    }
}

/// Tells apart what is wrong with the ports of a service.
fn place(number: u16, udp: bool) -> u32 {
    u32::from(number) | u32::from(udp) << 16
}

/// Why a service without an endpoint that takes connections has none, of those that there are.
fn nobody(service: &Service, healthy: usize, endpoints: usize) -> Vec<String> {
    let port = service.port;
    if healthy > 0 {
        return vec![format!(
            "port {port}: none of its {endpoints} endpoints is where connections of this node may go: bring one here, \
             or give the policy on it a wider locality, or mode failover"
        )];
    }
    let resting = format!(
        "port {port}: none of its {endpoints} endpoints takes connections (weight 0, unhealthy, draining or without an \
         address)"
    );
    if endpoints > 0 { vec![resting] } else { Vec::new() }
}

impl Compiler {
    /// The id of a service's port, or why there is none.
    pub(super) fn port_id(&self, service: &str, port: u32, udp: bool) -> Result<ServiceId, String> {
        let Some(ports) = self.ports.get(service) else {
            return Err(format!("service {service} does not exist"));
        };
        let numbered = |wanted| ports.iter().find(|p| u32::from(p.number) == port && p.udp == wanted);
        let found = numbered(udp).map(|p| p.id);
        found.ok_or_else(|| match (numbered(!udp), udp) {
            (None, _) => format!("service {service} has no port {port}"),
            (Some(_), true) => format!("port {port} of service {service} is not of protocol udp"),
            (Some(_), false) => format!("port {port} of service {service} is of protocol udp"),
        })
    }

    /// Gives the ports of a changed service their ids, and ends those of ports that are gone.
    pub(super) fn allot_ports(&mut self, name: &Name, work: &mut Work) {
        let mut problems = Vec::new();
        let mut ports: Vec<Port> = Vec::new();
        let service = self.model.service(name);
        for (i, port) in service.iter().flat_map(|s| s.ports.iter().enumerate()) {
            match self.allot_port(name, port, &ports) {
                Ok(port) => ports.push(port),
                Err(why) => problems.push(format!("spec.ports[{i}]: {why}")),
            }
        }
        for gone in self.ports.remove(name).unwrap_or_default() {
            if !ports.contains(&gone) {
                self.ids.end(IdKind::Service, &port_name(name, gone.number.into(), gone.udp));
                self.problems.set(Kind::Service, name, place(gone.number, gone.udp), Vec::new());
                self.drop_service(gone.id, work);
            }
        }
        if let Some(service) = &service {
            self.next.names.insert(Name::clone(name), ports.iter().map(|port| port.id).collect());
            self.ports.insert(Name::clone(name), ports);
            problems.extend(service.vips.iter().filter_map(|vip| address("spec.vips", vip).err()));
        }
        if service.is_none() {
            self.next.names.remove(name);
        }
        self.problems.set(Kind::Service, name, 0, problems);
        work.workloads.extend(self.model.members(name).map(Arc::clone));
    }

    fn allot_port(&mut self, name: &Name, port: &v1::ServicePort, before: &[Port]) -> Result<Port, String> {
        let number = super::port(port.port)?;
        let udp = is_udp(port);
        if before.iter().any(|p| p.is(port)) {
            return Err(format!("port {number} is there twice"));
        }
        let full = port_name(name, port.port, udp).into();
        let id = self.ids.assign(IdKind::Service, &full).map_err(|e| e.to_string())?;
        Ok(Port { number, udp, id })
    }

    fn drop_service(&mut self, id: ServiceId, work: &mut Work) {
        self.note_origination(id, None);
        if let Some(old) = self.next.services.remove(&id) {
            self.note_backends(id, &old.backends, &[]);
        }
        self.note_spread(id, None);
        work.dirty.services.insert(id);
    }

    /// Compiles the ports of a service: everything but their endpoints.
    pub(super) fn compile_service(&mut self, name: &Name, work: &mut Work) {
        let Some(service) = self.model.service(name) else { return };
        let external = self.model.external(name);
        let mut vips: Vec<IpAddr> = service.vips.iter().filter_map(|vip| address("", vip).ok()).collect();
        vips.sort_unstable();
        vips.dedup();
        for port in self.ports.get(name).cloned().unwrap_or_default() {
            let Some(spec) = service.ports.iter().find(|p| port.is(p)) else {
                continue;
            };
            let tls = origination(external.as_ref(), port.number);
            let mut new = self.compile_port(name, &service, spec, port, vips.clone());
            if tls.is_some() {
                // Nothing goes to the outside as it is that was to go there in TLS.
                (new.why, new.on_proxy_loss) = (Some(Why::Tls), OnProxyLoss::Refuse);
            }
            if self.note_origination(port.id, tls) {
                work.dirty.services.insert(port.id);
            }
            let old = self.next.services.get(&port.id);
            if old.is_none_or(|old| old.traffic.locality != new.traffic.locality) {
                work.endpoints.insert(port.id, Changed::All);
            }
            if old.is_some_and(|old| **old == new) {
                continue;
            }
            // A connection to a workload's own address is treated as one to the service.
            let treatment = |s: &Service| (s.why, s.on_proxy_loss, s.inbound_proxy, s.protocol);
            if old.is_none_or(|old| treatment(old) != treatment(&new)) {
                work.workloads.extend(self.model.members(name).map(Arc::clone));
                // And so is one to whoever sends here.
                work.dirty.services.extend(self.senders.get(&port.id).into_iter().flatten());
            }
            let before = old.map_or_else(Vec::new, |old| old.backends.clone());
            self.note_backends(port.id, &before, &new.backends);
            work.dirty.services.insert(port.id);
            self.next.services.insert(port.id, Arc::new(new));
        }
    }

    fn compile_port(
        &mut self,
        name: &Name,
        service: &v1::Service,
        spec: &v1::ServicePort,
        port: Port,
        vips: Vec<IpAddr>,
    ) -> Service {
        let Routed { table, consumers, fallback, split, backends } = self.routed(name, port.id, spec);
        let routed = table.is_some() || consumers.is_some();
        let by_name = table.is_some() && spec.protocol() == Protocol::Tls;
        let mut settings = resolve(&self.policies(name), &service.name, &spec.name, &self.model.mesh());
        let http = match spec.protocol() {
            Protocol::Http | Protocol::Auto => true,
            protocol => routed && protocol != Protocol::Tls,
        };
        let resilience = settings.resilience.take().filter(|_| http);
        let asks = resilience.as_ref().is_some_and(|asked| asked.follows() || asked.fault.is_some());
        let limited = resilience.as_ref().is_some_and(|asked| !asked.rates.is_empty());
        let (endpoints, serving) = match self.next.services.get(&port.id) {
            Some(old) => (Arc::clone(&old.endpoints), old.serving),
            None => (Arc::from([]), 0),
        };
        Service {
            id: port.id,
            namespace: self.interned.get(&service.namespace),
            name: service.name.as_str().into(),
            port: port.number,
            port_name: self.interned.get(&spec.name),
            vips,
            protocol: spec.protocol(),
            why: needs_proxy(routed, spec.protocol(), settings.http, asks),
            // Nobody else reads the names by which a TLSRoute tells connections apart.
            on_proxy_loss: if by_name { OnProxyLoss::Refuse } else { settings.on_proxy_loss },
            traffic: settings.traffic,
            resilience,
            // Who is called counts.
            inbound_proxy: (spec.inbound_proxy || limited) && !port.udp,
            endpoints,
            serving,
            routes: table,
            consumers,
            fallback,
            split,
            backends,
            health: health::health(service, spec),
            dns_ttl: service.dns_ttl_seconds,
        }
    }

    /// The endpoints of a service port by its workloads, those that take connections first; and whether its load is
    /// split by levels.
    fn members(&self, old: &Service, name: &str, changed: Changed) -> (Vec<Endpoint>, Vec<Endpoint>, bool) {
        let (mut serving, mut resting) = (Vec::new(), Vec::new());
        let mut levels = old.traffic.locality.is_some();
        // Weights of a split service are those of its parts: it is gathered whole.
        let split = levels || self.next.spreads.contains_key(&old.id);
        let first = |id: &WorkloadId| self.next.workloads.get(id).is_none_or(|held| held.priority == 0);
        let mut add = |workload: &Workload| {
            for port in workload.ports.iter().filter(|port| port.service == old.id) {
                levels |= workload.priority > 0;
                let takes = port.healthy && port.weight > 0 && !workload.addresses.is_empty();
                if takes { &mut serving } else { &mut resting }.push(endpoint(workload, port));
            }
        };
        match changed {
            Changed::Workloads(mut changed) if !split && changed.iter().all(first) => {
                changed.sort_unstable();
                changed.dedup();
                changed.iter().filter_map(|id| self.next.workloads.get(id)).for_each(|held| add(held));
                let stays = |e: &&Endpoint| changed.binary_search(&e.workload).is_err();
                let (served, rested) = old.endpoints.split_at(old.serving);
                serving.extend(served.iter().filter(stays).cloned());
                resting.extend(rested.iter().filter(stays).cloned());
            }
            _ => {
                let members = self.model.members(name);
                members.filter_map(|name| self.workloads.get(&**name)).for_each(|held| add(&held.0));
            }
        }
        (serving, resting, levels)
    }

    /// Brings the endpoints of a service port up to date with its workloads.
    pub(super) fn gather_endpoints(&mut self, id: ServiceId, changed: Changed, work: &mut Work) {
        let Some(old) = self.next.services.get(&id) else { return };
        let name = join(&old.namespace, &old.name);
        let (mut serving, mut resting, levels) = self.members(old, &name, changed);
        // Mostly in order already: what stays is.
        serving.sort_by_key(|e| e.id);
        resting.sort_by_key(|e| e.id);
        let healthy = serving.len();
        let spread = levels.then(|| self.spread(old, &mut serving, &mut resting));
        let problems = if serving.is_empty() { nobody(old, healthy, resting.len()) } else { Vec::new() };
        let count = serving.len();
        serving.append(&mut resting);
        let same = count == old.serving && *serving == *old.endpoints;
        let old = Arc::clone(old);
        self.problems.set(Kind::Service, &name, place(old.port, old.udp()), problems);
        if !self.note_spread(id, spread.as_ref()) && same {
            return;
        }
        let new = Service { endpoints: serving.into(), serving: count, ..Service::clone(&old) };
        self.next.services.insert(id, Arc::new(new));
        work.dirty.services.insert(id);
        // Tables of those that send here hold these endpoints, too.
        work.dirty.services.extend(self.senders.get(&id).into_iter().flatten());
    }

    /// Keeps `senders`: which service ports' connections may end at which.
    fn note_backends(&mut self, id: ServiceId, before: &[ServiceId], after: &[ServiceId]) {
        for backend in before.iter().filter(|b| !after.contains(b)) {
            if let Some(senders) = self.senders.get_mut(backend) {
                senders.remove(&id);
                if senders.is_empty() {
                    self.senders.remove(backend);
                }
            }
        }
        for &backend in after {
            self.senders.entry(backend).or_default().insert(id);
        }
    }
}

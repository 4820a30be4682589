//! Workloads, and the endpoints that they are.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::proto::v1::{self, Health};

use super::external::subject;
use super::{Compiler, Work, address};
use crate::authorise::PolicySet;
use crate::ids::EndpointKey;
use crate::locality::PRIORITIES;
use crate::model::Name;
use crate::mtls::MtlsRules;
use crate::snapshot::{PolicySetId, Service, Transport, Workload, WorkloadId, WorkloadPort};

/// A workload of the snapshot, by its name.
#[derive(Debug)]
pub(super) struct Named(pub Arc<Workload>);

impl Borrow<str> for Named {
    fn borrow(&self) -> &str {
        &self.0.full_name
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.0.full_name == other.0.full_name
    }
}

impl Eq for Named {}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As the string that it is borrowed as.
        (*self.0.full_name).hash(state);
    }
}

/// Why the endpoints of a service port are not what they were.
#[derive(Debug)]
pub(super) enum Changed {
    /// It is new.
    All,
    /// These workloads have come, changed or gone; some may be there twice.
    Workloads(Vec<WorkloadId>),
}

/// What policies say of a workload; all but `mtls` of those of this node alone.
#[derive(Default)]
struct Ruled {
    mtls: MtlsRules,
    policy_set: PolicySetId,
    looks: Option<Arc<PolicySet>>,
    transport: Option<Arc<Transport>>,
}

impl Workload {
    /// What the endpoint at a port of it goes by.
    pub(super) fn key(&self, port: &WorkloadPort) -> EndpointKey {
        EndpointKey { service: port.service, workload: self.id, port: port.port }
    }
}

impl Compiler {
    /// Compiles a workload anew.
    pub(super) fn compile_workload(&mut self, name: &Name, work: &mut Work) {
        let before = self.workloads.take(&**name).map(|held| held.0);
        work.locals |= self.locals.remove(name);
        self.virtual_addresses.remove(name);
        let Some(spec) = self.model.workload(name) else {
            let (kind, of, number) = subject(name);
            self.problems.set(kind, &of, number, Vec::new());
            if let Some(before) = before {
                self.remove_workload(&before, work);
                self.drop_workload(name, &before.service_account);
            }
            return;
        };
        let mut problems = Vec::new();
        // Hold the new names before the old ones go: a name that stays keeps its number.
        let ids = self.hold_workload(name, &spec.namespace, &spec.service_account);
        if let Some(before) = &before {
            self.drop_account(name, &before.service_account);
        }
        match ids {
            Ok(ids) => {
                let local = !spec.node.is_empty() && *spec.node == *self.node;
                let mtls = self.mtls(&spec);
                let mut ruled = Ruled { mtls, ..Ruled::default() };
                if local {
                    work.locals |= self.locals.insert(Name::clone(name));
                    ruled.policy_set = self.policy_set(&spec, work);
                    let set = self.next.policies.get(&ruled.policy_set);
                    ruled.looks = set.filter(|set| set.looks_anywhere()).map(Arc::clone);
                    ruled.transport = self.transport(&spec, ruled.mtls.mode);
                }
                let mut new = Arc::new(self.build(name, ids, ruled, &spec, before.as_deref(), &mut problems));
                self.exchange(before.as_deref(), &new, work);
                match self.next.workloads.get(&ids.workload) {
                    Some(old) if *old == new => new = Arc::clone(old),
                    old => {
                        if old.is_none_or(|old| entries(old) != entries(&new)) {
                            work.dirty.workloads.insert(ids.workload);
                        }
                        self.next.workloads.insert(ids.workload, Arc::clone(&new));
                    }
                }
                self.workloads.insert(Named(new));
            }
            Err(full) => {
                problems.push(full.to_string());
                if let Some(before) = before {
                    self.remove_workload(&before, work);
                }
            }
        }
        let (kind, of, number) = subject(name);
        self.problems.set(kind, &of, number, problems);
    }

    fn remove_workload(&mut self, before: &Workload, work: &mut Work) {
        self.end_members(before, &[], work);
        self.next.workloads.remove(&before.id);
        work.dirty.workloads.insert(before.id);
    }

    fn build(
        &mut self,
        name: &Name,
        ids: super::WorkloadIds,
        ruled: Ruled,
        spec: &v1::Workload,
        before: Option<&Workload>,
        problems: &mut Vec<String>,
    ) -> Workload {
        let addresses = self.addresses(name, spec, problems);
        let mut ports = Vec::with_capacity(spec.services.len());
        for (i, membership) in spec.services.iter().enumerate() {
            match self.port(ids.workload, membership, before) {
                Ok(new) if ports.iter().any(|p: &WorkloadPort| p.endpoint == new.endpoint) => {}
                Ok(new) => ports.push(new),
                Err(why) => problems.push(format!("spec.services[{i}]: {why}")),
            }
        }
        ports.sort_unstable_by_key(|p| (p.port, p.service));
        let outside = self.model.outside(name);
        if outside.is_some() {
            // Who dials its address speaks to it himself.
            for port in &mut ports {
                port.proxy = false;
            }
        }
        Workload {
            id: ids.workload,
            full_name: Name::clone(name),
            service_account: self.interned.get(&spec.service_account),
            node: self.interned.get(&spec.node),
            local: !spec.node.is_empty() && *spec.node == *self.node,
            host_network: spec.host_network,
            hbone: spec.hbone,
            mtls: ruled.mtls,
            outside,
            nearness: self.nearness(spec),
            priority: u8::try_from(spec.priority).unwrap_or(u8::MAX).min(PRIORITIES - 1),
            identity: ids.identity,
            mesh_ns: ids.mesh_ns,
            policy_set: ruled.policy_set,
            looks: ruled.looks,
            transport: ruled.transport,
            ports: ports.into(),
            addresses,
        }
    }

    /// The workload's own addresses. Virtual ones are left out, and noted.
    fn addresses(&mut self, name: &Name, spec: &v1::Workload, problems: &mut Vec<String>) -> Box<[IpAddr]> {
        let mut addresses = Vec::with_capacity(spec.addresses.len());
        let mut left_out = Vec::new();
        for text in &spec.addresses {
            match address("spec.addresses", text) {
                Ok(ip) if addresses.contains(&ip) || left_out.contains(&ip) => {}
                Ok(ip) => match self.foreign_vip(ip, spec) {
                    Some(service) => {
                        problems.push(format!(
                            "spec.addresses: {ip} is a virtual address of service {service}, and left out: give \
                             the workload's own address"
                        ));
                        left_out.push(ip);
                    }
                    None => addresses.push(ip),
                },
                Err(why) => problems.push(why),
            }
        }
        if !left_out.is_empty() {
            self.virtual_addresses.insert(Name::clone(name), left_out.into());
        }
        addresses.into()
    }

    /// What a membership comes to, or why it leads nowhere.
    fn port(
        &mut self,
        workload: WorkloadId,
        membership: &v1::WorkloadService,
        before: Option<&Workload>,
    ) -> Result<WorkloadPort, String> {
        let service_name = [&*membership.namespace, "/", &membership.service].concat();
        let service = self.port_id(&service_name, membership.service_port, membership.udp)?;
        let port = super::port(membership.target_port)?;
        let weight = u16::try_from(membership.weight)
            .map_err(|_| format!("weight {} is not in 0..=65535", membership.weight))?;
        let known = before.filter(|before| before.id == workload).and_then(|before| {
            before.ports.iter().find(|p| p.service == service && p.port == port).map(|p| p.endpoint)
        });
        let assigned =
            known.map_or_else(|| self.ids.assign_endpoint(EndpointKey { service, workload, port }), Ok);
        let endpoint = assigned.map_err(|full| full.to_string())?;
        let of: Option<&Service> = self.next.services.get(&service).map(|service| &**service);
        Ok(WorkloadPort {
            port,
            service,
            endpoint,
            weight,
            healthy: membership.health() == Health::Healthy,
            proxy: of.is_some_and(|s| s.why.is_some()),
            on_proxy_loss: of.map(|s| s.on_proxy_loss).unwrap_or_default(),
            inbound_proxy: of.is_some_and(|s| s.inbound_proxy),
            protocol: of.map(|s| s.protocol).unwrap_or_default(),
        })
    }

    /// Ends the endpoints that are gone and notes whose endpoints change.
    fn exchange(&mut self, before: Option<&Workload>, after: &Workload, work: &mut Work) {
        if let Some(before) = before {
            self.end_members(before, &after.ports, work);
        }
        let dialled = |w: &Workload| {
            let at = (w.id, w.v4(), w.v6(), w.local, w.nearness, w.priority);
            (at, w.policy_set, w.hbone, w.mtls.clone())
        };
        let moved = before.is_none_or(|before| dialled(before) != dialled(after));
        let chosen = |p: &WorkloadPort| (p.endpoint, p.weight, p.healthy);
        let same = |p: &WorkloadPort| {
            before.is_some_and(|before| before.ports.iter().any(|b| chosen(b) == chosen(p)))
        };
        for port in after.ports.iter().filter(|port| moved || !same(port)) {
            work.changed(port.service, after.id);
        }
    }

    fn end_members(&mut self, before: &Workload, after: &[WorkloadPort], work: &mut Work) {
        for port in before.ports.iter().filter(|p| after.iter().all(|a| a.endpoint != p.endpoint)) {
            self.ids.end_endpoint(before.key(port));
            work.changed(port.service, before.id);
        }
    }
}

/// What its own entries are made of: they say nothing of weights.
fn entries(workload: &Workload) -> Workload {
    let mut workload = workload.clone();
    workload.ports.iter_mut().for_each(|port| (port.weight, port.healthy) = (0, true));
    workload
}

impl Work {
    /// A workload's endpoints of a service port have come, changed or gone.
    fn changed(&mut self, service: u32, workload: WorkloadId) {
        let changed = self.endpoints.entry(service).or_insert_with(|| Changed::Workloads(Vec::new()));
        if let Changed::Workloads(all) = changed {
            all.push(workload);
        }
    }
}

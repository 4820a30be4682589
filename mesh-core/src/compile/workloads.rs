//! Workloads, and the endpoints that they are.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::proto::v1::{self, Health};

use super::services::port_name;
use super::{Compiler, Work, address};
use crate::ids::IdKind;
use crate::locality::PRIORITIES;
use crate::model::{Kind, Name, join};
use crate::snapshot::{EndpointId, PolicySetId, ServiceId, Transport, Workload, WorkloadPort};

/// What is kept of a compiled workload.
#[derive(Debug)]
pub(super) struct Held {
    /// As it stands in the snapshot.
    pub workload: Arc<Workload>,
    pub members: Box<[Member]>,
    /// Addresses that were left out, because a service has them.
    pub virtual_addresses: Box<[IpAddr]>,
}

/// What policies say of a workload of this node.
#[derive(Default)]
struct Ruled {
    policy_set: PolicySetId,
    transport: Option<Arc<Transport>>,
}

/// One membership that leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub service: ServiceId,
    pub endpoint: EndpointId,
    pub port: u16,
    pub weight: u32,
    pub healthy: bool,
    /// Of its endpoint id; the same copy as in the table of ids.
    pub name: Name,
}

impl Compiler {
    /// Compiles a workload anew.
    pub(super) fn compile_workload(&mut self, name: &Name, work: &mut Work) {
        let before = self.workloads.remove(name);
        work.locals |= self.locals.remove(name);
        let Some(spec) = self.model.workload(name) else {
            self.problems.set(Kind::Workload, name, 0, Vec::new());
            if let Some(before) = before {
                self.remove_workload(name, &before, work);
            }
            return;
        };
        let mut problems = Vec::new();
        // Hold the new names before the old ones go: a name that stays keeps its number.
        let ids = self.hold_workload(name, &spec.namespace, &spec.service_account);
        if let Some(before) = &before {
            self.drop_workload(name, &before.workload.service_account);
        }
        match ids {
            Ok(ids) => {
                let local = !spec.node.is_empty() && *spec.node == *self.node;
                let ruled = if local {
                    work.locals |= self.locals.insert(Name::clone(name));
                    Ruled { policy_set: self.policy_set(&spec, work), transport: self.transport(&spec) }
                } else {
                    Ruled::default()
                };
                let mut held = self.build(name, ids, ruled, &spec, before.as_ref(), &mut problems);
                self.exchange(before.as_ref(), &held, work);
                match self.next.workloads.get(&ids.workload) {
                    Some(old) if *old == held.workload => held.workload = Arc::clone(old),
                    _ => {
                        self.next.workloads.insert(ids.workload, Arc::clone(&held.workload));
                        work.dirty.workloads.insert(ids.workload);
                    }
                }
                self.workloads.insert(Name::clone(name), held);
            }
            Err(full) => {
                problems.push(full.to_string());
                if let Some(before) = before {
                    self.end_members(&before.members, &[], work);
                    self.next.workloads.remove(&before.workload.id);
                    work.dirty.workloads.insert(before.workload.id);
                }
            }
        }
        self.problems.set(Kind::Workload, name, 0, problems);
    }

    fn remove_workload(&mut self, name: &Name, before: &Held, work: &mut Work) {
        self.end_members(&before.members, &[], work);
        self.drop_workload(name, &before.workload.service_account);
        self.next.workloads.remove(&before.workload.id);
        work.dirty.workloads.insert(before.workload.id);
    }

    fn build(
        &mut self,
        name: &Name,
        ids: super::WorkloadIds,
        ruled: Ruled,
        spec: &v1::Workload,
        before: Option<&Held>,
        problems: &mut Vec<String>,
    ) -> Held {
        let (mut addresses, mut virtual_addresses): (Vec<IpAddr>, Vec<IpAddr>) = Default::default();
        for text in &spec.addresses {
            match address("spec.addresses", text) {
                Ok(ip) if addresses.contains(&ip) || virtual_addresses.contains(&ip) => {}
                Ok(ip) => match self.foreign_vip(ip, spec) {
                    Some(service) => {
                        problems.push(format!(
                            "spec.addresses: {ip} is a virtual address of service {service}, and left out: give \
                             the workload's own address"
                        ));
                        virtual_addresses.push(ip);
                    }
                    None => addresses.push(ip),
                },
                Err(why) => problems.push(why),
            }
        }
        let members = self.members(spec, before, problems);
        let ports = members.iter().filter_map(|m| {
            let service = self.next.services.get(&m.service)?;
            Some(WorkloadPort {
                port: m.port,
                service: m.service,
                endpoint: m.endpoint,
                proxy: service.why.is_some(),
                on_proxy_loss: service.on_proxy_loss,
                inbound_proxy: service.inbound_proxy,
                protocol: service.protocol,
            })
        });
        let mut ports: Vec<WorkloadPort> = ports.collect();
        ports.sort_unstable_by_key(|p| (p.port, p.service));
        let workload = Workload {
            id: ids.workload,
            full_name: Name::clone(name),
            service_account: self.interned.get(&spec.service_account),
            node: self.interned.get(&spec.node),
            local: !spec.node.is_empty() && *spec.node == *self.node,
            host_network: spec.host_network,
            nearness: self.nearness(spec),
            priority: u8::try_from(spec.priority).unwrap_or(u8::MAX).min(PRIORITIES - 1),
            identity: ids.identity,
            mesh_ns: ids.mesh_ns,
            policy_set: ruled.policy_set,
            transport: ruled.transport,
            ports: ports.into(),
            addresses: addresses.into(),
        };
        Held {
            workload: Arc::new(workload),
            members: members.into(),
            virtual_addresses: virtual_addresses.into(),
        }
    }

    /// The memberships that lead somewhere; names the others.
    fn members(
        &mut self,
        spec: &v1::Workload,
        before: Option<&Held>,
        problems: &mut Vec<String>,
    ) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::with_capacity(spec.services.len());
        for (i, membership) in spec.services.iter().enumerate() {
            match self.member(spec, membership, before) {
                Ok(new) if members.iter().any(|m| m.endpoint == new.endpoint) => {}
                Ok(new) => members.push(new),
                Err(why) => problems.push(format!("spec.services[{i}]: {why}")),
            }
        }
        members
    }

    fn member(
        &mut self,
        spec: &v1::Workload,
        membership: &v1::WorkloadService,
        before: Option<&Held>,
    ) -> Result<Member, String> {
        let service_name = join(&membership.namespace, &membership.service);
        let service = self.port_id(&service_name, membership.service_port, membership.udp)?;
        let port = super::port(membership.target_port)?;
        let weight = membership.weight;
        if weight > 65_535 {
            return Err(format!("weight {weight} is not in 0..=65535"));
        }
        let healthy = membership.health() == Health::Healthy;
        let known = before.and_then(|b| b.members.iter().find(|m| m.service == service && m.port == port));
        if let Some(known) = known {
            return Ok(Member { weight, healthy, ..known.clone() });
        }
        let service_port = port_name(&service_name, membership.service_port, membership.udp);
        let name = format!("{service_port}@{}/{}:{port}", spec.namespace, spec.name).into();
        let endpoint = self.ids.assign(IdKind::Endpoint, &name).map_err(|full| full.to_string())?;
        Ok(Member { service, endpoint, port, weight, healthy, name })
    }

    /// Ends the endpoints that are gone and notes whose endpoints change.
    fn exchange(&mut self, before: Option<&Held>, after: &Held, work: &mut Work) {
        let members = before.map_or(&[][..], |b| &b.members);
        self.end_members(members, &after.members, work);
        let dialled = |w: &Workload| (w.id, w.v4(), w.v6(), w.local, w.policy_set, w.nearness, w.priority);
        let moved = before.is_none_or(|before| dialled(&before.workload) != dialled(&after.workload));
        let changed = after.members.iter().filter(|m| moved || !members.contains(m));
        work.endpoints.extend(changed.map(|m| m.service));
    }

    fn end_members(&mut self, before: &[Member], after: &[Member], work: &mut Work) {
        for member in before.iter().filter(|m| after.iter().all(|a| a.name != m.name)) {
            self.ids.end(IdKind::Endpoint, &member.name);
            work.endpoints.insert(member.service);
        }
    }
}

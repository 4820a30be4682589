//! The planner against maps that are plain collections, fed by the compiler.

mod external;
mod golden;
mod limits;
mod locality;
mod mtls;
mod policies;
mod property;
mod restart;
mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mesh_common::decide;
use mesh_common::record::{
    Endpoint, PolicyCidr, PolicyKey, Rules, Service, ServiceKey, Workload, WorkloadKey,
};

use super::{Capacities, LocalSlots, MapOp, Plan, View, plan};
use crate::compile::tests::{apply, compiler};
use crate::compile::{Compiler, Dirty};
use crate::model::{Kind, Resource};
use crate::snapshot::WorkloadId;

/// The maps as the kernel would hold them.
#[derive(Clone, Debug)]
struct Maps {
    services: BTreeMap<ServiceKey, Service>,
    workloads: BTreeMap<WorkloadKey, Workload>,
    slots: Vec<Option<Endpoint>>,
    policy: BTreeMap<PolicyKey, u32>,
    cidrs: BTreeMap<(u32, PolicyCidr), u32>,
    rules: BTreeMap<u32, Rules>,
    epoch: u64,
}

impl Maps {
    fn new(capacities: Capacities) -> Self {
        Self {
            services: BTreeMap::new(),
            workloads: BTreeMap::new(),
            slots: vec![None; capacities.endpoints as usize],
            policy: BTreeMap::new(),
            cidrs: BTreeMap::new(),
            rules: BTreeMap::new(),
            epoch: 0,
        }
    }

    fn execute(&mut self, op: &MapOp) {
        match op {
            MapOp::PutSlots { first, slots } => {
                for (slot, i) in slots.iter().zip(*first as usize..) {
                    self.slots[i] = Some(*slot);
                }
            }
            MapOp::PutRules { service, rules } => drop(self.rules.insert(*service, *rules)),
            MapOp::PutWorkload { key, value } => drop(self.workloads.insert(*key, *value)),
            MapOp::PutService { key, value } => drop(self.services.insert(*key, *value)),
            MapOp::DelService { key } => assert!(self.services.remove(key).is_some(), "{key:?}"),
            MapOp::DelWorkload { key } => assert!(self.workloads.remove(key).is_some(), "{key:?}"),
            MapOp::PutPolicy { key, value } => assert_eq!(self.policy.insert(*key, *value), None),
            MapOp::PutPolicyCidr { length, prefix, value } => {
                assert_eq!(self.cidrs.insert((*length, *prefix), *value), None);
            }
            MapOp::DelPolicy { key } => assert!(self.policy.remove(key).is_some(), "{key:?}"),
            MapOp::DelPolicyCidr { length, prefix } => {
                assert!(self.cidrs.remove(&(*length, *prefix)).is_some(), "{prefix:?}");
            }
            MapOp::SetEpoch(epoch) => self.epoch = *epoch,
        }
    }

    /// The slots of a range as a reader with this entry sees them.
    fn read(&self, entry: &Service, first: u32, len: u32) -> Vec<Option<Endpoint>> {
        let range = first as usize..(first + len) as usize;
        self.slots[range].iter().map(|slot| slot.filter(|slot| decide::belongs(slot, entry))).collect()
    }

    /// Endpoint → probability in a table; panics where a slot is not the entry's.
    fn shares(&self, entry: &Service, first: u32, len: u32) -> BTreeMap<u32, f64> {
        let slots: Vec<Endpoint> =
            self.read(entry, first, len).into_iter().map(|slot| slot.expect("the entry's own")).collect();
        let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
        for slot in &slots {
            let own = (f64::from(slot.threshold) + 1.0) / 4_294_967_296.0;
            *shares.entry(slot.endpoint).or_default() += own / f64::from(len);
            let alias = slots[slot.alias as usize].endpoint;
            *shares.entry(alias).or_default() += (1.0 - own) / f64::from(len);
        }
        shares
    }
}

/// A node: compiler, planner and maps.
struct Node {
    compiler: Compiler,
    view: View,
    maps: Maps,
    locals: HashMap<WorkloadId, LocalSlots>,
    now: Duration,
    full: bool,
}

impl Node {
    fn new(capacities: Capacities) -> Self {
        Self {
            compiler: compiler(),
            view: View::new(capacities),
            maps: Maps::new(capacities),
            locals: HashMap::new(),
            now: Duration::from_secs(100),
            full: true,
        }
    }

    fn small(services: u32, workloads: u32, endpoints: u32) -> Self {
        Self::new(Capacities { services, workloads, endpoints, ..Capacities::default() })
    }

    fn change(&mut self, upserts: Vec<Resource>, removes: &[(Kind, &str)]) -> Plan {
        let out = apply(&mut self.compiler, upserts, removes);
        self.plan(&out.dirty)
    }

    fn put(&mut self, upserts: Vec<Resource>) -> Plan {
        self.change(upserts, &[])
    }

    fn plan(&mut self, dirty: &Dirty) -> Plan {
        let snapshot = self.compiler.snapshot();
        let plan = plan(&mut self.view, &snapshot, dirty, &self.locals, self.full, self.now);
        for op in &plan.ops {
            self.maps.execute(op);
        }
        plan
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// The entry of a virtual address.
    fn entry(&self, vip: &str, port: u16) -> Service {
        let addr = mesh_common::addr::from_ip(vip.parse().unwrap());
        let found = self.maps.services.iter().find(|(k, _)| k.addr == addr && k.port_be == port.to_be());
        *found.unwrap_or_else(|| panic!("no entry for {vip}:{port}")).1
    }

    /// Endpoint → probability for an entry's own table, and for its fallback.
    fn tables(&self, entry: &Service) -> (BTreeMap<u32, f64>, BTreeMap<u32, f64>) {
        (
            self.maps.shares(entry, entry.table, entry.table_len),
            self.maps.shares(entry, entry.fallback, entry.fallback_len),
        )
    }

    /// The entry of a workload's address.
    fn direct(&self, address: &str, port: u16) -> Workload {
        let addr = mesh_common::addr::from_ip(address.parse().unwrap());
        let found = self.maps.workloads.iter().find(|(k, _)| k.addr == addr && k.port_be == port.to_be());
        *found.unwrap_or_else(|| panic!("no entry for {address}:{port}")).1
    }
}

fn problems(plan: &Plan) -> Vec<String> {
    plan.conditions.iter().map(|c| format!("{}: {}", c.subject, c.problem)).collect()
}

//! Typed access to the maps.

use std::borrow::BorrowMut;
use std::collections::{HashMap as StdHashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use aya::maps::lpm_trie::{self, LpmTrie};
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf, SockMap,
};
use mesh_common::flows;
use mesh_common::maps::{self as names, Spec};
use mesh_common::record::{
    Denial, Endpoint, Enrolled, EnrolledKey, FlowKey, FlowSource, Load, PolicyCidr, PolicyKey, Rules,
    Service, ServiceKey, SynKey, Totals, TotalsHome, TotalsKey, Workload, WorkloadKey,
};
use mesh_common::sender::Sender;
use mesh_common::splice::End;
use mesh_common::transport::{Asked, AskedKey, ExcludeCidr, ExcludeKey, enrolled};
use mesh_common::udp::{Sticky, StickyKey};
use mesh_common::verdict::Verdict;
use mesh_core::plan::{Adopted, MapOp};
use parking_lot::Mutex;

use super::error::{ApplyError, KernelError, LoadError};
use super::events::Events;
use super::homes::Homed;
use super::inbound::Inbound;
use super::load::{self, Attached, FlowTelemetry, LoadOptions, Loaded};
use super::open::Flows;
use super::splice::{NOBODY, Splice};
use super::typed::{descriptor, homed, mapped, max_entries, of_map, typed};
use super::workloads;
use crate::sys::{Mapped, monotonic_ns};

/// Flows under way, see [`flows`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowsHeld {
    /// In the slot of their cookie.
    pub home: u32,
    /// In the hash, because their slot was taken.
    pub abroad: u32,
}

/// The programs and maps of this node. `Send`, `Sync`; share it.
pub struct Kernel {
    pub(super) enrolled: Mutex<Homed<EnrolledKey, Enrolled>>,
    pub(super) services: Mutex<Homed<ServiceKey, Service>>,
    pub(super) workloads: Mutex<HashMap<MapData, WorkloadKey, Workload>>,
    /// The same map, for many entries at once.
    pub(super) workloads_fd: OwnedFd,
    policy: Mutex<HashMap<MapData, PolicyKey, u32>>,
    policy_cidrs: Mutex<LpmTrie<MapData, PolicyCidr, u32>>,
    pub(super) exclude: Mutex<HashMap<MapData, ExcludeKey, u32>>,
    pub(super) exclude_cidrs: Mutex<LpmTrie<MapData, ExcludeCidr, u32>>,
    sources: Mutex<HashMap<MapData, FlowKey, FlowSource>>,
    listeners: Mutex<SockMap<MapData>>,
    /// Slots of it that hold a socket: nobody can ask the map.
    pub(super) listening: Mutex<HashSet<u32>>,
    epoch: Mutex<Array<MapData, u64>>,
    totals: Mutex<PerCpuHashMap<MapData, TotalsKey, Totals>>,
    totals_homes: Mutex<PerCpuArray<MapData, TotalsHome>>,
    verdicts: Mutex<PerCpuArray<MapData, u64>>,
    pub(super) endpoints: Mapped<Endpoint>,
    pub(super) load: Mapped<Load>,
    pub(super) service_load: Mapped<Load>,
    pub(super) rules: Mapped<Rules>,
    pub(super) heartbeat: Mapped<u64>,
    pub(super) flows: Flows,
    pub(super) sticky: Mutex<HashMap<MapData, StickyKey, Sticky>>,
    pub(super) asked: Mutex<HashMap<MapData, AskedKey, Asked>>,
    pub(super) senders: Mutex<HashMap<MapData, FlowKey, Sender>>,
    pub(super) splice_ends: Mutex<HashMap<MapData, SynKey, End>>,
    pub(super) captured: OwnedFd,
    pub(super) inbound: Mutex<Inbound>,
    pub(super) pins: PathBuf,
    sizes: StdHashMap<&'static str, u32>,
    pub(super) attached: Attached,
    pub(super) splice: Splice,
}

impl Kernel {
    /// Loads or adopts, attaches, maps.
    pub fn load(options: &LoadOptions) -> Result<Self, LoadError> {
        let Loaded { mut ebpf, attached, inbound, pins } = load::load(options)?;
        let mut sizes = StdHashMap::new();
        let mut take = |spec: Spec| -> Result<Map, LoadError> {
            let map = ebpf
                .take_map(spec.name)
                .ok_or_else(|| LoadError::Object(format!("map {} is not in the object", spec.name)))?;
            sizes.insert(spec.name, max_entries(&map).map_err(|e| of_map(spec, &e))?);
            Ok(map)
        };
        let captured = descriptor(names::CAPTURED, &take(names::CAPTURED)?)?;
        let splice = Splice::new(descriptor(names::SPLICE, &take(names::SPLICE)?)?);
        let workloads = take(names::WORKLOADS)?;
        let workloads_fd = descriptor(names::WORKLOADS, &workloads)?;
        let workloads = typed(names::WORKLOADS, workloads)?;
        let asking = all(names::WORKLOADS, &workloads).map_err(|e| of_map(names::WORKLOADS, &e))?;
        let policed = typed(names::POLICED, take(names::POLICED)?)?;
        let inbound = Inbound::new(inbound, policed, &asking).map_err(|e| of_map(names::POLICED, &e))?;
        let kernel = Self {
            enrolled: homed((names::ENROLLED, names::ENROLLED_HOMES), &mut take)?,
            services: homed((names::SERVICES, names::SERVICE_HOMES), &mut take)?,
            workloads: Mutex::new(workloads),
            workloads_fd,
            policy: Mutex::new(typed(names::POLICY, take(names::POLICY)?)?),
            policy_cidrs: Mutex::new(typed(names::POLICY_CIDRS, take(names::POLICY_CIDRS)?)?),
            exclude: Mutex::new(typed(names::EXCLUDE, take(names::EXCLUDE)?)?),
            exclude_cidrs: Mutex::new(typed(names::EXCLUDE_CIDRS, take(names::EXCLUDE_CIDRS)?)?),
            sources: Mutex::new(typed(names::FLOW_SRC, take(names::FLOW_SRC)?)?),
            listeners: Mutex::new(typed(names::LISTENERS, take(names::LISTENERS)?)?),
            listening: Mutex::default(),
            epoch: Mutex::new(typed(names::EPOCH, take(names::EPOCH)?)?),
            totals: Mutex::new(with_overflow(typed(names::FLOW_TOTALS, take(names::FLOW_TOTALS)?)?)),
            totals_homes: Mutex::new(typed(names::TOTALS_HOMES, take(names::TOTALS_HOMES)?)?),
            verdicts: Mutex::new(typed(names::VERDICTS, take(names::VERDICTS)?)?),
            endpoints: mapped(names::ENDPOINTS, &take(names::ENDPOINTS)?)?,
            load: mapped(names::LOAD, &take(names::LOAD)?)?,
            service_load: mapped(names::SERVICE_LOAD, &take(names::SERVICE_LOAD)?)?,
            rules: mapped(names::RULES, &take(names::RULES)?)?,
            flows: Flows {
                homes: mapped(names::FLOW_HOMES, &take(names::FLOW_HOMES)?)?,
                at_home: mapped(names::FLOWS, &take(names::FLOWS)?)?,
                abroad: Mutex::new(typed(names::FLOWS_ABROAD, take(names::FLOWS_ABROAD)?)?),
                namespaces: Mutex::default(),
            },
            sticky: Mutex::new(typed(names::UDP_STICKY, take(names::UDP_STICKY)?)?),
            heartbeat: mapped(names::HEARTBEAT, &take(names::HEARTBEAT)?)?,
            asked: Mutex::new(typed(names::UDP_ASKED, take(names::UDP_ASKED)?)?),
            senders: Mutex::new(typed(names::UDP_SENDERS, take(names::UDP_SENDERS)?)?),
            captured,
            inbound: Mutex::new(inbound),
            pins,
            splice_ends: Mutex::new(typed(names::SPLICE_ENDS, take(names::SPLICE_ENDS)?)?),
            sizes,
            attached,
            splice,
        };
        kernel.forget_trial();
        Ok(kernel)
    }

    /// Were pinned maps of an earlier agent found?
    pub fn adopted(&self) -> bool {
        self.attached.adopted
    }

    /// What the programs note of flows.
    pub fn flow_telemetry(&self) -> FlowTelemetry {
        self.attached.telemetry
    }

    /// Entries that a map has room for: a pinned map keeps the size it was made with.
    pub fn capacity(&self, spec: Spec) -> u32 {
        self.sizes.get(spec.name).copied().unwrap_or(spec.capacity)
    }

    /// Executes a plan in its order; stops at the first failure.
    pub fn apply(&self, ops: &[MapOp]) -> Result<(), ApplyError> {
        let mut left = ops;
        while let Some((op, others)) = left.split_first() {
            let batch = workloads::batch(left);
            if batch.is_empty() {
                self.apply_one(op)?;
                left = others;
            } else {
                self.put_workloads(&batch)?;
                left = &left[batch.len()..];
            }
        }
        Ok(())
    }

    fn apply_one(&self, op: &MapOp) -> Result<(), ApplyError> {
        match op {
            MapOp::PutSlots { first, slots } => self.put_slots(*first, slots),
            MapOp::PutRules { service, rules } => self.put_rules(*service, *rules),
            MapOp::PutService { key, value } => {
                let put = self.services.lock().put(key, value, Instant::now());
                put.map_err(|e| apply_error(names::SERVICES, e))
            }
            MapOp::DelService { key } => {
                let removed = self.services.lock().remove(key, Instant::now());
                removed.map_err(|e| apply_error(names::SERVICES, e))
            }
            MapOp::PutWorkload { key, value } => self.put_workloads(&[(*key, *value)]),
            MapOp::DelWorkload { key } => self.del_workload(key),
            MapOp::PutPolicy { key, value } => put(names::POLICY, &mut self.policy.lock(), key, value),
            MapOp::DelPolicy { key } => del(names::POLICY, &mut self.policy.lock(), key),
            MapOp::PutPolicyCidr { length, prefix, value } => {
                let key = lpm_trie::Key::new(*length, *prefix);
                let done = self.policy_cidrs.lock().insert(&key, value, 0);
                done.map_err(|e| apply_error(names::POLICY_CIDRS, e))
            }
            MapOp::DelPolicyCidr { length, prefix } => {
                let key = lpm_trie::Key::new(*length, *prefix);
                let done = self.policy_cidrs.lock().remove(&key);
                ignore_missing(done).map_err(|e| apply_error(names::POLICY_CIDRS, e))
            }
            MapOp::SetEpoch(epoch) => {
                self.epoch.lock().set(0, epoch, 0).map_err(|e| apply_error(names::EPOCH, e))
            }
        }
    }

    /// What the planner's maps hold, for one that takes over.
    pub fn held(&self) -> Result<Adopted, KernelError> {
        let policy = all(names::POLICY, &self.policy.lock())?;
        let cidrs: Result<Vec<_>, MapError> = self
            .policy_cidrs
            .lock()
            .keys()
            .map(|key| key.map(|key| (key.prefix_len(), key.data())))
            .collect();
        Ok(Adopted {
            services: self.services.lock().all().map_err(|e| walk(names::SERVICES, e))?,
            workloads: all(names::WORKLOADS, &self.workloads.lock())?,
            policy: policy.into_iter().map(|(key, _)| key).collect(),
            policy_cidrs: cidrs.map_err(|e| KernelError::new("map POLICY_CIDRS, walk", e))?,
        })
    }

    /// Who opened this connection, where its destination has asked for the proof.
    pub fn source_of(&self, flow: &FlowKey) -> Option<FlowSource> {
        self.sources.lock().get(flow, 0).ok()
    }

    /// The epoch that the maps hold; 0: none yet.
    pub fn epoch(&self) -> Result<u64, KernelError> {
        self.epoch.lock().get(&0, 0).map_err(|e| KernelError::new("map EPOCH, read", e))
    }

    /// Makes a workload part of the mesh: from now on its connections are decided.
    /// What an earlier agent has said of them stays ([`Kernel::set_transport`]).
    pub fn enrol(&self, key: EnrolledKey, value: &Enrolled) -> Result<(), KernelError> {
        let mut value = *value;
        let mut enrolled = self.enrolled.lock();
        let held = enrolled.all().map_err(|e| walk(names::ENROLLED, e))?;
        let before = held.into_iter().find(|(held, _)| *held == key);
        if let Some((_, before)) = before.filter(|(_, before)| before.workload == value.workload) {
            // But for splicing, which this agent has yet to try.
            (value.flags, value.budget_pending) = (before.flags & !enrolled::SPLICE, before.budget_pending);
        }
        let put = enrolled.put(&key, &value, Instant::now());
        put.map_err(|e| KernelError::new("map ENROLLED, insert", e))
    }

    /// Ends that. Connections under way go on.
    pub fn unenrol(&self, key: EnrolledKey) -> Result<(), KernelError> {
        let removed = self.enrolled.lock().remove(&key, Instant::now());
        removed.map_err(|e| KernelError::new("map ENROLLED, remove", e))
    }

    /// Who is enrolled.
    pub fn enrolled(&self) -> Result<Vec<(EnrolledKey, Enrolled)>, KernelError> {
        let mut all = self.enrolled.lock().all().map_err(|e| walk(names::ENROLLED, e))?;
        all.retain(|(_, value)| value.workload != NOBODY);
        Ok(all)
    }

    /// Lets what has come or changed a while ago into the arrays in front of the hashes, see
    /// [`mesh_common::homes`]. To be called several times a second; nothing is wrong without.
    pub fn move_in(&self) {
        let now = Instant::now();
        self.enrolled.lock().move_in(now);
        self.services.lock().move_in(now);
    }

    /// Puts a listening socket into its slot and marks it: from now on the programs hand it connections.
    pub fn set_listener(&self, slot: u32, workload: u32, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.mark_listener(socket, workload)
            .map_err(|e| KernelError::new("map CAPTURED, mark a listener", e))?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        self.listeners
            .lock()
            .set(slot, &fd, 0)
            .map_err(|e| KernelError::new(format!("map LISTENERS, slot {slot}"), e))?;
        self.listening.lock().insert(slot);
        Ok(())
    }

    /// Empties a slot.
    pub fn clear_listener(&self, slot: u32) -> Result<(), KernelError> {
        let cleared = self.listeners.lock().clear_index(&slot);
        self.listening.lock().remove(&slot);
        ignore_missing(cleared).map_err(|e| KernelError::new(format!("map LISTENERS, slot {slot}"), e))
    }

    /// Says that a worker lives. `false`: there is no such word.
    pub fn beat(&self, worker: u32) -> bool {
        self.heartbeat.set(worker, monotonic_ns())
    }

    /// Says that a worker does not live any more: at an orderly end nobody has to wait for it.
    pub fn stop_beating(&self, worker: u32) {
        let _ = self.heartbeat.set(worker, 0);
    }

    /// Counters of an endpoint; zeros beyond the map.
    pub fn load_of(&self, endpoint: u32) -> Load {
        self.load.get(endpoint).unwrap_or_default()
    }

    /// Counters of a service; zeros beyond the map.
    pub fn service_load_of(&self, service: u32) -> Load {
        self.service_load.get(service).unwrap_or_default()
    }

    /// Zeroes an endpoint's counters, for an id that is given out again.
    pub fn reset_load(&self, endpoint: u32) {
        let _ = self.load.set(endpoint, Load::default());
    }

    /// Counts by verdict, in the order of their numbers.
    pub fn verdicts(&self) -> Result<Vec<u64>, KernelError> {
        let verdicts = self.verdicts.lock();
        (0..names::VERDICTS.capacity)
            .map(|i| verdicts.get(&i, 0).map(|cpus| cpus.iter().sum()))
            .collect::<Result<_, _>>()
            .map_err(|e| KernelError::new("map VERDICTS, read", e))
    }

    /// How often the programs decided this.
    pub fn verdict(&self, verdict: Verdict) -> Result<u64, KernelError> {
        let counts = self.verdicts.lock().get(&(verdict as u32), 0);
        counts.map(|cpus| cpus.iter().sum()).map_err(|e| KernelError::new("map VERDICTS, read", e))
    }

    /// How many flows are under way, and where they live.
    pub fn flows(&self) -> FlowsHeld {
        let mut held = FlowsHeld::default();
        let homes = &self.flows.homes;
        for word in (0..homes.len()).filter_map(|slot| homes.get(slot)) {
            held.home += u32::from(!flows::lives(word, 0));
            held.abroad += flows::abroad(word) as u32;
        }
        held
    }

    /// Exact counters of all flows, merged over the CPUs, and over homes and hash.
    pub fn totals(&self) -> Result<Vec<(TotalsKey, Totals)>, KernelError> {
        let totals = self.totals.lock();
        let mut out: StdHashMap<TotalsKey, Totals> = StdHashMap::new();
        for key in totals.keys() {
            let key = key.map_err(|e| KernelError::new("map FLOW_TOTALS, walk", e))?;
            let mut sum = Totals::default();
            for t in totals.get(&key, 0).map_err(|e| KernelError::new("map FLOW_TOTALS, read", e))?.iter() {
                sum += *t;
            }
            *out.entry(key).or_default() += sum;
        }
        drop(totals);
        let homes = self.totals_homes.lock();
        for slot in 0..self.capacity(names::TOTALS_HOMES) {
            let failed = |e| KernelError::new("map TOTALS_HOMES, read", e);
            for home in homes.get(&slot, 0).map_err(failed)?.iter() {
                if home.state == TotalsHome::TAKEN {
                    *out.entry(home.key).or_default() += home.totals;
                }
            }
        }
        Ok(out.into_iter().collect())
    }

    /// The ring of refusals by policy; one reader at a time.
    pub fn denials(&self) -> Result<Denials, KernelError> {
        let path = self.pins.join("maps").join(names::DENIALS.name);
        let failed = |e: MapError| KernelError::new("map DENIALS, open", e);
        let data = MapData::from_pin(path).map_err(failed)?;
        Ok(Denials(RingBuf::try_from(Map::RingBuf(data)).map_err(failed)?))
    }

    /// The ring of ended flows. Call it inside a tokio runtime; one reader at a time.
    pub fn events(&self) -> Result<Events, KernelError> {
        let path = self.pins.join("maps").join(names::FLOW_EVENTS.name);
        let failed =
            |e: Box<dyn std::error::Error + Send + Sync>| KernelError::new("map FLOW_EVENTS, open", e);
        let data = MapData::from_pin(path).map_err(|e| failed(e.into()))?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(|e| failed(e.into()))?;
        Events::new(ring).map_err(|e| failed(e.into()))
    }
}

/// The reading end of `DENIALS`.
pub struct Denials(RingBuf<MapData>);

/// The records that wait.
impl Iterator for Denials {
    type Item = Denial;

    fn next(&mut self) -> Option<Denial> {
        let item = self.0.next()?;
        crate::sys::read_pod(&item)
    }
}

/// Keeps a place for what finds no room: the programs could not make it when it is needed.
fn with_overflow(
    mut totals: PerCpuHashMap<MapData, TotalsKey, Totals>,
) -> PerCpuHashMap<MapData, TotalsKey, Totals> {
    const NOEXIST: u64 = 1;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error);
    let zeros = cpus.and_then(|cpus| PerCpuValues::try_from(vec![Totals::default(); cpus]));
    let kept = zeros.map(|zeros| totals.insert(TotalsKey::OVERFLOW, zeros, NOEXIST));
    match kept {
        Ok(Ok(())) => {}
        Ok(Err(MapError::SyscallError(e))) if e.io_error.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => {
            tracing::warn!(?other, "flow totals have no place for what finds no room: it is not counted");
        }
    }
    totals
}

fn apply_error(spec: Spec, e: MapError) -> ApplyError {
    let full = matches!(&e, MapError::SyscallError(s) if s.io_error.raw_os_error() == Some(libc::E2BIG));
    ApplyError { map: spec.name, full, source: Box::new(e) }
}

pub(super) fn put<K: aya::Pod, V: aya::Pod>(
    spec: Spec,
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    value: &V,
) -> Result<(), ApplyError> {
    map.insert(key, value, 0).map_err(|e| apply_error(spec, e))
}

pub(super) fn del<K: aya::Pod, V: aya::Pod>(
    spec: Spec,
    map: &mut HashMap<MapData, K, V>,
    key: &K,
) -> Result<(), ApplyError> {
    ignore_missing(map.borrow_mut().remove(key)).map_err(|e| apply_error(spec, e))
}

pub(super) fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(s)) if s.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // Clearing an empty slot of a socket map.
        Err(MapError::SyscallError(s)) if s.io_error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

pub(super) fn all<K: aya::Pod, V: aya::Pod>(
    spec: Spec,
    map: &HashMap<MapData, K, V>,
) -> Result<Vec<(K, V)>, KernelError> {
    map.iter().collect::<Result<_, _>>().map_err(|e| walk(spec, e))
}

fn walk(spec: Spec, error: MapError) -> KernelError {
    KernelError::new(format!("map {}, walk", spec.name), error)
}

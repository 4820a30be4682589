//! Puts in force what transport policies say of the workloads of this node: exclusions, UDP, budgets, splicing; and
//! has noted whom workloads with authorisation policies ask, so that they hear the answers.
//!
//! { config's epochs, enrol } ──▶ **carriage** ──▶ { `EXCLUDE`, `EXCLUDE_CIDRS`, entries of workloads, inbound
//! programs, the proxy's budgets }
//!
//! Exclusions are written before the flag by which the programs look at them, and deleted after it is gone. What
//! does not fit the maps excludes nothing, for that workload alone, under a condition; it is tried again.
//! Interfaces are known to policies by name and to the kernel by index: they are looked up twice a second.
//!
//! The first workload that asks for splicing has it tried; where this kernel can't, each that asks is under a
//! condition with the reason.
//!
//! Invariant: nothing that an earlier agent has put in force is taken back before everything has come once: its
//! snapshot on disk may be older than what it did.
//! Not here: which policy holds for whom (mesh-core's compile), the flag of inbound exclusions (its plan).

mod wanted;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::maps;
use mesh_common::transport::enrolled;
use mesh_core::snapshot::{Snapshot, Transport, WorkloadId};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::config::Handle as Config;
use crate::kernel::{Kernel, KernelError, Splicing};
use crate::path::Proxy;
use crate::sys;
use wanted::{Held, Told, Wanted};

/// Between two looks at interfaces, and at what did not fit.
const LOOK: Duration = Duration::from_millis(500);
/// Who was let in before there were policies is answered within this time.
const ANSWERED: Duration = Duration::from_secs(1);

/// How the connections of this node's workloads are carried.
pub struct Carriage {
    kernel: Arc<Kernel>,
    proxy: Proxy,
    config: Config,
    /// Captured connections that may wait, where no policy says.
    pending: u16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is in force.
    told: HashMap<WorkloadId, Told>,
    /// What the maps hold; `None`: not read yet.
    held: Option<Held>,
    /// A socket in each namespace in which interfaces are looked up.
    sockets: HashMap<WorkloadId, OwnedFd>,
    /// The condition that a workload is under.
    conditions: HashMap<WorkloadId, String>,
    /// Workloads that had no policies; since when they have some.
    opened: HashMap<WorkloadId, Option<Instant>>,
}

impl Carriage {
    /// Nothing is in force but what an earlier agent has left. `pending`: captured connections of a workload that
    /// may wait, where no policy says.
    pub fn new(kernel: Arc<Kernel>, proxy: Proxy, config: Config, pending: u16) -> Self {
        Self { kernel, proxy, config, pending, state: Mutex::default() }
    }

    /// Follows every epoch for as long as the agent runs.
    pub async fn follow(self: Arc<Self>) {
        let mut epochs = self.config.epoch();
        loop {
            self.settle_all();
            if let Ok(Err(_)) = tokio::time::timeout(LOOK, epochs.changed()).await {
                return;
            }
        }
    }

    fn settle_all(&self) {
        let full = self.config.synced();
        let snapshot = self.config.snapshot();
        let places = self.proxy.workloads();
        let mut state = self.state.lock();
        for (workload, netns) in &places {
            self.settle_one(&mut state, &snapshot, *workload, netns, full);
        }
        if !full {
            return;
        }
        let left = state.held.as_ref().map(Held::workloads).unwrap_or_default();
        for gone in left.into_iter().filter(|id| places.iter().all(|(workload, _)| workload != id)) {
            self.take_back(&mut state, gone);
        }
    }

    /// Puts in force what holds for a workload that was enrolled just now.
    pub fn carry(&self, workload: WorkloadId) {
        let full = self.config.synced();
        let places = self.proxy.workloads();
        if let Some((_, netns)) = places.iter().find(|(id, _)| *id == workload) {
            self.settle_one(&mut self.state.lock(), &self.config.snapshot(), workload, netns, full);
        }
    }

    /// The workload has left.
    pub fn forget(&self, workload: WorkloadId) {
        let mut state = self.state.lock();
        self.take_back(&mut state, workload);
        state.told.remove(&workload);
        state.sockets.remove(&workload);
        state.opened.remove(&workload);
        self.say(&mut state, workload, None);
    }

    fn settle_one(
        &self,
        state: &mut State,
        snapshot: &Snapshot,
        workload: WorkloadId,
        netns: &OwnedFd,
        full: bool,
    ) {
        let known = snapshot.workloads.get(&workload);
        let transport = known.and_then(|known| known.transport.clone());
        let interfaces = interfaces(state, workload, netns, transport.as_deref());
        let splicing = self.splicing(transport.as_deref());
        let notes = notes(state, workload, known.map(|known| known.policy_set != 0), full);
        let told = Told { transport, interfaces, splicing, notes, full };
        if state.told.get(&workload) == Some(&told) {
            return;
        }
        let trouble = match self.put(state, workload, &told) {
            Ok(trouble) => trouble,
            Err(error) => Some(error.to_string()),
        };
        if trouble.is_none() {
            state.told.insert(workload, told.clone());
        } else {
            state.told.remove(&workload);
        }
        let unspliced = match told.splicing {
            Splicing::Off(why) => Some(format!("not spliced: {why}")),
            _ => None,
        };
        let causes: Vec<String> = trouble.into_iter().chain(unspliced).collect();
        let line = told.transport.filter(|_| !causes.is_empty()).map(|transport| {
            let name = known.map_or("", |known| &known.full_name);
            (
                format!("TransportPolicy {} for workload {name}", transport.policies.join(", ")),
                causes.join("; "),
            )
        });
        self.say(state, workload, line);
    }

    /// Whether a workload's connections may be spliced, if it asks for that.
    fn splicing(&self, transport: Option<&Transport>) -> Splicing {
        if !transport.is_some_and(|transport| transport.splice) {
            return Splicing::Unasked;
        }
        self.kernel.ask_splicing();
        self.kernel.splicing()
    }

    /// Writes what is new, says so to programs and proxy, deletes what is old. What did not fit, if anything.
    fn put(
        &self,
        state: &mut State,
        workload: WorkloadId,
        told: &Told,
    ) -> Result<Option<String>, KernelError> {
        let mut wanted = Wanted::of(workload, told);
        let mut held = match state.held.take() {
            Some(held) => held,
            None => Held::of(&self.kernel)?,
        };
        let trouble = self.no_room(&held, workload, &wanted);
        if trouble.is_some() {
            let (flags, no_udp) = (wanted.flags & !enrolled::EXCLUDES, wanted.no_udp);
            wanted = Wanted { flags, no_udp, ..Wanted::default() };
        }
        let done = self.write(&mut held, workload, &wanted, told);
        state.held = Some(held);
        done.map(|()| trouble)
    }

    fn write(
        &self,
        held: &mut Held,
        workload: WorkloadId,
        wanted: &Wanted,
        told: &Told,
    ) -> Result<(), KernelError> {
        let kernel = &*self.kernel;
        let transport = told.transport.as_deref();
        for key in &wanted.keys {
            if held.keys.insert(*key) {
                kernel.exclude(key)?;
            }
        }
        for (prefix, value) in &wanted.prefixes {
            // Its value may be another than before.
            held.prefixes.insert((workload, *prefix));
            kernel.exclude_cidr(*prefix, *value)?;
        }
        let pending = transport.and_then(|t| t.pending).unwrap_or(self.pending);
        kernel.set_transport(workload, wanted.flags, pending, !told.full)?;
        if wanted.no_udp || told.full {
            kernel.set_no_udp(workload, wanted.no_udp)?;
        }
        self.proxy.set_connections(workload, transport.and_then(|t| t.connections));
        self.proxy.set_log(workload, transport.map(|t| t.log).unwrap_or_default());
        if !told.full {
            return Ok(());
        }
        for key in held.keys_of(workload).difference(&wanted.keys) {
            kernel.include(key)?;
            held.keys.remove(key);
        }
        for prefix in held.prefixes_of(workload) {
            if !wanted.prefixes.contains_key(&prefix) {
                kernel.include_cidr(prefix)?;
                held.prefixes.remove(&(workload, prefix));
            }
        }
        Ok(())
    }

    /// Why a workload's exclusions do not fit; `None`: they do.
    fn no_room(&self, held: &Held, workload: WorkloadId, wanted: &Wanted) -> Option<String> {
        let keys = wanted.keys.difference(&held.keys).count();
        let prefixes =
            wanted.prefixes.keys().filter(|prefix| !held.prefixes.contains(&(workload, **prefix))).count();
        let full = |spec: maps::Spec, flag: &str, held: usize, new: usize| {
            let capacity = self.kernel.capacity(spec) as usize;
            let free = capacity.saturating_sub(held);
            (new > free).then(|| {
                format!(
                    "nothing is excluded: map {} is full ({capacity} entries): {new} are needed, {free} are \
                     free: raise {flag}",
                    spec.name
                )
            })
        };
        full(maps::EXCLUDE, "--map-exclude", held.keys.len(), keys)
            .or_else(|| full(maps::EXCLUDE_CIDRS, "--map-exclude-cidrs", held.prefixes.len(), prefixes))
    }

    /// Deletes what the maps hold of a workload that is not here.
    fn take_back(&self, state: &mut State, workload: WorkloadId) {
        let Some(held) = &mut state.held else { return };
        for key in held.keys_of(workload) {
            if let Err(error) = self.kernel.include(&key) {
                tracing::warn!(%error, workload, "an exclusion stays behind");
            }
            held.keys.remove(&key);
        }
        for prefix in held.prefixes_of(workload) {
            if let Err(error) = self.kernel.include_cidr(prefix) {
                tracing::warn!(%error, workload, "an exclusion stays behind");
            }
            held.prefixes.remove(&(workload, prefix));
        }
    }

    fn say(&self, state: &mut State, workload: WorkloadId, line: Option<(String, String)>) {
        let conditions = self.config.conditions();
        let what = line.as_ref().map(|(what, _)| what);
        if let Some(before) = state.conditions.get(&workload)
            && what != Some(before)
        {
            conditions.clear(before);
            state.conditions.remove(&workload);
        }
        if let Some((what, cause)) = line {
            conditions.set(&what, cause);
            state.conditions.insert(workload, what);
        }
    }
}

/// Is it to be noted whom a workload asks, because it has policies? Not in the first moment after it had none: what it
/// sends then may be an answer to who is refused by now, and would pass for a question.
fn notes(state: &mut State, workload: WorkloadId, policed: Option<bool>, full: bool) -> bool {
    if policed != Some(true) {
        if policed.is_some() && full {
            state.opened.insert(workload, None);
        }
        return false;
    }
    let since = state.opened.get_mut(&workload).map(|since| *since.get_or_insert_with(Instant::now));
    since.is_none_or(|since| since.elapsed() >= ANSWERED)
}

/// Indexes of the interfaces that exclusions name, out and in. One that is not there is left out until it is.
fn interfaces(
    state: &mut State,
    workload: WorkloadId,
    netns: &OwnedFd,
    transport: Option<&Transport>,
) -> [Vec<u32>; 2] {
    let named = transport.map_or([&[][..]; 2], |t| [&*t.outbound.interfaces, &*t.inbound.interfaces]);
    if named.iter().all(|names| names.is_empty()) {
        state.sockets.remove(&workload);
        return [Vec::new(), Vec::new()];
    }
    if let std::collections::hash_map::Entry::Vacant(place) = state.sockets.entry(workload) {
        let made = sys::in_netns(netns.as_fd(), || {
            Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)
                .or_else(|_| socket(AddressFamily::INET6, SocketType::DGRAM, None))?)
        });
        match made {
            Ok(made) => drop(place.insert(made)),
            Err(error) => tracing::warn!(%error, workload, "interfaces cannot be looked up"),
        }
    }
    let index = |name: &str| {
        let socket = state.sockets.get(&workload)?;
        netdevice::name_to_index(socket, name).ok()
    };
    named.map(|names| names.iter().filter_map(|name| index(name)).collect())
}

//! The task that owns compiler and view. Everything is done in one turn of its loop, so that a
//! change is in the maps before the next one is looked at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mesh_api::proto::v1;
use mesh_core::compile::{Compiler, Condition, Dirty, Outcome};
use mesh_core::ids::{IdKind, IdLimits};
use mesh_core::model::{Batch, Resource};
use mesh_core::plan::{LocalSlots, View, plan};
use mesh_core::snapshot::{Revision, WorkloadId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::conditions::Lines;
use super::resource::{Key, Kind, Rejected, Update};
use super::trust::Trust;
use super::{Command, Known, Maps, Options, Shared, disk};
use crate::kernel::ApplyError;

/// From a change to the snapshot on disk.
const SAVE_AFTER: Duration = Duration::from_millis(300);
/// Between two snapshots on disk, at least.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Until a map write that failed is repeated.
const REPEAT: Duration = Duration::from_secs(1);
/// Between two rounds of freeing numbers.
const RELEASE: Duration = Duration::from_mins(1);
/// Decoded resources that are worth giving memory back for.
const BULK: usize = 500;
/// Group of the conditions that compiler and planner find.
const RESOURCES: &str = "resources";
/// Condition of a snapshot that cannot be written.
const DISK: &str = "snapshot on disk";

pub(super) struct Owner {
    options: Options,
    pub(super) maps: Arc<dyn Maps>,
    shared: Arc<Shared>,
    epochs: watch::Sender<u64>,
    trust: Trust,
    pub(super) compiler: Compiler,
    view: View,
    /// Where the control plane's history stands; empty: nothing was received yet.
    revision: Revision,
    locals: HashMap<WorkloadId, LocalSlots>,
    /// Workloads of this node that have ended, and of which the control plane has not said so yet: it is
    /// still told of their versions, and the compiler is not told of them.
    hidden: BTreeMap<Key, Resource>,
    /// Workloads enrolled on this node, as they were enrolled: what holds of them where the control plane says
    /// nothing. Without it their policies would not be asked for as long as it is away.
    own: BTreeMap<Key, Resource>,
    /// The maps follow; before, an earlier agent's entries stay as they are.
    pub(super) begun: bool,
    /// Everything has come once since this agent started.
    full: bool,
    /// Not in the maps yet.
    pending: Dirty,
    conditions: Arc<[Condition]>,
    /// What was published last: of the compiler, of the planner, and whether a map write had failed.
    said: (Arc<[Condition]>, Vec<Condition>, bool),
    start: Instant,
    pub(super) timers: Timers,
    /// The write of the snapshot that is under way.
    saving: Option<JoinHandle<()>>,
    /// Who waits for a write that has yet to begin.
    savers: Vec<oneshot::Sender<()>>,
    /// Resources decoded since memory was given back.
    decoded: usize,
    /// The count of numbers in use that is under way.
    counting: Option<JoinHandle<Vec<(IdKind, u32)>>>,
}

/// When to do what, besides commands.
#[derive(Default)]
pub(super) struct Timers {
    plan: Option<Instant>,
    /// The next look at who is ejected.
    pub look: Option<Instant>,
    save: Option<Instant>,
    saved: Option<Instant>,
    release: Option<Instant>,
}

impl Timers {
    fn next(&self) -> Option<Instant> {
        [self.plan, self.look, self.save, self.release].into_iter().flatten().min()
    }
}

pub(super) fn due(at: &mut Option<Instant>, now: Instant) -> bool {
    at.take_if(|at| *at <= now).is_some()
}

impl Owner {
    /// Loads and compiles what is on disk.
    pub fn new(
        options: Options,
        maps: Arc<dyn Maps>,
        shared: Arc<Shared>,
        (epochs, trust): (watch::Sender<u64>, Trust),
    ) -> Self {
        let saved = disk::load(&options.state_dir).unwrap_or_default();
        let capacities = maps.capacities();
        let (services, endpoints) = maps.counters();
        let limits = IdLimits {
            workloads: capacities.workloads.saturating_sub(1),
            services: services.saturating_sub(1),
            endpoints: endpoints.saturating_sub(1),
            ..IdLimits::default()
        };
        let epoch = saved.epoch.max(maps.epoch());
        // Numbers that the kernel counts under, though nothing here has their names any more.
        for kind in [IdKind::Service, IdKind::Workload] {
            let counted: HashSet<u32> =
                maps.counted().into_iter().filter(|(k, _)| *k == kind).map(|(_, id)| id).collect();
            for (name, id) in saved.ids.names(kind).filter(|(_, id)| counted.contains(id)) {
                shared.names.learn(kind, id, name);
            }
        }
        let view = view(&*maps);
        let compiler = Compiler::new(&options.node, saved.ids, limits)
            .at(options.locality.clone())
            .after_epoch(epoch)
            .after_policy_set(view.last_policy_set());
        let mut owner = Self {
            view,
            options,
            maps,
            shared,
            epochs,
            trust,
            compiler,
            revision: Revision::default(),
            locals: HashMap::new(),
            hidden: BTreeMap::new(),
            own: BTreeMap::new(),
            begun: false,
            full: false,
            pending: Dirty::default(),
            conditions: Arc::default(),
            said: (Arc::default(), Vec::new(), false),
            start: Instant::now(),
            timers: Timers { release: Some(Instant::now() + RELEASE), ..Timers::default() },
            saving: None,
            savers: Vec::new(),
            decoded: 0,
            counting: None,
        };
        if !saved.update.changes.is_empty() {
            owner.take(saved.update);
            owner.shared.served.store(true, Relaxed);
        }
        owner
    }

    /// Until every handle is gone; then what is not on disk yet is written.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            let wake = self.timers.next().map(tokio::time::Instant::from_std);
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                () = wake_at(wake) => self.on_timer(),
                counted = finished(&mut self.counting) => self.release(counted),
            }
        }
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        if self.timers.save.is_some() {
            self.save();
        }
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
    }

    fn command(&mut self, command: Command) {
        // An answer that nobody waits for any more is dropped.
        match command {
            Command::Known(reply) => {
                let _ = reply.send(self.known());
            }
            Command::Update(update, reply) => {
                let first = !std::mem::replace(&mut self.full, true);
                let rejected = self.take(update);
                if first {
                    self.compiler.end_unknown_ids();
                    self.shared.served.store(true, Relaxed);
                    self.shared.synced.store(true, Relaxed);
                }
                let _ = reply.send(rejected);
            }
            Command::Identify { namespace, name, service_account, reply } => {
                let numbers = self.compiler.enrol(&namespace, &name, &service_account);
                if let Ok(numbers) = &numbers {
                    let full = format!("{namespace}/{name}");
                    self.shared.names.learn(IdKind::Workload, numbers.workload, &full);
                    self.show(&(Kind::Workload, full));
                }
                self.save_soon();
                let _ = reply.send(numbers.map_err(|full| full.to_string()));
            }
            Command::Place { workload, slots, described, reply } => {
                self.locals.insert(workload, slots);
                self.shared.enrolled.store(self.locals.len(), Relaxed);
                self.describe(*described);
                self.workload_changed(workload);
                let _ = reply.send(());
            }
            Command::Leave { namespace, name, workload, reply } => {
                self.compiler.leave(&namespace, &name);
                let key = (Kind::Workload, format!("{namespace}/{name}"));
                self.own.remove(&key);
                self.hide(key);
                if self.locals.remove(&workload).is_some() {
                    self.shared.enrolled.store(self.locals.len(), Relaxed);
                    self.workload_changed(workload);
                }
                self.save_soon();
                let _ = reply.send(());
            }
            Command::Resolved(resolved, reply) => self.resolved(resolved, reply),
            Command::Save(reply) => {
                self.savers.push(reply);
                self.timers.save = None;
                self.save();
            }
            Command::Begin(reply) => {
                self.begun = true;
                self.pending.merge(&Dirty::all(&self.compiler.snapshot()));
                if !self.look() {
                    self.write();
                }
                let _ = reply.send(());
            }
        }
    }

    /// Applies an update, up to the maps.
    fn take(&mut self, update: Update) -> Vec<Rejected> {
        let began = Instant::now();
        let Update { revision, full, changes } = update;
        let mut batch = Batch::default();
        let mut rejected = Vec::new();
        if full {
            self.hidden.clear();
            let held =
                self.compiler.model().resources().iter().map(|(kind, name, _)| (kind, name.to_owned()));
            batch.removes = held.filter(|key| !changes.contains_key(key)).collect();
        }
        for (key, change) in changes {
            // Whatever the control plane says of it now is said knowing of its end.
            self.hidden.remove(&key);
            let Some(raw) = change else {
                batch.removes.push(key);
                continue;
            };
            match Resource::new(key.0, &key.1, raw) {
                Ok(resource) => batch.upserts.push(resource),
                Err(reason) => rejected.push(Rejected { key, reason }),
            }
        }
        self.keep_own(&mut batch);
        self.revision = revision;
        self.compile(batch, began);
        rejected
    }

    /// A workload that lives here is not gone because the control plane does not know it.
    fn keep_own(&self, batch: &mut Batch) {
        let (own, gone) = batch.removes.drain(..).partition(|key| self.own.contains_key(key));
        batch.removes = gone;
        let own: Vec<Key> = own;
        batch.upserts.extend(own.iter().filter_map(|key| self.own.get(key).cloned()));
    }

    /// Notes what a workload of this node is; the control plane's word counts where there is one.
    fn describe(&mut self, workload: v1::Workload) {
        let name = format!("{}/{}", workload.namespace, workload.name);
        let unknown = self.compiler.model().workload(&name).is_none();
        let resource = Resource::from(workload);
        self.own.insert((Kind::Workload, name), resource.clone());
        if unknown {
            self.compile(Batch { upserts: vec![resource], ..Batch::default() }, Instant::now());
        }
    }

    /// What a stream tells the control plane.
    fn known(&self) -> Known {
        let mut known = Known { revision: self.revision.clone(), ..Known::default() };
        let mut add = |kind, name: &str, version: &str| {
            known.versions.entry(kind).or_default().insert(name.to_owned(), version.to_owned());
        };
        self.compiler.model().resources().iter().for_each(|(kind, name, raw)| add(kind, name, raw.version()));
        self.hidden.iter().for_each(|((kind, name), hidden)| add(*kind, name, hidden.version()));
        known
    }

    /// Compiles a change, and puts it in force.
    fn compile(&mut self, batch: Batch, began: Instant) {
        let (upserts, removes) = (batch.upserts.len(), batch.removes.len());
        self.decoded += upserts;
        let outcome = self.compiler.apply(batch, self.revision.clone());
        self.publish(outcome, began);
        self.trust.follow(self.compiler.model());
        self.save_soon();
        let epoch = self.compiler.snapshot().epoch;
        tracing::debug!(epoch, upserts, removes, took = ?began.elapsed(), "update in force");
    }

    /// Puts in force what the compiler has made.
    pub(super) fn publish(&mut self, outcome: Outcome, began: Instant) {
        let before = self.shared.snapshot.swap(outcome.snapshot.clone());
        if before.epoch != outcome.snapshot.epoch {
            *self.shared.since.lock() = began;
            self.shared.names.learn_gone(&before, &outcome.snapshot, &outcome.dirty);
        }
        self.pending.merge(&outcome.dirty);
        self.conditions = outcome.conditions;
        self.write();
        self.epochs.send_replace(outcome.snapshot.epoch);
        self.look_later();
    }

    /// A workload of this node has ended: nobody here is sent to it any more, although the control plane
    /// may not know yet, or be away.
    fn hide(&mut self, key: Key) {
        let model = self.compiler.model();
        let ours = model.workload(&key.1).is_some_and(|w| w.node == self.options.node);
        if ours && let Some(resource) = model.resources().get(key.0, &key.1) {
            self.hidden.insert(key.clone(), resource);
            self.compile(Batch { removes: vec![key], ..Batch::default() }, Instant::now());
        }
    }

    /// It is back before the control plane has heard of its end.
    fn show(&mut self, key: &Key) {
        if let Some(resource) = self.hidden.remove(key) {
            self.compile(Batch { upserts: vec![resource], ..Batch::default() }, Instant::now());
        }
    }

    fn workload_changed(&mut self, workload: WorkloadId) {
        self.pending.workloads.insert(workload);
        self.write();
    }

    /// Plans what is pending and writes the maps.
    fn write(&mut self) {
        if !self.begun {
            return;
        }
        let snapshot = self.compiler.snapshot();
        let dirty = std::mem::take(&mut self.pending);
        let plan = plan(&mut self.view, &snapshot, &dirty, &self.locals, self.full, self.start.elapsed());
        self.timers.plan = plan.retry_at.map(|at| self.start + at);
        let failed = self.maps.apply(&plan.ops).err();
        if failed.is_some() {
            // What was written and what was not is seen by looking.
            self.view = view(&*self.maps);
            self.pending = Dirty::all(&snapshot);
            self.pending.merge(&dirty);
            self.timers.plan = Some(Instant::now() + REPEAT);
        }
        self.say(plan.conditions, failed);
    }

    /// Publishes what compiler, planner and maps complain of, where that has changed.
    fn say(&mut self, planned: Vec<Condition>, failed: Option<ApplyError>) {
        let same = Arc::ptr_eq(&self.said.0, &self.conditions) && self.said.1 == planned;
        if same && failed.is_none() && !self.said.2 {
            return;
        }
        let mut lines = Lines::new();
        for Condition { subject, problem } in self.conditions.iter().chain(&planned) {
            let line = lines.entry(subject.clone()).or_default();
            if !line.is_empty() {
                line.push_str("; ");
            }
            line.push_str(problem);
        }
        self.said = (self.conditions.clone(), planned, failed.is_some());
        if let Some(error) = failed {
            lines.insert(format!("map {}", error.map), error.to_string());
        }
        self.shared.conditions.replace(RESOURCES, lines);
    }

    pub(super) fn save_soon(&mut self) {
        let now = Instant::now();
        let earliest = self.timers.saved.map_or(now, |saved| saved + SAVE_EVERY);
        self.timers.save.get_or_insert(earliest.max(now + SAVE_AFTER));
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        if due(&mut self.timers.plan, now) {
            self.write();
        }
        if due(&mut self.timers.look, now) {
            self.look();
        }
        if due(&mut self.timers.save, now) {
            self.save();
        }
        if due(&mut self.timers.release, now) {
            self.timers.release = Some(now + RELEASE);
            let maps = self.maps.clone();
            self.counting.get_or_insert_with(|| tokio::task::spawn_blocking(move || maps.counted()));
        }
    }

    /// Writes the snapshot to disk, off this thread: a change never waits for a disk.
    fn save(&mut self) {
        let now = Instant::now();
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            self.timers.save = Some(now + SAVE_AFTER);
            return;
        }
        self.timers.saved = Some(now);
        let waiting = std::mem::take(&mut self.savers);
        let bulky = self.decoded > BULK;
        if bulky {
            self.decoded = 0;
        }
        let (resources, ids) = (self.compiler.model().resources().clone(), self.compiler.ids().clone());
        let revision = self.revision.clone();
        let epoch = self.compiler.snapshot().epoch;
        let path = disk::path(&self.options.state_dir);
        let shared = self.shared.clone();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let write = |file: &mut dyn Write| disk::encode(file, &revision, &resources, &ids, epoch);
            match disk::write_atomically(&path, write) {
                Ok(()) => shared.conditions.clear(DISK),
                Err(error) => {
                    shared.conditions.set(DISK, format!("cannot be written to {}: {error}", path.display()));
                }
            }
            drop((resources, ids));
            if bulky {
                crate::sys::trim();
            }
            for waiter in waiting {
                let _ = waiter.send(());
            }
        }));
    }

    /// Frees the numbers of names that have ended and that nothing counts on.
    fn release(&mut self, counted: Option<Vec<(IdKind, u32)>>) {
        // Unknown counts: nothing may be freed.
        let Some(counted) = counted else { return };
        let counted: HashSet<(IdKind, u32)> = counted.into_iter().collect();
        let (maps, locals) = (&self.maps, &self.locals);
        self.compiler.release_ids(|kind, id| {
            let kept =
                counted.contains(&(kind, id)) || (kind == IdKind::Workload && locals.contains_key(&id));
            if kept { 1 } else { maps.settle(kind, id) }
        });
    }
}

/// The result of what runs beside; never, where nothing does.
async fn finished<T>(running: &mut Option<JoinHandle<T>>) -> Option<T> {
    match running {
        Some(handle) => {
            let result = handle.await.ok();
            *running = None;
            result
        }
        None => std::future::pending().await,
    }
}

/// What the maps hold; where they cannot be read, nothing: then everything is written again.
fn view(maps: &dyn Maps) -> View {
    match maps.held() {
        Ok(adopted) => View::adopt(adopted, maps.capacities()),
        Err(error) => {
            tracing::error!(%error, "the maps cannot be read; writing everything again");
            View::new(maps.capacities())
        }
    }
}

async fn wake_at(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

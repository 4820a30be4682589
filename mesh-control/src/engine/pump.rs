//! Follows the store: changes to the registry, its changes to the hub; ends leases.
//!
//! A thread of its own, because the store's calls block: it waits for the store's hook or for the next
//! lease, whichever is first.
//!
//! Invariants: the store's first answer is taken in before the engine is handed out, so no agent ever sees
//! less than what was stored; a pause of the whole process ends no lease.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mesh_registry::feed::StoreSource;
use mesh_registry::intent::Intents;
use mesh_registry::source::{Owner, Source};
use mesh_registry::store::StoreError;

use super::Engine;
use super::follow::Follow;

/// Most changes that are taken in at once.
const BATCH: usize = 4096;
/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often, at most, where replicas share the store.
const LOOK: Duration = Duration::from_millis(250);
/// A tick that comes this late says that the process was stopped: nobody could send heartbeats meanwhile.
const STOPPED: Duration = Duration::from_secs(5);
/// Pause after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Who the store's events are from.
pub fn source_owner() -> Owner {
    Owner::named("store")
}

struct Pump {
    engine: Weak<Engine>,
    source: StoreSource,
    follow: Follow,
    news: Receiver<()>,
    /// This replica led when it was looked last, and when that was.
    led: bool,
    looked: Instant,
}

/// Takes in what the store holds and starts following it.
pub(super) fn start(engine: &Arc<Engine>, follow: Follow) -> Result<(), StoreError> {
    let (hook, news): (SyncSender<()>, _) = sync_channel(1);
    engine.store.on_commit(Box::new(move |_| {
        // Full: the pump is about to look anyway.
        let _ = hook.try_send(());
    }));
    let source = StoreSource::new(engine.store.clone());
    let led = !engine.replicas.shared();
    let mut pump = Pump { engine: Arc::downgrade(engine), source, follow, news, led, looked: Instant::now() };
    pump.drain(engine)?;
    let failed = |cause: std::io::Error| StoreError::Failed {
        operation: "start its thread",
        cause: cause.to_string(),
    };
    std::thread::Builder::new().name("registry".into()).spawn(move || pump.run()).map_err(failed)?;
    Ok(())
}

impl Pump {
    fn run(mut self) {
        let mut last = Instant::now();
        loop {
            let news = self.news.recv_timeout(TICK);
            let Some(engine) = self.engine.upgrade() else { return };
            if matches!(news, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            if let Err(error) = self.drain(&engine) {
                tracing::error!(%error, "cannot follow the store; trying again");
                std::thread::sleep(RETRY);
            }
            let now = Instant::now();
            if now - last > STOPPED {
                tracing::warn!(pause = ?(now - last), "this process stood still; every lease begins anew");
                engine.registry.lock().leases_mut().restart(now);
            }
            last = now;
            if !engine.replicas.shared() || now - self.looked >= LOOK {
                self.looked = now;
                self.leases(&engine, now);
            }
        }
    }

    /// Ends leases where this replica leads; tells the leader what is heard here where it does not.
    fn leases(&mut self, engine: &Engine, now: Instant) {
        let leads = engine.replicas.leads(now);
        if engine.replicas.shared() {
            let elsewhere = engine.replicas.heard_elsewhere();
            let mut registry = engine.registry.lock();
            let heard = registry.leases().heard(now);
            registry.leases_mut().hold(elsewhere.keys(), now);
            if leads && !self.led {
                registry.leases_mut().restart(now);
            }
            drop(registry);
            engine.replicas.hears(heard);
            if leads != self.led {
                tracing::info!(replica = engine.replicas.name(), leads, "the lead changed");
            }
        }
        self.led = leads;
        if leads {
            expire(engine, now);
        } else {
            *engine.held.lock() = None;
        }
    }

    fn drain(&mut self, engine: &Engine) -> Result<(), StoreError> {
        loop {
            let batch = self.source.poll(BATCH).map_err(|mesh_registry::source::SourceError::Store(e)| e)?;
            let (revision, more) = (batch.revision, !batch.events.is_empty());
            for (key, cause) in &batch.refused {
                tracing::error!(key, cause, "a stored object cannot be read and is left out");
            }
            // The hub is told under the registry's lock: what it holds is never older than the registry.
            let mut registry = engine.registry.lock();
            let delta = registry.apply(batch, Instant::now());
            engine.envoys.changed(&delta);
            engine.hub.apply(delta);
            drop(registry);
            engine.applied.send_if_modified(|applied| {
                let rises = *applied < revision;
                *applied = revision.max(*applied);
                rises
            });
            if !more {
                return self.follow.poll(engine);
            }
        }
    }
}

/// Ends the leases that are over; the removal comes back through the store.
fn expire(engine: &Engine, now: Instant) {
    let expiry = engine.registry.lock().leases().expire(now);
    let mut held = engine.held.lock();
    if let (Some(now_held), None) = (expiry.held, *held) {
        tracing::warn!("{}", now_held.condition().message);
    }
    *held = expiry.held;
    drop(held);
    if expiry.due.is_empty() {
        return;
    }
    tracing::info!(leases = ?expiry.due, "leases ended without a heartbeat");
    if let Err(error) = Intents::new(&*engine.store).revoke(&expiry.due) {
        tracing::error!(%error, "cannot end leases; trying again");
    }
}

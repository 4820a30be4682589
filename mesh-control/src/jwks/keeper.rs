//! Follows the mesh's providers: looks for the keys of each when it is time, keeps and tells what is new.
//!
//! Everything that blocks (files, the store, fetches) runs on blocking threads, one a provider at a time.
//!
//! Invariant: [`Keeper::open`] has told what the store holds before it returns, so that no agent is told less after a
//! restart than before it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::jwks::{self, KeySet, SET_MAX};
use mesh_api::proto::v1;
use mesh_api::resource::{Jwks, Key, Kind, Spec};
use mesh_registry::registry::WireResource;
use mesh_registry::store::{StoreError, Txn};
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{due, fetch};
use crate::ca::hex;
use crate::clock::unix_s;
use crate::engine::Engine;
use crate::stop::stopped;
use crate::xds::Type;

/// What the keys of a provider stand under in the store.
const PREFIX: &str = "/jwks/";
/// How often inline sets and files are looked at, and whether a URL is due.
const TICK: Duration = Duration::from_secs(1);

/// How to look for keys.
#[derive(Clone, Debug)]
pub struct Ways {
    /// Where files are.
    pub dir: PathBuf,
    /// A URL is asked no more often than that.
    pub least: Duration,
    /// `http://` is asked elsewhere than on loopback.
    pub plain_http: bool,
}

/// Looks for keys.
pub struct Keeper {
    engine: Arc<Engine>,
    ways: Ways,
    held: BTreeMap<String, Held>,
}

/// Of one provider.
#[derive(Default)]
struct Held {
    /// What its keys are from, hashed.
    source: String,
    /// Told last; empty: nothing.
    told: Vec<u8>,
    /// When to look next; `None`: now.
    next: Option<Instant>,
    looking: bool,
    failures: u32,
}

/// In the store.
#[derive(Serialize, Deserialize)]
struct Stored {
    source: String,
    /// The message that agents are told.
    keys: Vec<u8>,
}

/// What looking has come to.
struct Looked {
    provider: String,
    source: String,
    found: Result<(KeySet, Duration), String>,
}

impl Keeper {
    /// Tells what the store holds of the providers that there are. Blocks.
    pub fn open(engine: Arc<Engine>, ways: Ways) -> Result<Self, StoreError> {
        let mut keeper = Self { engine, ways, held: BTreeMap::new() };
        keeper.adopt()?;
        Ok(keeper)
    }

    /// Tells what stands in the store, if it is new: this process' own keys of before, or the leading replica's.
    fn adopt(&mut self) -> Result<(), StoreError> {
        let sources: BTreeMap<_, _> =
            self.providers().into_iter().map(|(name, jwks)| (name, source(&jwks))).collect();
        for entry in self.engine.store().range(PREFIX, None)?.entries {
            let name = entry.key.strip_prefix(PREFIX).unwrap_or_default().to_owned();
            let Ok(stored) = serde_json::from_slice::<Stored>(&entry.value) else { continue };
            if sources.get(&name) != Some(&stored.source) {
                continue;
            }
            let held = self.held.get(&name);
            if held.is_some_and(|held| held.source == stored.source && held.told == stored.keys) {
                continue;
            }
            let keys = v1::JwtKeys::decode(&*stored.keys).unwrap_or_default().keys.len();
            self.tell(&name, self.engine.store().revision()?, &stored.keys);
            self.engine.jwks.change(&name, |state| state.keys = keys);
            self.held.insert(name, Held { source: stored.source, told: stored.keys, ..Held::default() });
        }
        Ok(())
    }

    /// Where another replica leads: drops whom the mesh names no more, and tells what that one has found.
    fn follow(&mut self) {
        let providers: BTreeMap<_, _> =
            self.providers().into_iter().map(|(name, jwks)| (name, source(&jwks))).collect();
        let gone = |(name, held): &(&String, &Held)| providers.get(*name) != Some(&held.source);
        let gone: Vec<String> = self.held.iter().filter(gone).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.engine.hub.own(Type::JwtKeys, self.engine.hub.revision(), &name, None);
            self.held.remove(&name);
        }
        self.engine.jwks.retain(|name| providers.contains_key(name));
        if let Err(error) = self.adopt() {
            tracing::error!(%error, "keys of providers of tokens cannot be read from the store");
        }
    }

    /// Runs until the control plane stops.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut looking: JoinSet<Looked> = JoinSet::new();
        let mut applied = self.engine.follow_applied();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = applied.changed() => {}
                Some(looked) = looking.join_next(), if !looking.is_empty() => {
                    match looked {
                        Ok(looked) => self.take(looked),
                        Err(error) => tracing::error!(%error, "a look for keys ended"),
                    }
                    continue;
                }
                () = stopped(&mut stop) => return,
            }
            if self.engine.replicas.leads(Instant::now()) {
                self.look(&mut looking);
            } else {
                self.follow();
            }
        }
    }

    fn providers(&self) -> Vec<(String, Jwks)> {
        let Some(Spec::Mesh(spec)) = self.engine.spec_of(&Key::mesh()) else { return Vec::new() };
        spec.jwt_providers.into_iter().map(|one| (one.name, one.jwks)).collect()
    }

    /// Begins to look for what is due, and drops whom the mesh names no more.
    fn look(&mut self, looking: &mut JoinSet<Looked>) {
        let providers: BTreeMap<_, _> = self.providers().into_iter().collect();
        let gone: Vec<String> =
            self.held.keys().filter(|name| !providers.contains_key(*name)).cloned().collect();
        for name in gone {
            self.drop_keys(&name);
            self.held.remove(&name);
        }
        self.engine.jwks.retain(|name| providers.contains_key(name));
        let now = Instant::now();
        for (name, jwks) in providers {
            let source = source(&jwks);
            if self.held.get(&name).is_some_and(|held| held.source != source) {
                // Whoever was believed before is not believed for the new one.
                self.drop_keys(&name);
                self.held.remove(&name);
                self.engine.jwks.retain(|other| other != name);
            }
            let held = self.held.entry(name.clone()).or_insert_with(|| Held { source, ..Held::default() });
            if held.looking || held.next.is_some_and(|next| now < next) {
                continue;
            }
            held.looking = true;
            let (ways, source) = (self.ways.clone(), held.source.clone());
            looking.spawn_blocking(move || Looked { provider: name, source, found: find(&jwks, &ways) });
        }
    }

    fn take(&mut self, looked: Looked) {
        let Looked { provider, source, found } = looked;
        // Of another source meanwhile, or of nobody.
        let Some(held) = self.held.get_mut(&provider).filter(|held| held.source == source) else { return };
        held.looking = false;
        let taken = found.map(|(set, holds)| {
            let count = set.keys.len();
            let keys = v1::JwtKeys { provider: provider.clone(), keys: set.keys }.encode_to_vec();
            let new = keys != held.told;
            (count, keys, new, set.left_out, holds)
        });
        let (count, keys, new, left_out, holds) = match taken {
            Ok(taken) => taken,
            Err(problem) => return self.failed(&provider, problem),
        };
        if new {
            let stored = Stored { source, keys: keys.clone() };
            let value = serde_json::to_vec(&stored).unwrap_or_default();
            // A commit; whoever looks for keys waits for it, and nobody else.
            let done = self.engine.store().transact(Txn::default().put(format!("{PREFIX}{provider}"), value));
            match done {
                Ok(revision) => self.tell(&provider, revision, &keys),
                Err(error) => return self.failed(&provider, format!("its keys cannot be stored: {error}")),
            }
            tracing::info!(provider, keys = count, "keys of a provider of tokens are in force");
        }
        let Some(held) = self.held.get_mut(&provider) else { return };
        (held.told, held.failures, held.next) = (keys, 0, Some(Instant::now() + holds));
        self.engine.jwks.change(&provider, |state| {
            if state.problem.take().is_some() {
                tracing::info!(provider, "keys of a provider of tokens are found again");
            }
            (state.keys, state.good, state.left_out) = (count, unix_s(), left_out);
        });
    }

    fn failed(&mut self, provider: &str, problem: String) {
        let Some(held) = self.held.get_mut(provider) else { return };
        held.looking = false;
        held.failures = held.failures.saturating_add(1);
        let share = f64::from(unix_nanos() % 1000) / 1000.0;
        held.next = Some(Instant::now() + Duration::from_millis(due::after_failures(held.failures, share)));
        self.engine.metrics.jwks_failures.inc();
        self.engine.jwks.change(provider, |state| {
            state.failures += 1;
            if state.problem.as_ref() != Some(&problem) {
                tracing::warn!(provider, problem, "the keys of a provider of tokens are not found");
                state.problem = Some(problem);
            }
        });
    }

    fn tell(&self, provider: &str, revision: u64, body: &[u8]) {
        let version = hex(&Sha256::digest(body)[..16]);
        // Of no kind that people write: the key is never looked at.
        let key = Key::new(Kind::Mesh, "", provider);
        let keys = WireResource { key, version, revision, body: body.to_vec() };
        self.engine.hub.own(Type::JwtKeys, revision, provider, Some(keys));
    }

    fn drop_keys(&self, provider: &str) {
        let dropped = self.engine.store().transact(Txn::default().delete(format!("{PREFIX}{provider}")));
        match dropped {
            Ok(revision) => self.engine.hub.own(Type::JwtKeys, revision, provider, None),
            // It is left in the store under its source, and told to nobody from now on.
            Err(error) => {
                tracing::error!(provider, %error, "keys of a provider cannot be removed from the store");
                self.engine.hub.own(Type::JwtKeys, self.engine.hub.revision(), provider, None);
            }
        }
    }
}

fn unix_nanos() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos())
}

/// What keys are from.
fn source(jwks: &Jwks) -> String {
    // An inline set that changes is no other source: the new one holds within a second, the old one until then.
    let text = match jwks {
        Jwks::Inline(_) => "inline".to_owned(),
        Jwks::File(name) => format!("file {name}"),
        Jwks::Url { url, ca } => format!("url {url} {}", ca.as_deref().unwrap_or_default()),
    };
    hex(&Sha256::digest(text.as_bytes())[..16])
}

/// The set, and how long it holds. Blocks.
fn find(jwks: &Jwks, ways: &Ways) -> Result<(KeySet, Duration), String> {
    match jwks {
        Jwks::Inline(text) => {
            Ok((jwks::parse(text.as_bytes()).map_err(|why| format!("its inline set: {why}"))?, TICK))
        }
        Jwks::File(name) => {
            let path = ways.dir.join(name);
            let text = read(&path)?;
            let set = jwks::parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
            Ok((set, TICK))
        }
        Jwks::Url { url, ca } => {
            let answer = fetch::get(url, ca.as_deref(), ways.plain_http)?;
            let set = jwks::parse(&answer.body).map_err(|why| format!("the answer of {url}: {why}"))?;
            let least = ways.least.as_millis() as u64;
            Ok((set, Duration::from_millis(due::holds(answer.cache_control.as_deref(), least))))
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is no regular file", path.display()));
    }
    let mut text = Vec::new();
    // One more than a set may have.
    file.take(SET_MAX as u64 + 1).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

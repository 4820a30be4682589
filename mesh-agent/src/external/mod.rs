//! Resolves the host names of external services that have no addresses of their own, with this node's resolver.
//!
//! snapshot ──host names──▶ **external** ──[`ask`]──▶ resolver
//!                              └──addresses──▶ config (compile makes endpoints of them)
//!
//! A name is asked for again when its answer's time is over, between [`SOONEST`] and [`LATEST`]. What was known last
//! counts for as long as nobody knows better, also after a restart: it is kept in a file. Failures are a condition and
//! counted.
//! Invariants: at most [`AT_ONCE`] names are asked for at once, at most [`MOST`] addresses of one are taken.
//! Not here: names that workloads ask for (dns).

mod ask;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::Handle as Config;
use ask::Answer;

/// Until a name is asked for again, at least; and after a failure, at first.
pub const SOONEST: Duration = Duration::from_secs(5);
/// Until it is asked for again, at most.
pub const LATEST: Duration = Duration::from_mins(5);
/// After many failures.
const FAILED: Duration = Duration::from_mins(1);
/// Names that are asked for at once.
const AT_ONCE: usize = 16;
/// Addresses of a name that are taken.
const MOST: usize = 64;
/// Where what is known is kept, in the state directory.
const FILE: &str = "external-hosts.json";

/// What is counted.
#[derive(Debug, Default)]
pub struct ExternalStats {
    /// Look-ups that brought addresses.
    pub ok: AtomicU64,
    /// And others.
    pub failed: AtomicU64,
    /// Names whose last look-up failed.
    pub failing: AtomicU64,
}

/// Resolves.
pub struct Lookups {
    config: Config,
    resolv_conf: PathBuf,
    file: PathBuf,
    stats: Arc<ExternalStats>,
    hosts: BTreeMap<Arc<str>, Host>,
}

/// A name.
struct Host {
    addresses: Vec<IpAddr>,
    /// When it is asked for again; `None`: it is being asked for.
    due: Option<Instant>,
    /// Failures in a row.
    failures: u32,
}

type Known = BTreeMap<String, Vec<IpAddr>>;

impl Lookups {
    /// What was known last counts from now on.
    pub async fn new(config: Config, resolv_conf: PathBuf, state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let known = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
        let known = known.unwrap_or_default();
        let host = |(name, addresses): (&String, &Vec<IpAddr>)| {
            let host = Host { addresses: addresses.clone(), due: Some(Instant::now()), failures: 0 };
            (name.as_str().into(), host)
        };
        let hosts = known.iter().map(host).collect();
        if !known.is_empty() {
            config.resolved(known).await;
        }
        Self { config, resolv_conf, file, stats: Arc::default(), hosts }
    }

    /// What is counted.
    pub fn stats(&self) -> Arc<ExternalStats> {
        self.stats.clone()
    }

    /// For as long as the agent runs.
    pub async fn follow(mut self) {
        let mut epochs = self.config.epoch();
        let mut asking = JoinSet::new();
        loop {
            self.settle();
            self.begin(&mut asking);
            let due = self.hosts.values().filter_map(|host| host.due).min();
            tokio::select! {
                changed = epochs.changed() => if changed.is_err() { return },
                Some(done) = asking.join_next(), if !asking.is_empty() => {
                    if let Ok((name, answer)) = done
                        && self.take(&name, answer)
                    {
                        self.tell().await;
                    }
                }
                () = until(due), if asking.len() < AT_ONCE => {}
            }
        }
    }

    /// Names that have come and gone; what is missing before everything has come once is perhaps not known yet.
    fn settle(&mut self) {
        let full = self.config.synced();
        let wanted: BTreeSet<Arc<str>> = self.config.snapshot().resolves.iter().cloned().collect();
        let conditions = self.config.conditions();
        let before = self.hosts.len();
        self.hosts.retain(|name, host| {
            let stays = !full || wanted.contains(name);
            if !stays && host.failures > 0 {
                conditions.clear(&condition(name));
            }
            stays
        });
        for name in wanted {
            let new = || Host { addresses: Vec::new(), due: Some(Instant::now()), failures: 0 };
            self.hosts.entry(name).or_insert_with(new);
        }
        if self.hosts.len() < before {
            self.count_failing();
        }
    }

    fn begin(&mut self, asking: &mut JoinSet<(Arc<str>, Result<Answer, String>)>) {
        let now = Instant::now();
        for (name, host) in &mut self.hosts {
            if asking.len() >= AT_ONCE {
                return;
            }
            if host.due.take_if(|due| *due <= now).is_some() {
                let (name, conf) = (name.clone(), self.resolv_conf.clone());
                asking.spawn(async move {
                    let answer = ask::look_up(&conf, &name).await;
                    (name, answer)
                });
            }
        }
    }

    /// Takes an answer; `true`: it says something new.
    fn take(&mut self, name: &str, answer: Result<Answer, String>) -> bool {
        let Some(host) = self.hosts.get_mut(name) else { return false };
        let new = match answer {
            Ok(Answer { mut addresses, ttl }) => {
                self.stats.ok.fetch_add(1, Relaxed);
                if std::mem::take(&mut host.failures) > 0 {
                    self.config.conditions().clear(&condition(name));
                }
                host.due = Some(Instant::now() + ttl.clamp(SOONEST, LATEST));
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(MOST);
                let new = host.addresses != addresses;
                host.addresses = addresses;
                new
            }
            Err(why) => {
                self.stats.failed.fetch_add(1, Relaxed);
                host.failures = host.failures.saturating_add(1);
                let wait = SOONEST * 2_u32.saturating_pow(host.failures.min(8) - 1);
                host.due = Some(Instant::now() + wait.min(FAILED));
                let effect =
                    if host.addresses.is_empty() { "it has no endpoints" } else { "what was known is kept" };
                self.config
                    .conditions()
                    .set(&condition(name), format!("cannot be resolved: {why}: {effect}"));
                false
            }
        };
        self.count_failing();
        new
    }

    fn count_failing(&self) {
        let failing = self.hosts.values().filter(|host| host.failures > 0).count();
        self.stats.failing.store(failing as u64, Relaxed);
    }

    /// Puts in force what is known, and keeps it.
    async fn tell(&self) {
        let known = self.hosts.iter().filter(|(_, host)| !host.addresses.is_empty());
        let known: Known = known.map(|(name, host)| (name.to_string(), host.addresses.clone())).collect();
        let text = serde_json::to_vec(&known).unwrap_or_default();
        self.config.resolved(known).await;
        let next = self.file.with_extension("next");
        let kept = tokio::fs::write(&next, text).await;
        let kept = match kept {
            Ok(()) => tokio::fs::rename(&next, &self.file).await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, file = %self.file.display(), "what host names resolve to is not kept");
        }
    }
}

fn condition(host: &str) -> String {
    format!("host name {host} of an ExternalService")
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

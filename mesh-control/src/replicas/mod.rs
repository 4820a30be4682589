//! The replicas that share a store: who is there, who leads, and which leases each of them hears of.
//!
//! ```text
//! engine ──what this replica hears──▶ **replicas** ──[`Replicas::wanted`]──▶ seat (store::etcd) ──▶ etcd
//! engine ◀──who leads, what others hear── **replicas** ◀──[`Replicas::seen`]──┘
//! ```
//!
//! What a replica says of itself stands in etcd under a lease of etcd: it ends a few seconds after the replica does.
//! Heartbeats come to one replica alone, and stay in its memory: it says of a lease that it hears of it when that begins,
//! and takes it back when it has heard nothing for the lease's time. The leader, who alone ends leases, renews what others
//! hear; what a replica heard that is gone has its whole time from then on.
//!
//! With the store in a directory there is one replica, which leads.
//!
//! Invariants: pure but for its locks; of all that holds by etcd's word, nothing is kept here for longer than etcd keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// Who leads: its name, a space and its lease.
pub const LEADER: &str = "leader";
const REPLICA: &str = "replica/";
const HEARD: &str = "heard/";
/// Leases that one replica says it hears of.
const HEARD_MAX: usize = 65_536;
/// How long it may take to leave.
const LEAVE: Duration = Duration::from_secs(2);

/// What a replica says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct About {
    /// Where its REST API listens.
    pub api: String,
    /// Where agents are served.
    pub agents: String,
    /// The zone that it is in.
    pub zone: String,
    /// Its version.
    pub version: String,
    /// The root's key is with it.
    pub holds_root: bool,
    /// When its intermediate ends, Unix seconds.
    pub intermediate_ends: u64,
    /// The revision of the bundle that all of its agents have taken.
    pub bundle_taken: u64,
}

/// The replicas of one store.
pub struct Replicas {
    name: String,
    shared: bool,
    state: Mutex<State>,
    news: Notify,
    turned: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    about: About,
    hears: BTreeSet<String>,
    here: BTreeMap<String, Vec<u8>>,
    leads_until: Option<Instant>,
    leaving: bool,
    gone: bool,
}

impl Replicas {
    /// One replica, which leads.
    pub fn alone() -> Arc<Self> {
        Arc::new(Self::new("", false))
    }

    /// This replica of several.
    pub fn of(name: &str) -> Arc<Self> {
        Arc::new(Self::new(name, true))
    }

    fn new(name: &str, shared: bool) -> Self {
        let (state, news) = (Mutex::default(), Notify::new());
        Self { name: name.to_owned(), shared, state, news, turned: watch::Sender::new(0) }
    }

    /// This replica's name; empty where it is alone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there may be others.
    pub fn shared(&self) -> bool {
        self.shared
    }

    /// Whether this one does what is to be done once.
    pub fn leads(&self, now: Instant) -> bool {
        !self.shared || self.state.lock().leads_until.is_some_and(|until| now < until)
    }

    /// Changes what this replica says of itself.
    pub fn describe(&self, change: impl FnOnce(&mut About)) {
        let mut state = self.state.lock();
        let before = state.about.clone();
        change(&mut state.about);
        if state.about != before {
            self.news.notify_one();
        }
    }

    /// These leases are heard of here, and no others.
    pub fn hears(&self, leases: BTreeSet<String>) {
        let mut state = self.state.lock();
        if state.hears != leases {
            state.hears = leases;
            self.news.notify_one();
        }
    }

    /// Which leases other replicas hear of, and who.
    pub fn heard_elsewhere(&self) -> BTreeMap<String, String> {
        let state = self.state.lock();
        let heard = state
            .here
            .range(HEARD.to_owned()..)
            .map_while(|(key, _)| key.strip_prefix(HEARD)?.split_once('/'));
        let others = heard.filter(|(replica, _)| *replica != self.name);
        others.map(|(replica, lease)| (lease.to_owned(), replica.to_owned())).collect()
    }

    /// Whether every other replica says that its agents have taken the bundle of this revision or a later one.
    pub fn others_have(&self, bundle: u64) -> bool {
        let all = self.list();
        all.iter().filter(|(name, _)| *name != self.name).all(|(_, about)| about.bundle_taken >= bundle)
    }

    /// All that are here, by name.
    pub fn list(&self) -> Vec<(String, About)> {
        let state = self.state.lock();
        let of = state
            .here
            .range(REPLICA.to_owned()..)
            .map_while(|(key, value)| Some((key.strip_prefix(REPLICA)?, value)));
        of.map(|(name, value)| (name.to_owned(), serde_json::from_slice(value).unwrap_or_default())).collect()
    }

    /// Who leads, as far as is known here.
    pub fn leader(&self) -> Option<String> {
        let state = self.state.lock();
        let text = std::str::from_utf8(state.here.get(LEADER)?).ok()?;
        Some(text.rsplit_once(' ')?.0.to_owned())
    }

    /// For people; empty where it is alone.
    pub fn show(&self) -> Vec<Value> {
        let leader = self.leader();
        let one = |(name, about): (String, About)| {
            let mut shown = json!(about);
            shown["leads"] = (leader.as_ref() == Some(&name)).into();
            shown["self"] = (name == self.name).into();
            shown["name"] = name.into();
            shown
        };
        self.list().into_iter().map(one).collect()
    }

    /// Whether this replica leads, how many are here, and whether the store takes writes, as Prometheus text.
    pub fn metrics(&self, now: Instant, writable: bool) -> String {
        let replicas = if self.shared { self.list().len() as u64 } else { 1 };
        let gauges = [
            (
                "mesh_control_leads",
                "Whether this replica does what is to be done once.",
                u64::from(self.leads(now)),
            ),
            ("mesh_control_replicas", "Replicas of the control plane that are here.", replicas),
            ("mesh_control_store_writable", "Whether the store takes writes.", u64::from(writable)),
        ];
        let one =
            |(name, help, value)| format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        gauges.map(one).concat()
    }

    /// Gives the seat up, so that another leads at once; bounded.
    pub async fn leave(&self) {
        if !self.shared {
            return;
        }
        let mut turned = self.turned.subscribe();
        self.state.lock().leaving = true;
        self.news.notify_one();
        let gone = turned.wait_for(|_| self.state.lock().gone);
        if tokio::time::timeout(LEAVE, gone).await.is_err() {
            tracing::warn!("etcd does not answer: this replica's seat ends by itself");
        }
    }

    /// What is to stand in etcd under this replica's lease.
    pub(crate) fn wanted(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock();
        let about = serde_json::to_vec(&state.about).unwrap_or_default();
        let heard = state.hears.iter().take(HEARD_MAX);
        let heard = heard.map(|lease| (format!("{HEARD}{}/{lease}", self.name), Vec::new()));
        heard.chain([(format!("{REPLICA}{}", self.name), about)]).collect()
    }

    /// Whether a key is this replica's to write.
    pub(crate) fn is_own(&self, key: &str) -> bool {
        let heard = |key: &str| {
            key.strip_prefix(HEARD).and_then(|rest| rest.split_once('/')).map(|(name, _)| name.to_owned())
        };
        key.strip_prefix(REPLICA).is_some_and(|name| name == self.name)
            || heard(key).is_some_and(|name| name == self.name)
    }

    /// Whether the lead is this replica's, of this life or one before.
    pub(crate) fn is_mine(&self, leader: &[u8]) -> bool {
        std::str::from_utf8(leader)
            .ok()
            .and_then(|text| text.rsplit_once(' '))
            .is_some_and(|(name, _)| name == self.name)
    }

    /// What stands in etcd, and until when this replica leads.
    pub(crate) fn seen(&self, here: &BTreeMap<String, Vec<u8>>, leads_until: Option<Instant>) {
        let mut state = self.state.lock();
        if state.here != *here {
            state.here.clone_from(here);
        }
        state.leads_until = leads_until;
    }

    /// Something is to be written.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    /// Whether it is leaving.
    pub(crate) fn left(&self) -> bool {
        self.state.lock().leaving
    }

    /// Its seat is given up.
    pub(crate) fn gone(&self) {
        {
            let mut state = self.state.lock();
            (state.gone, state.leads_until) = (true, None);
        }
        self.turned.send_modify(|turn| *turn += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(of: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        of.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn alone_it_leads_and_several_lead_by_etcds_word() {
        let now = Instant::now();
        assert!(Replicas::alone().leads(now));
        let page = Replicas::alone().metrics(now, false);
        assert!(
            page.contains("mesh_control_leads 1") && page.contains("mesh_control_store_writable 0"),
            "{page}"
        );
        let a = Replicas::of("a");
        assert!(!a.leads(now));
        a.seen(&here(&[(LEADER, "a 7f")]), Some(now + Duration::from_secs(3)));
        assert!(a.leads(now) && a.is_mine(b"a 1") && !a.is_mine(b"b 1"));
        assert!(!a.leads(now + Duration::from_secs(3)), "no longer than etcd keeps it");
        assert_eq!(a.leader().as_deref(), Some("a"));
    }

    #[test]
    fn each_says_what_it_hears_and_knows_what_others_hear() {
        let a = Replicas::of("a");
        a.hears(["node:n1".to_owned()].into());
        a.describe(|about| about.zone = "z1".to_owned());
        let wanted = a.wanted();
        assert!(wanted.contains_key("heard/a/node:n1") && wanted["replica/a"].starts_with(b"{"));
        assert!(
            wanted.keys().all(|key| a.is_own(key)) && !a.is_own("heard/b/node:n1") && !a.is_own("replica/ab")
        );
        let mut there = here(&[("heard/b/workload:shop/cart", ""), ("replica/b", r#"{"bundleTaken":5}"#)]);
        there.extend(wanted);
        a.seen(&there, None);
        let elsewhere = a.heard_elsewhere();
        assert_eq!(elsewhere.get("workload:shop/cart").map(String::as_str), Some("b"));
        assert_eq!(elsewhere.len(), 1, "its own is not elsewhere");
        assert!(a.others_have(5) && !a.others_have(6));
        assert_eq!(a.list().len(), 2);
    }
}

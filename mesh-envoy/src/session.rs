//! One stream of discovery: what was asked for, what was sent and answered, and what may go next. `now` is passed in.
//!
//! Both variants of the protocol, for one type or for all on one stream (ADS):
//! - state of the world: each response of clusters and listeners holds all of them, of the others what is new; a version
//!   is a hash of all that the client should have then, so that a client that comes back with it is sent nothing;
//! - delta: what differs from `initial_resource_versions`, then changes.
//!
//! Order: clusters and their endpoints before the listeners and routes that may name them ([`Session::next`] holds those
//! back until the client has answered, [`WARM`] at most where it asks for no endpoints); a cluster goes only when the
//! client has taken the routes that no longer name it. An updated cluster's endpoints are sent again: Envoy waits for them.
//!
//! Invariants: at most one response of a type is unanswered; a nonce that is not the last one's is ignored; a response
//! that was refused is not sent again until something changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::{Set, Want};
use crate::codec::{Resource, Type, digest};

/// How long routes wait for a client to ask for the endpoints of new clusters.
pub const WARM: Duration = Duration::from_secs(1);
/// Longest refusal that is kept.
const NACK_TEXT: usize = 1024;
/// Most names that one stream may ask for, of one type.
pub const NAMES_MAX: usize = 65_536;

/// Which variant is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// State of the world.
    World,
    /// Incremental.
    Delta,
}

/// A request, of either variant.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// All names that are wanted (world), or further ones (delta).
    pub names: Vec<String>,
    /// Names that are not wanted any more (delta).
    pub not: Vec<String>,
    /// What the client has: by name (delta).
    pub has: BTreeMap<String, String>,
    /// What the client has: all of it (world).
    pub version: String,
    /// Of the response that this answers; empty: none.
    pub nonce: String,
    /// Why that was refused.
    pub error: Option<String>,
}

/// What a request turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The last response was taken, or refused, and why.
    pub answer: Option<Result<(), String>>,
    /// Another set is wanted: look what there is of it.
    pub wants: bool,
    /// More names than one stream may ask for.
    pub too_many: bool,
}

/// A response.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// Of which type.
    pub of: Type,
    /// New or changed; of clusters and listeners in the world's variant: all.
    pub resources: Vec<Arc<Resource>>,
    /// Gone, or never there (delta).
    pub removed: Vec<Arc<str>>,
    /// Of all that the client has then.
    pub version: Arc<str>,
    /// Its number.
    pub nonce: String,
}

#[derive(Default)]
struct State {
    open: bool,
    first: bool,
    want: Want,
    /// What there is of that.
    wanted: Set,
    /// What the client was sent, or says that it has.
    has: BTreeMap<Arc<str>, Held>,
    claimed: String,
    unanswered: bool,
    nonce: String,
    /// Names that the client was told not to exist (delta).
    absent: BTreeSet<Arc<str>>,
}

struct Held {
    version: Arc<str>,
    resource: Option<Arc<Resource>>,
}

/// One stream.
pub struct Session {
    variant: Variant,
    types: [State; Type::ALL.len()],
    sent: u64,
    resumed: Vec<(Type, Arc<str>)>,
    /// Endpoints of clusters that were just sent, and until when routes wait for them.
    warming: Option<(BTreeSet<Arc<str>>, Instant)>,
}

impl Session {
    /// A stream of which nothing is known yet.
    pub fn new(variant: Variant) -> Self {
        Self { variant, types: Default::default(), sent: 0, resumed: Vec::new(), warming: None }
    }

    /// Takes a request in.
    pub fn hear(&mut self, of: Type, ask: Ask) -> Heard {
        let variant = self.variant;
        let state = &mut self.types[of.index()];
        if !std::mem::replace(&mut state.open, true) {
            state.first = true;
            state.claimed = ask.version;
            state.want.all = ask.names.is_empty() && matches!(of, Type::Cluster | Type::Listener);
            let held = |(name, version): (String, String)| {
                (Arc::from(name), Held { version: version.into(), resource: None })
            };
            state.has = ask.has.into_iter().map(held).collect();
            state.more(variant, ask.names, &ask.not);
            return Heard { wants: true, ..state.heard() };
        }
        let answers = !ask.nonce.is_empty();
        if answers && ask.nonce != state.nonce {
            // An answer to what is no longer the last: the client will answer that too. Delta says changes only once.
            if variant == Variant::World {
                return Heard::default();
            }
            let wants = !(ask.names.is_empty() && ask.not.is_empty());
            state.more(variant, ask.names, &ask.not);
            return Heard { wants, ..state.heard() };
        }
        let settled = answers && std::mem::replace(&mut state.unanswered, false);
        let before = state.want.clone();
        let forced = variant == Variant::Delta && !ask.names.is_empty();
        state.more(variant, ask.names, &ask.not);
        let answer = match ask.error {
            Some(text) if answers => Some(Err(one_line(&text))),
            _ => settled.then_some(Ok(())),
        };
        Heard { answer, wants: forced || state.want != before, ..state.heard() }
    }

    /// What is asked for of a type; `None`: nothing was ever.
    pub fn want(&self, of: Type) -> Option<&Want> {
        Some(&self.types[of.index()]).filter(|state| state.open).map(|state| &state.want)
    }

    /// There is this now of what is wanted of a type.
    pub fn set(&mut self, of: Type, set: Set) {
        self.types[of.index()].wanted = set;
    }

    /// There is this now of these names, as far as they are wanted; the rest is as it was.
    pub fn update(&mut self, of: Type, names: &BTreeSet<Arc<str>>, set: &Set) {
        let wanted = &mut self.types[of.index()].wanted;
        for name in names {
            match set.get(name) {
                Some(resource) => wanted.insert(name.clone(), resource.clone()),
                None => wanted.remove(name),
            };
        }
    }

    /// Which of these names a type has, or wants.
    pub fn concerned(&self, of: Type, names: &BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let state = &self.types[of.index()];
        let is = |name: &&Arc<str>| state.want.names.contains(*name) || state.wanted.contains_key(*name);
        names.iter().filter(is).cloned().collect()
    }

    /// The next response that may go now, noted as sent; `None`: nothing, before [`Session::wait`] or another request.
    pub fn next(&mut self, now: Instant) -> Option<Push> {
        for of in Type::ALL {
            let state = &self.types[of.index()];
            if !state.open || state.unanswered {
                continue;
            }
            if matches!(of, Type::Listener | Type::Route) && self.blocked(now) {
                continue;
            }
            let keep = of == Type::Cluster && self.routes_pending();
            if let Some(push) = self.plan(of, keep, now) {
                return Some(push);
            }
        }
        None
    }

    /// Types with which a client came back and has all of, with the version, since this was last asked.
    pub fn resumed(&mut self) -> Vec<(Type, Arc<str>)> {
        std::mem::take(&mut self.resumed)
    }

    /// Until when something is held back; `None`: nothing is, or until an answer comes.
    pub fn wait(&self, now: Instant) -> Option<Instant> {
        let pending = [Type::Listener, Type::Route].into_iter().any(|of| self.differs(of));
        self.warming.as_ref().map(|(_, until)| *until).filter(|until| pending && *until > now)
    }

    /// Clusters and their endpoints are not all taken yet.
    fn blocked(&self, now: Instant) -> bool {
        let [clusters, endpoints] = [Type::Cluster, Type::Endpoints].map(|of| &self.types[of.index()]);
        if clusters.unanswered || endpoints.unanswered {
            return true;
        }
        let asked = |name: &Arc<str>| endpoints.want.all || endpoints.want.names.contains(name);
        match &self.warming {
            Some((names, until)) if *until > now => !names.iter().all(asked),
            _ => false,
        }
    }

    /// Listeners or routes are not what they should be yet: what they name must stay.
    fn routes_pending(&self) -> bool {
        [Type::Listener, Type::Route]
            .into_iter()
            .any(|of| self.types[of.index()].unanswered || self.differs(of))
    }

    fn differs(&self, of: Type) -> bool {
        let state = &self.types[of.index()];
        state.open && !state.first && (state.changed().next().is_some() || state.removed().next().is_some())
    }

    fn plan(&mut self, of: Type, keep: bool, now: Instant) -> Option<Push> {
        let variant = self.variant;
        let state = &mut self.types[of.index()];
        let changed: Vec<Arc<Resource>> = state.changed().cloned().collect();
        let mut removed: Vec<Arc<str>> = state.removed().cloned().collect();
        let mut kept = Set::new();
        if keep {
            for name in std::mem::take(&mut removed) {
                let resource = state.has.get(&name).and_then(|held| held.resource.clone());
                kept.extend(resource.map(|resource| (name, resource)));
            }
        }
        let version = version_of(state.wanted.iter().chain(&kept));
        let whole = variant == Variant::World && matches!(of, Type::Cluster | Type::Listener);
        let goes = match variant {
            Variant::Delta => {
                let absent = state.absent();
                removed.extend(absent);
                state.first || !changed.is_empty() || !removed.is_empty()
            }
            Variant::World if state.first && *state.claimed == *version => {
                // It has all of it from another stream, perhaps of another server.
                state.first = false;
                state.note_all();
                self.resumed.push((of, version.clone()));
                false
            }
            Variant::World if state.first => whole || !state.wanted.is_empty(),
            Variant::World => !changed.is_empty() || whole && !removed.is_empty(),
        };
        if !goes {
            if variant == Variant::World && !whole && !keep {
                state.forget(&removed);
            }
            return None;
        }
        let waiting: BTreeSet<Arc<str>> =
            changed.iter().filter_map(|cluster| assignment_of(cluster)).collect();
        let resources = if whole {
            state.wanted.values().chain(kept.values()).cloned().collect()
        } else {
            changed.clone()
        };
        state.first = false;
        for resource in changed {
            let held = Held { version: resource.version.clone(), resource: Some(resource.clone()) };
            state.absent.remove(&resource.name);
            state.has.insert(resource.name.clone(), held);
        }
        state.forget(&removed);
        self.sent += 1;
        state.nonce = self.sent.to_string();
        state.unanswered = true;
        let nonce = state.nonce.clone();
        if !waiting.is_empty() {
            let endpoints = &mut self.types[Type::Endpoints.index()];
            endpoints.forget(&waiting);
            if endpoints.open {
                self.warming = Some((waiting, now + WARM));
            }
        }
        if variant == Variant::World {
            removed.clear();
        }
        Some(Push { of, resources, removed, version, nonce })
    }
}

impl State {
    fn heard(&self) -> Heard {
        Heard { too_many: self.want.names.len() > NAMES_MAX, ..Heard::default() }
    }

    fn more(&mut self, variant: Variant, names: Vec<String>, not: &[String]) {
        let star = |name: &String| name == "*";
        match variant {
            Variant::World => {
                let all =
                    names.iter().any(star) || names.is_empty() && self.want.all && self.want.names.is_empty();
                let names = names.into_iter().filter(|name| !star(name)).map(Arc::from).collect();
                self.want = Want { all, names };
                let want = &self.want.names;
                if !self.want.all {
                    self.has.retain(|name, _| want.contains(name));
                }
            }
            Variant::Delta => {
                for name in names {
                    if star(&name) {
                        self.want.all = true;
                        continue;
                    }
                    let name: Arc<str> = name.into();
                    self.absent.remove(&name);
                    // Asked for again: it is wanted again.
                    if !self.first {
                        self.has.remove(&name);
                    }
                    self.want.names.insert(name);
                }
                for name in not {
                    if star(name) {
                        self.want.all = false;
                    }
                    self.want.names.remove(name.as_str());
                    self.absent.remove(name.as_str());
                    if !self.want.all {
                        self.has.remove(name.as_str());
                    }
                }
            }
        }
    }

    fn forget<'a>(&mut self, names: impl IntoIterator<Item = &'a Arc<str>>) {
        for name in names {
            self.has.remove(name);
        }
    }

    fn changed(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let same = |resource: &&Arc<Resource>| {
            self.has.get(&resource.name).is_none_or(|held| held.version != resource.version)
        };
        self.wanted.values().filter(same)
    }

    fn removed(&self) -> impl Iterator<Item = &Arc<str>> {
        self.has.keys().filter(|name| !self.wanted.contains_key(*name))
    }

    /// Names that are wanted, are not there, and were not said to be so yet.
    fn absent(&mut self) -> Vec<Arc<str>> {
        let (wanted, has) = (&self.wanted, &self.has);
        let missing = |name: &&Arc<str>| !wanted.contains_key(*name) && !has.contains_key(*name);
        let new: Vec<_> = self
            .want
            .names
            .iter()
            .filter(missing)
            .filter(|name| !self.absent.contains(*name))
            .cloned()
            .collect();
        self.absent.extend(new.iter().cloned());
        new
    }

    fn note_all(&mut self) {
        let held = |resource: &Arc<Resource>| Held {
            version: resource.version.clone(),
            resource: Some(resource.clone()),
        };
        self.has = self.wanted.iter().map(|(name, resource)| (name.clone(), held(resource))).collect();
    }
}

/// The assignment that a cluster waits for.
fn assignment_of(cluster: &Resource) -> Option<Arc<str>> {
    if cluster.of != Type::Cluster || cluster.json["type"] != "EDS" {
        return None;
    }
    let field = |of: &str, name: &str| cluster.json[of][name].as_str().map(Arc::from);
    field("eds_cluster_config", "service_name")
        .or_else(|| field("edsClusterConfig", "serviceName"))
        .or_else(|| Some(cluster.name.clone()))
}

/// A refusal as one line of bounded length.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(NACK_TEXT).collect()
}

/// Of all that a client has.
pub fn version_of<'a>(all: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Resource>)>) -> Arc<str> {
    let sorted: BTreeMap<_, _> = all.map(|(name, resource)| (name, &resource.version)).collect();
    let mut text = String::new();
    for (name, version) in sorted {
        text.push_str(name);
        text.push('\n');
        text.push_str(version);
        text.push('\n');
    }
    digest(text.as_bytes())
}

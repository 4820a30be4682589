//! One delta-xDS stream as a state machine: what to do with each response.
//!
//! xds ──response──▶ **sync** ──[`Step`]──▶ xds: apply and answer, wait, or leave
//!
//! - Barrier: nothing is applied before each of the types had its first response; then all of it is
//!   one update, so no route is ever in force without its services, and nothing shrinks half-way.
//! - Order: a lower revision of the store that we have is refused. Another store is taken only on a stream
//!   that asked for everything, before the barrier; then what the store does not have is gone.
//!
//! Not here: sockets, time, decoding.

use std::collections::BTreeSet;

use mesh_api::proto::discovery::DeltaDiscoveryResponse;
use mesh_core::snapshot::Revision;

use super::resource::{Kind, Raw, Update, kind_of, parse_revision};

/// Resources held back before the barrier, at most. A mesh of this size needs another design.
const MAX_HELD: usize = 1_000_000;

/// What to do after a response.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet: types are missing.
    Wait,
    /// Apply the update, then answer these (type, nonce).
    Apply {
        /// The update.
        update: Update,
        /// What it was made of.
        answers: Vec<Answer>,
    },
    /// Answer this one with an error; the stream goes on.
    Refuse {
        /// What is refused.
        type_url: String,
        /// Its nonce.
        nonce: String,
        /// Why.
        reason: String,
    },
    /// End the stream.
    Leave(Leave),
}

/// A response to be acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its type.
    pub kind: Kind,
    /// Its nonce.
    pub nonce: String,
}

/// Why a stream is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// This replica is behind what we have: try another, later.
    Behind {
        /// What we have.
        ours: u64,
        /// What it has.
        theirs: u64,
    },
    /// Another store: connect again at once and ask for everything.
    OtherStore {
        /// Its id.
        theirs: String,
    },
    /// It does not speak the protocol.
    Protocol(String),
}

impl std::fmt::Display for Leave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Behind { ours, theirs } => {
                write!(f, "it is behind: revision {theirs}, and this node has {ours}")
            }
            Self::OtherStore { theirs } => {
                write!(f, "it has another store ({theirs}); asking for everything")
            }
            Self::Protocol(what) => write!(f, "it does not speak the protocol: {what}"),
        }
    }
}

/// The state of one stream.
#[derive(Debug)]
pub struct Sync {
    full: bool,
    ours: Revision,
    waiting: BTreeSet<Kind>,
    held: Update,
    answers: Vec<Answer>,
}

impl Sync {
    /// A new stream. `full`: it asked for everything (no initial versions); `ours`: what we have.
    pub fn new(full: bool, ours: Revision) -> Self {
        let held = Update { full, ..Update::default() };
        Self { full, ours, waiting: Kind::ALL.into_iter().collect(), held, answers: Vec::new() }
    }

    /// Has every type answered?
    pub fn past_barrier(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Names of the types that have not answered.
    pub fn missing(&self) -> String {
        self.waiting.iter().map(Kind::to_string).collect::<Vec<_>>().join(", ")
    }

    /// What to do with a response.
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Step {
        let DeltaDiscoveryResponse { system_version_info, resources, type_url, nonce, removed_resources } =
            response;
        let Some(kind) = kind_of(&type_url) else {
            return Step::Refuse { reason: format!("type {type_url} is not known here"), type_url, nonce };
        };
        let Some(revision) = parse_revision(&system_version_info) else {
            let what = format!("system_version_info {system_version_info:?} is not <store>/<revision>");
            return Step::Leave(Leave::Protocol(what));
        };
        if let Some(leave) = self.order(&revision) {
            return Step::Leave(leave);
        }
        let held = &mut self.held;
        held.revision = Revision { number: revision.number.max(held.revision.number), store: revision.store };
        for name in removed_resources {
            held.changes.insert((kind, name), None);
        }
        for resource in resources {
            let Some(any) = resource.resource else {
                let what = format!("{kind} {:?} has no content", resource.name);
                return Step::Leave(Leave::Protocol(what));
            };
            if any.type_url != type_url {
                let what = format!("a {} in a response of {type_url}", any.type_url);
                return Step::Leave(Leave::Protocol(what));
            }
            let raw = Raw::new(&resource.version, &any.value);
            held.changes.insert((kind, resource.name), Some(raw));
        }
        if held.changes.len() > MAX_HELD {
            return Step::Leave(Leave::Protocol(format!("more than {MAX_HELD} resources")));
        }
        self.answers.push(Answer { kind, nonce });
        self.waiting.remove(&kind);
        if !self.past_barrier() {
            return Step::Wait;
        }
        let update = std::mem::take(&mut self.held);
        self.full = false;
        self.ours = update.revision.clone();
        Step::Apply { update, answers: std::mem::take(&mut self.answers) }
    }

    /// May a response of this revision be taken?
    fn order(&self, theirs: &Revision) -> Option<Leave> {
        let held = &self.held.revision;
        let mixed = !held.store.is_empty() && held.store != theirs.store;
        let ours = &self.ours;
        if !mixed && (ours.store.is_empty() || ours.store == theirs.store) {
            let behind = ours.store == theirs.store && theirs.number < ours.number;
            return behind.then_some(Leave::Behind { ours: ours.number, theirs: theirs.number });
        }
        // A full stream may bring another store, as long as all of it is from that one.
        let allowed = self.full && !mixed;
        (!allowed).then(|| Leave::OtherStore { theirs: theirs.store.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resource::type_url;
    use mesh_api::proto::discovery::Resource;
    use prost_types::Any;

    fn rev(store: &str, number: u64) -> Revision {
        Revision { store: store.into(), number }
    }

    fn response(kind: Kind, version: &str, names: &[&str], removed: &[&str]) -> DeltaDiscoveryResponse {
        let resource = |name: &&str| Resource {
            version: "h".into(),
            name: (*name).into(),
            resource: Some(Any { type_url: type_url(kind).into(), value: vec![1] }),
        };
        DeltaDiscoveryResponse {
            system_version_info: version.into(),
            resources: names.iter().map(resource).collect(),
            type_url: type_url(kind).into(),
            nonce: format!("{kind}-{version}"),
            removed_resources: removed.iter().map(|s| (*s).into()).collect(),
        }
    }

    fn first_sync(sync: &mut Sync, version: &str) -> Step {
        let mut last = Step::Wait;
        for kind in Kind::ALL {
            assert_eq!(last, Step::Wait);
            last = sync.on_response(response(kind, version, &[&format!("ns/{kind}")], &[]));
        }
        last
    }

    #[test]
    fn nothing_is_applied_before_all_types_have_answered() {
        let mut sync = Sync::new(true, Revision::default());
        assert_eq!(sync.on_response(response(Kind::Service, "s/3", &["a/b"], &["a/c"])), Step::Wait);
        let between = |kind: &Kind| !matches!(kind, Kind::Service | Kind::TrafficPolicy);
        for kind in Kind::ALL.into_iter().filter(between) {
            assert_eq!(sync.on_response(response(kind, "s/4", &[], &[])), Step::Wait);
        }
        assert_eq!(sync.missing(), "TrafficPolicy");
        let Step::Apply { update, answers } =
            sync.on_response(response(Kind::TrafficPolicy, "s/3", &[], &[]))
        else {
            panic!("not applied")
        };
        assert!(update.full && answers.len() == Kind::ALL.len() && sync.past_barrier());
        assert_eq!(update.revision, rev("s", 4));
        assert_eq!(update.changes.len(), 2);
    }

    #[test]
    fn after_the_barrier_each_response_is_a_batch() {
        let mut sync = Sync::new(false, rev("s", 3));
        assert!(matches!(first_sync(&mut sync, "s/3"), Step::Apply { .. }));
        let Step::Apply { update, answers } =
            sync.on_response(response(Kind::Workload, "s/9", &[], &["a/b"]))
        else {
            panic!("not applied")
        };
        assert!(!update.full && answers.len() == 1);
        assert_eq!(update.changes[&(Kind::Workload, "a/b".into())], None);
    }

    #[test]
    fn a_replica_that_is_behind_is_left() {
        let mut sync = Sync::new(false, rev("s", 10));
        let step = sync.on_response(response(Kind::Mesh, "s/9", &[], &[]));
        assert_eq!(step, Step::Leave(Leave::Behind { ours: 10, theirs: 9 }));
        // Also one that asks for everything: the same history, further back.
        let mut sync = Sync::new(true, rev("s", 10));
        let step = sync.on_response(response(Kind::Mesh, "s/9", &[], &[]));
        assert_eq!(step, Step::Leave(Leave::Behind { ours: 10, theirs: 9 }));
    }

    #[test]
    fn another_store_is_taken_only_whole() {
        let other = Step::Leave(Leave::OtherStore { theirs: "t".into() });
        let mut sync = Sync::new(false, rev("s", 10));
        assert_eq!(sync.on_response(response(Kind::Mesh, "t/1", &[], &[])), other);
        let mut sync = Sync::new(true, rev("s", 10));
        let Step::Apply { update, .. } = first_sync(&mut sync, "t/1") else { panic!("not applied") };
        assert!(update.full);
        assert_eq!(update.revision, rev("t", 1));
        // The store changes under a stream that was in step: everything must be asked for again.
        let other = Step::Leave(Leave::OtherStore { theirs: "u".into() });
        assert_eq!(sync.on_response(response(Kind::Mesh, "u/1", &[], &[])), other);
    }

    #[test]
    fn a_full_stream_of_two_stores_is_left() {
        let mut sync = Sync::new(true, Revision::default());
        assert_eq!(sync.on_response(response(Kind::Mesh, "s/1", &[], &[])), Step::Wait);
        let step = sync.on_response(response(Kind::Service, "t/1", &[], &[]));
        assert_eq!(step, Step::Leave(Leave::OtherStore { theirs: "t".into() }));
    }

    #[test]
    fn what_is_not_the_protocol_is_named() {
        let mut sync = Sync::new(true, Revision::default());
        let mut unknown = response(Kind::Mesh, "s/1", &[], &[]);
        unknown.type_url = "type.googleapis.com/x.Y".into();
        assert!(matches!(sync.on_response(unknown), Step::Refuse { .. }));
        let step = sync.on_response(response(Kind::Mesh, "nonsense", &[], &[]));
        assert!(matches!(step, Step::Leave(Leave::Protocol(_))));
    }
}

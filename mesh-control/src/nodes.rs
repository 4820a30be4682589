//! What the control plane knows of each node: shown by `GET /v1/status`, decided nowhere.
//!
//! Invariant: an entry exists only for a node that came with a valid token, and there are at most
//! [`NODES_MAX`]; texts from agents are cut.
//!
//! Not here: the workloads of a node (mesh-registry).

use std::collections::BTreeMap;

use mesh_api::proto::v1;
use parking_lot::Mutex;
use serde::Serialize;

use crate::xds::Type;

/// How many nodes are remembered.
const NODES_MAX: usize = 4096;
/// How many conditions of a node are kept, and how much text of each.
const CONDITIONS_MAX: usize = 64;
const CONDITION_TEXT: usize = 512;
/// How many ejections of a node are kept.
const EJECTIONS_MAX: usize = 1024;

/// All nodes that came, by name.
#[derive(Default)]
pub struct Nodes(Mutex<BTreeMap<String, Node>>);

/// One node as status shows it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Has a configuration stream now.
    pub connected: bool,
    /// Has a session (heartbeats) now.
    pub session: bool,
    /// The agent's version.
    pub agent_version: String,
    /// The agent's own count of what it compiled.
    pub epoch: u64,
    /// `<store id>/<revision>` that the agent runs.
    pub system_version: String,
    /// Refused resources, full maps.
    pub conditions: Vec<String>,
    /// Endpoints that it leaves out for what it saw of them.
    pub ejections: Vec<Ejection>,
    /// ACK state by resource type.
    pub types: BTreeMap<&'static str, TypeStatus>,
    #[serde(skip)]
    streams: usize,
    #[serde(skip)]
    sessions: u64,
}

/// An endpoint that a node leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ejection {
    /// `<namespace>/<name>` of the service.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// `<namespace>/<name>`.
    pub workload: String,
}

impl Ejection {
    fn of(told: &v1::Ejection) -> Self {
        Self { service: cut(&told.service), port: told.port, workload: cut(&told.workload) }
    }
}

/// What a node last answered for one type.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// Revision last sent.
    pub sent: u64,
    /// Revision last taken.
    pub acked: u64,
    /// Why the last response was refused; absent when it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nack: Option<String>,
}

impl Nodes {
    fn with<T>(&self, name: &str, change: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut nodes = self.0.lock();
        if nodes.len() >= NODES_MAX && !nodes.contains_key(name) {
            // Room is made by a node that left.
            let gone =
                nodes.iter().find(|(_, node)| !node.connected && !node.session).map(|(n, _)| n.clone())?;
            nodes.remove(&gone);
        }
        Some(change(nodes.entry(name.to_owned()).or_default()))
    }

    /// A configuration stream begins; false: too many nodes.
    pub fn connected(&self, name: &str) -> bool {
        self.with(name, |node| {
            node.streams += 1;
            node.connected = true;
        })
        .is_some()
    }

    /// A configuration stream ended.
    pub fn disconnected(&self, name: &str) {
        self.with(name, |node| {
            node.streams = node.streams.saturating_sub(1);
            node.connected = node.streams > 0;
        });
    }

    /// A response was sent.
    pub fn sent(&self, name: &str, kind: impl Into<Type>, revision: u64) {
        self.with(name, |node| node.types.entry(kind.into().name()).or_default().sent = revision);
    }

    /// A response was taken.
    pub fn acked(&self, name: &str, kind: impl Into<Type>, revision: u64) {
        self.with(name, |node| {
            let status = node.types.entry(kind.into().name()).or_default();
            status.acked = revision;
            status.nack = None;
        });
    }

    /// Something else holds of this type now: what was taken before does not count any more.
    pub fn unacked(&self, kind: Type) {
        for node in self.0.lock().values_mut() {
            if let Some(status) = node.types.get_mut(kind.name()) {
                status.acked = 0;
            }
        }
    }

    /// A response was refused.
    pub fn nacked(&self, name: &str, kind: impl Into<Type>, cause: String) {
        self.with(name, |node| node.types.entry(kind.into().name()).or_default().nack = Some(cause));
    }

    /// A session begins and takes over from an earlier one; its number is for [`Nodes::is_current`]. `None`:
    /// too many nodes.
    pub fn session_begins(&self, name: &str, hello: &v1::Hello) -> Option<u64> {
        self.with(name, |node| {
            node.sessions += 1;
            node.session = true;
            node.agent_version = cut(&hello.agent_version);
            node.sessions
        })
    }

    /// Whether no later session of the node has begun.
    pub fn is_current(&self, name: &str, session: u64) -> bool {
        self.0.lock().get(name).is_some_and(|node| node.sessions == session)
    }

    /// A session ended.
    pub fn session_ends(&self, name: &str, session: u64) {
        self.with(name, |node| node.session &= node.sessions != session);
    }

    /// What the agent says of itself.
    pub fn status(&self, name: &str, status: &v1::Status) {
        self.with(name, |node| {
            node.epoch = status.epoch;
            node.system_version = cut(&status.system_version);
            let ejected = status.ejections.iter().take(EJECTIONS_MAX);
            node.ejections = ejected.map(Ejection::of).collect();
            node.conditions = status.conditions.iter().take(CONDITIONS_MAX).map(|text| cut(text)).collect();
        });
    }

    /// All of them.
    pub fn list(&self) -> BTreeMap<String, Node> {
        self.0.lock().clone()
    }

    /// Whether every node that has a configuration stream has taken what it was sent of a type at `revision` or
    /// later.
    pub fn all_have(&self, kind: Type, revision: u64) -> bool {
        let nodes = self.0.lock();
        nodes.values().filter(|node| node.connected).all(|node| {
            node.types
                .get(kind.name())
                .is_some_and(|status| status.acked >= revision && status.nack.is_none())
        })
    }

    /// How many have a configuration stream.
    pub fn connected_count(&self) -> usize {
        self.0.lock().values().filter(|node| node.connected).count()
    }
}

fn cut(text: &str) -> String {
    text.chars().take(CONDITION_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use mesh_api::resource::Kind;

    use super::*;

    #[test]
    fn a_late_end_of_an_old_session_changes_nothing() {
        let (nodes, hello) = (Nodes::default(), v1::Hello::default());
        let old = nodes.session_begins("n", &hello).unwrap();
        let new = nodes.session_begins("n", &hello).unwrap();
        assert!(!nodes.is_current("n", old) && nodes.is_current("n", new));
        nodes.session_ends("n", old);
        assert!(nodes.list()["n"].session);
        nodes.session_ends("n", new);
        assert!(!nodes.list()["n"].session);
    }

    #[test]
    fn a_nack_stands_until_the_next_ack() {
        let nodes = Nodes::default();
        nodes.nacked("n", Kind::Service, "no".into());
        assert_eq!(nodes.list()["n"].types["Service"].nack.as_deref(), Some("no"));
        nodes.acked("n", Kind::Service, 9);
        let status = &nodes.list()["n"].types["Service"];
        assert_eq!((status.acked, &status.nack), (9, &None));
    }

    #[test]
    fn nodes_that_left_make_room() {
        let nodes = Nodes::default();
        for i in 0..NODES_MAX {
            assert!(nodes.connected(&format!("n{i}")));
        }
        assert!(!nodes.connected("one-more"));
        nodes.disconnected("n7");
        assert!(nodes.connected("one-more") && !nodes.list().contains_key("n7"));
    }
}

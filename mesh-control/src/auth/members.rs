//! The nodes that have joined: what each may host, for as long as it is a member.
//!
//! A join token opens the door once or for a while; what it granted is bound to the node, and outlives the token.
//! Asked on every call and by every stream, which ends when its node is no longer a member.
//!
//! Not here: storing records (`members` in `engine`), verifying certificates (TLS).

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::token::Grant;
use super::{Principal, Role};
use crate::ca::peer::Peer;

/// A node that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its name.
    pub node: String,
    /// The token that it joined with last.
    pub token: String,
    /// What it may host.
    pub grants: Vec<Grant>,
    /// Unix milliseconds.
    pub joined_ms: u64,
    /// Since when it is no member any more, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

/// Why a node with a certificate is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMember {
    /// It has never joined this mesh.
    #[error(
        "node {0} has not joined: give its agent a token of `meshctl token create --node {0} --allow NS/SA`"
    )]
    Unknown(String),
    /// It was revoked.
    #[error(
        "node {0} was revoked: to let it in again, give its agent a new token of `meshctl token create --node {0} --allow NS/SA`"
    )]
    Revoked(String),
    /// This certificate of it was.
    #[error("the certificate {serial} of node {node} was revoked: the agent joins again with its token")]
    Certificate {
        /// Which node.
        node: String,
        /// Which certificate.
        serial: String,
    },
    /// Its certificate has ended while the connection was open, and it has no newer one.
    #[error("the certificate of node {0} has ended: connect again with the new one")]
    Ended(String),
}

impl From<NotMember> for tonic::Status {
    fn from(no: NotMember) -> Self {
        match no {
            // It has a new one already, as a rule: not a reason to join again.
            NotMember::Ended(_) => Self::unavailable(no.to_string()),
            _ => Self::unauthenticated(no.to_string()),
        }
    }
}

/// All records, by node.
pub struct Members {
    inner: RwLock<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    records: BTreeMap<String, Member>,
    /// Serial numbers of revoked certificates.
    revoked: BTreeSet<String>,
    /// When the newest certificate of each node ends that was issued since the start, Unix seconds.
    newest: BTreeMap<String, u64>,
}

impl Default for Members {
    fn default() -> Self {
        Self { inner: RwLock::default(), version: watch::Sender::new(0) }
    }
}

impl Members {
    /// What the node of a verified certificate may do at `now`, Unix seconds.
    pub fn admit(&self, peer: &Peer, now: u64) -> Result<Principal, NotMember> {
        let name = peer.node.name();
        let inner = self.inner.read();
        // A connection that was opened with a certificate of before goes on while the node renews.
        let end = inner.newest.get(name).map_or(peer.not_after, |newest| peer.not_after.max(*newest));
        if end <= now {
            return Err(NotMember::Ended(name.to_owned()));
        }
        let Some(member) = inner.records.get(name) else { return Err(NotMember::Unknown(name.to_owned())) };
        if member.revoked_ms.is_some() {
            return Err(NotMember::Revoked(name.to_owned()));
        }
        if inner.revoked.contains(&peer.serial) {
            let (node, serial) = (name.to_owned(), peer.serial.clone());
            return Err(NotMember::Certificate { node, serial });
        }
        Ok(Principal {
            token: member.token.clone(),
            name: String::new(),
            role: Role::Node,
            node: member.node.clone(),
            grants: member.grants.clone(),
        })
    }

    /// Adds or replaces a record.
    pub fn insert(&self, member: Member) {
        self.inner.write().records.insert(member.node.clone(), member);
        self.version.send_modify(|version| *version += 1);
    }

    /// A node's certificate was issued, which ends at `not_after`.
    pub fn renewed(&self, node: &str, not_after: u64) {
        let mut inner = self.inner.write();
        if inner.records.contains_key(node) {
            inner.newest.insert(node.to_owned(), not_after);
        }
    }

    /// These certificates are revoked, and no others.
    pub fn revoke(&self, serials: BTreeSet<String>) {
        self.inner.write().revoked = serials;
        self.version.send_modify(|version| *version += 1);
    }

    /// Whether a certificate was revoked.
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.inner.read().revoked.contains(serial)
    }

    /// One.
    pub fn get(&self, node: &str) -> Option<Member> {
        self.inner.read().records.get(node).cloned()
    }

    /// All, by name.
    pub fn list(&self) -> Vec<Member> {
        self.inner.read().records.values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner.read().records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Turns at every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_with_a_certificate_in_force_are_let_in() {
        let (members, node) = (Members::default(), "spiffe://m/node/n1".parse().unwrap());
        let peer = Peer { node, serial: "01".into(), not_after: 100 };
        assert_eq!(members.admit(&peer, 1).unwrap_err(), NotMember::Unknown("n1".into()));
        let grants = vec!["shop/*".parse().unwrap()];
        let member = Member { node: "n1".into(), token: "t".into(), grants, joined_ms: 1, revoked_ms: None };
        members.insert(member.clone());
        let who = members.admit(&peer, 99).unwrap();
        assert!(who.may_register("shop", "cart") && !who.may_register("bank", "cart"));
        assert_eq!(members.admit(&peer, 100).unwrap_err(), NotMember::Ended("n1".into()));
        members.renewed("n1", 200);
        assert!(members.admit(&peer, 199).is_ok() && members.admit(&peer, 200).is_err());
        members.revoke(["01".to_owned()].into());
        assert!(matches!(members.admit(&peer, 1), Err(NotMember::Certificate { .. })));
        members.revoke(BTreeSet::new());
        members.insert(Member { revoked_ms: Some(5), ..member });
        assert_eq!(members.admit(&peer, 1).unwrap_err(), NotMember::Revoked("n1".into()));
    }
}

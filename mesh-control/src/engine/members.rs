//! Nodes that have joined, in the store: key `/nodes/<name>`, value the record as JSON.
//!
//! Joining with a token for a single use marks it used in the transaction that makes the node a member: of two who
//! come with it, one gets in.

use std::sync::Arc;

use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::Spec;
use mesh_registry::intent::WriteError;
use mesh_registry::source::{LeaseRef, Owner};
use mesh_registry::store::{StoreError, Txn};
use serde::Serialize;

use super::Engine;
use super::tokens::token_key;
use crate::auth::Role;
use crate::auth::members::Member;
use crate::auth::table::NoToken;
use crate::auth::token::TokenRecord;
use crate::clock::unix_ms;

pub(super) const PREFIX: &str = "/nodes/";
/// How many nodes may be members.
const MEMBERS_MAX: usize = 16_384;

/// Why a node may not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is not one, or not valid.
    #[error("{0}")]
    Token(String),
    /// The token is good for something else.
    #[error("{0}")]
    Forbidden(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn key(node: &str) -> String {
    format!("{PREFIX}{node}")
}

fn write(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let operation = "write a node";
    serde_json::to_vec(value).map_err(|cause| StoreError::Failed { operation, cause: cause.to_string() })
}

impl Engine {
    /// Reads all records.
    pub(super) fn load_members(&self) -> Result<(), StoreError> {
        for entry in self.store.range(PREFIX, None)?.entries {
            let record: Member = serde_json::from_slice(&entry.value)
                .map_err(|cause| StoreError::Corrupt { path: entry.key, cause: cause.to_string() })?;
            self.members.insert(record);
        }
        Ok(())
    }

    /// Another replica wrote of a member.
    pub(super) fn member_changed(&self, key: &str, value: Option<&[u8]>) {
        match value.map(serde_json::from_slice::<Member>) {
            // Who has joined once is known for ever.
            None => {}
            // What this process wrote is known: its streams need not look again.
            Some(Ok(record)) if self.members.get(&record.node).as_ref() == Some(&record) => {}
            Some(Ok(record)) => self.members.insert(record),
            Some(Err(error)) => {
                tracing::error!(key, %error, "a node's record cannot be read and is left out");
            }
        }
    }

    /// Makes `node` a member by a join token. Blocks.
    pub fn join(&self, text: &str, node: &str) -> Result<Member, JoinError> {
        let now = unix_ms();
        let remedy = "make one with `meshctl token create --node NAME --allow NS/SA`";
        let token = self.tokens.find(text, now).map_err(|cause| match cause {
            NoToken::Unknown => {
                JoinError::Token(format!("no valid join token (unknown, or revoked); {remedy}"))
            }
            NoToken::Expired => JoinError::Token(format!("the join token has expired; {remedy}")),
        })?;
        if token.role != Role::Node {
            let role = token.role.name();
            return Err(JoinError::Forbidden(format!(
                "a token of role {role} is not a join token; {remedy}"
            )));
        }
        if token.node != node {
            return Err(JoinError::Forbidden(format!(
                "the agent calls itself {node:?} but its join token is of node {:?}: give it --node {} or another \
                 token",
                token.node, token.node
            )));
        }
        if self.members.len() >= MEMBERS_MAX && self.members.get(node).is_none() {
            return Err(JoinError::Forbidden(format!("{MEMBERS_MAX} nodes have joined: no more are taken")));
        }
        let member = Member {
            node: node.to_owned(),
            token: token.id.clone(),
            grants: token.grants.clone(),
            joined_ms: now,
            revoked_ms: None,
        };
        let mut txn = Txn::default().put(key(node), write(&member)?);
        let used = if token.single_use { Some(self.used(&token, now, &mut txn)?) } else { None };
        match self.commit(|| Ok(self.store.transact(txn)?)) {
            Ok(_) => {}
            Err(WriteError::Store(StoreError::Conflict { .. })) => return Err(used_already(&token)),
            Err(WriteError::Store(error)) => return Err(error.into()),
            Err(WriteError::Refused(error)) => return Err(JoinError::Forbidden(error.message)),
        }
        if let Some(record) = used {
            self.tokens.insert(record);
        }
        self.members.insert(member.clone());
        Ok(member)
    }

    /// Adds to `txn` that the token is used now; fails where it was.
    fn used(&self, token: &TokenRecord, now: u64, txn: &mut Txn) -> Result<TokenRecord, JoinError> {
        let path = token_key(&token.id);
        let stored = self
            .store
            .get(&path)?
            .ok_or_else(|| JoinError::Token("the join token was revoked a moment ago".to_owned()))?;
        let mut record: TokenRecord = serde_json::from_slice(&stored.value)
            .map_err(|cause| StoreError::Corrupt { path: path.clone(), cause: cause.to_string() })?;
        if record.used_ms.is_some() {
            return Err(used_already(token));
        }
        record.used_ms = Some(now);
        *txn = std::mem::take(txn).if_at(path.clone(), stored.modified).put(path, write(&record)?);
        Ok(record)
    }

    /// Ends a node's membership, and its tokens; `None`: it is no member.
    pub async fn revoke_node(self: &Arc<Self>, node: String) -> Result<Option<Member>, WriteError> {
        self.blocking(move |engine| {
            let Some(member) = engine.members.get(&node) else { return Ok(None) };
            let tokens = engine.tokens.list().into_iter();
            let of_node: Vec<String> =
                tokens.filter(|t| t.role == Role::Node && t.node == node).map(|t| t.id).take(1000).collect();
            let member = Member { revoked_ms: Some(unix_ms()), ..member };
            let mut txn = Txn::default().put(key(&node), write(&member)?);
            for id in &of_node {
                txn = txn.delete(token_key(id));
            }
            engine.commit(|| Ok(engine.store.transact(txn)?))?;
            for id in of_node {
                engine.tokens.remove(&id);
            }
            engine.members.insert(member.clone());
            Ok(Some(member))
        })
        .await
    }

    /// Ends the membership of the nodes that joined last by this token.
    pub(super) fn revoke_joined_by(&self, token: &str) -> Result<(), WriteError> {
        for member in self.members.list() {
            if member.token == token && member.revoked_ms.is_none() {
                let member = Member { revoked_ms: Some(unix_ms()), ..member };
                let txn = Txn::default().put(key(&member.node), write(&member)?);
                self.commit(|| Ok(self.store.transact(txn)?))?;
                self.members.insert(member);
            }
        }
        Ok(())
    }

    /// Accounts of the workloads that a node has registered and that are its own: (namespace, service account).
    pub fn hosted(&self, node: &str) -> std::collections::BTreeSet<(String, String)> {
        let (lease, owner) = (LeaseRef::of_node(node, self.times.lease).name, Owner::node(node));
        let registry = self.registry.lock();
        let own =
            registry.leases().members(&lease).into_iter().filter(|key| registry.owner(key) == Some(&owner));
        own.filter_map(|key| {
            let workload = registry.get(key)?;
            let Spec::Workload(spec) = &workload.spec else { return None };
            Some((key.namespace.clone(), spec.service_account.clone()))
        })
        .collect()
    }

    /// The trust domain of the mesh.
    pub fn trust_domain(&self) -> String {
        let registry = self.registry.lock();
        match registry.get(&mesh_api::resource::Key::mesh()).map(|mesh| &mesh.spec) {
            Some(Spec::Mesh(spec)) => spec.trust_domain.clone(),
            _ => mesh_api::resource::MeshSpec::default().trust_domain,
        }
    }
}

fn used_already(token: &TokenRecord) -> JoinError {
    JoinError::Token(format!(
        "the join token {} was used already, and is for a single use; make another one with `meshctl token create \
         --node {} --allow NS/SA`",
        token.id, token.node
    ))
}

/// The refusal where a node is no member.
pub fn no_member(node: &str) -> ApiError {
    ApiError::new(Reason::NotFound, "node", node.into(), "a node that has joined; see `meshctl node list`")
        .saying(format!("node {node} has not joined"))
}

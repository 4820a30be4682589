//! Who is asking, and what they may do.
//!
//! people: bearer text ──[`token`]──▶ id + secret ──[`table`]──▶ [`Principal`] {role}
//! [`attempts`]: how often an address may be wrong.
//! nodes: certificate ──[`members`]──▶ [`Principal`] {node, grants}; a join token makes a node a member
//!
//! Invariant: a secret is never stored, logged or compared as text; only its SHA-256 is kept, and hashes
//! are compared in constant time.
//! Not here: how the text travels (HTTP header, gRPC metadata).

pub mod attempts;
pub mod members;
pub mod table;
pub mod token;

use mesh_registry::history::By;
use token::{Grant, TokenRecord};

/// What a token allows, from most to least. `Node` stands apart: agents only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, tokens included.
    Admin,
    /// Reads and writes resources.
    Editor,
    /// Reads resources and status.
    Viewer,
    /// An agent: its own session and the configuration of the mesh.
    Node,
    /// An Envoy or a client of gRPC: what nodes of its type are told.
    Envoy,
}

impl Role {
    /// Parses the name as it stands in requests.
    pub fn parse(text: &str) -> Option<Self> {
        [Role::Admin, Role::Editor, Role::Viewer, Role::Node, Role::Envoy]
            .into_iter()
            .find(|role| role.name() == text)
    }

    /// The name as it stands in requests.
    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Editor => "editor",
            Role::Viewer => "viewer",
            Role::Node => "node",
            Role::Envoy => "envoy",
        }
    }

    /// May read resources and status over REST.
    pub fn reads(self) -> bool {
        !matches!(self, Role::Node | Role::Envoy)
    }

    /// May write resources.
    pub fn writes(self) -> bool {
        matches!(self, Role::Admin | Role::Editor)
    }

    /// May make, list and revoke tokens.
    pub fn administers(self) -> bool {
        self == Role::Admin
    }
}

/// The owner of a valid token.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The token's id: what audit lines and revocation name.
    pub token: String,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The node that a `Node` token belongs to, the node type of an `Envoy` token; empty for people.
    pub node: String,
    /// What a `Node` token may register.
    pub grants: Vec<Grant>,
}

impl Principal {
    fn of(record: &TokenRecord) -> Self {
        Self {
            token: record.id.clone(),
            name: record.name.clone(),
            role: record.role,
            node: record.node.clone(),
            grants: record.grants.clone(),
        }
    }

    /// As history and the audit log name it.
    pub fn by(&self) -> By {
        By { id: self.token.clone(), name: self.name.clone() }
    }

    /// Whether this node may register a workload with that identity.
    pub fn may_register(&self, namespace: &str, service_account: &str) -> bool {
        self.role == Role::Node && self.grants.iter().any(|grant| grant.covers(namespace, service_account))
    }
}

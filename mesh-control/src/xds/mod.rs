//! Configuration to agents: incremental xDS over one stream a node.
//!
//! registry ──changes──▶ [`hub`] ──dirty names──▶ [`stream`] ──[`subscription`]──▶ agent, ACK / NACK back
//!
//! Invariants: what waits for a slow agent are names, never contents; the first response of a subscribed
//! type is sent even when it is empty (agents wait for all types before they let anything shrink); a
//! response is built under one lock, so that its revision is true of everything in it.
//!
//! Not here: what the resources say (mesh-registry), who may connect (`agents`).

pub mod hub;
pub mod stream;
pub mod subscription;

use mesh_api::resource::Kind;

/// How many types there are; arrays by type are indexed with [`Type::index`].
pub const TYPES: usize = Kind::ALL.len() + 2;

/// A type of resource that agents are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Made of the objects of a kind.
    Of(Kind),
    /// Whom to believe: the authority's own.
    TrustBundle,
    /// Keys of those who issue tokens.
    JwtKeys,
}

impl From<Kind> for Type {
    fn from(kind: Kind) -> Self {
        Self::Of(kind)
    }
}

impl Type {
    /// All of them that agents may ask for.
    pub fn all() -> impl Iterator<Item = Self> {
        Kind::ALL
            .into_iter()
            .filter(|kind| kind.is_for_agents())
            .map(Self::Of)
            .chain([Self::TrustBundle, Self::JwtKeys])
    }

    /// Its place in arrays.
    pub const fn index(self) -> usize {
        match self {
            Self::Of(kind) => kind as usize,
            Self::TrustBundle => TYPES - 2,
            Self::JwtKeys => TYPES - 1,
        }
    }

    /// As status shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Of(kind) => kind.name(),
            Self::TrustBundle => "TrustBundle",
            Self::JwtKeys => "JwtKeys",
        }
    }

    /// As the wire says it.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Of(kind) => kind.type_url(),
            Self::TrustBundle => "type.googleapis.com/nodemesh.v1.TrustBundle",
            Self::JwtKeys => "type.googleapis.com/nodemesh.v1.JwtKeys",
        }
    }

    /// The type of this URL.
    pub fn from_type_url(text: &str) -> Option<Self> {
        Self::all().find(|of| of.type_url() == text)
    }
}

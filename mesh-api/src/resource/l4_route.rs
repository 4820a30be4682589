//! `TCPRoute` and `UDPRoute`, in the Gateway API's own shape, attached to Services (GAMMA): connections, or UDP
//! sockets, to weighted backends.
//!
//! Both hold the same; the kind says which ports they are for. One rule, since nothing tells two apart.
//! Not here: which route wins (the older; mesh-core's compile).

use serde::Serialize;

use super::{BackendRef, ParentRef};
use crate::error::ApiError;
use crate::walk::At;

/// What a `TCPRoute` or `UDPRoute` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct L4RouteSpec {
    /// Services whose connections it routes; at least one.
    pub parent_refs: Vec<ParentRef>,
    /// Exactly one.
    pub rules: Vec<L4Rule>,
}

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct L4Rule {
    /// By weight; at least one.
    pub backend_refs: Vec<BackendRef>,
}

impl L4RouteSpec {
    pub(super) fn read(at: &At<'_>, namespace: &str) -> Result<Self, ApiError> {
        let fields = at.object(&["parentRefs", "rules"], &["useDefaultGateways"])?;
        let parents = fields.need("parentRefs", "a list of 1..=32 Services")?.list(1..=32)?;
        let rules = fields.need("rules", "a list of one rule")?.list(1..=1)?;
        Ok(Self {
            parent_refs: parents.iter().map(|at| ParentRef::read(at, namespace)).collect::<Result<_, _>>()?,
            rules: rules.iter().map(L4Rule::read).collect::<Result<_, _>>()?,
        })
    }

    /// The backends of all rules.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        self.rules.iter().flat_map(|rule| &rule.backend_refs)
    }
}

impl L4Rule {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["backendRefs"], &["name"])?;
        let backends = fields.need("backendRefs", "a list of 1..=16 Services")?.list(1..=16)?;
        Ok(Self { backend_refs: backends.iter().map(BackendRef::read).collect::<Result<_, _>>()? })
    }
}

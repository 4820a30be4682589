//! `TLSRoute`, in the Gateway API's own shape, attached to Services (GAMMA): connections of TLS, by the name that
//! their client asks for, to weighted backends that open them.
//!
//! One rule, since nothing but the name tells two connections apart. TLS is never opened here.
//! Not here: which route wins (mesh-core's route), and how the name is read (mesh-core's tls).

use serde::Serialize;

use super::{BackendRef, L4Rule, ParentRef};
use crate::error::ApiError;
use crate::name::HOSTNAME;
use crate::walk::At;

/// What a `TLSRoute` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsRouteSpec {
    /// Services whose connections it routes; at least one.
    pub parent_refs: Vec<ParentRef>,
    /// Names that clients ask for; at least one.
    pub hostnames: Vec<String>,
    /// Exactly one.
    pub rules: Vec<L4Rule>,
}

impl TlsRouteSpec {
    pub(super) fn read(at: &At<'_>, namespace: &str) -> Result<Self, ApiError> {
        let fields = at.object(&["parentRefs", "hostnames", "rules"], &["useDefaultGateways"])?;
        let parents = fields.need("parentRefs", "a list of 1..=32 Services")?.list(1..=32)?;
        let hostnames = fields.need("hostnames", "a list of 1..=16 host names")?.list(1..=16)?;
        let rules = fields.need("rules", "a list of one rule")?.list(1..=1)?;
        Ok(Self {
            parent_refs: parents.iter().map(|at| ParentRef::read(at, namespace)).collect::<Result<_, _>>()?,
            hostnames: hostnames.iter().map(|at| at.checked(&HOSTNAME)).collect::<Result<_, _>>()?,
            rules: rules.iter().map(L4Rule::read).collect::<Result<_, _>>()?,
        })
    }

    /// The backends of all rules.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        self.rules.iter().flat_map(|rule| &rule.backend_refs)
    }
}

//! What workloads may open to the outside of the mesh.
//!
//! Said by the `Mesh` for everybody, by a `TransportPolicy` for some.
//! Not here: what is outside (the kernel's programs), which of several policies holds (mesh-core's compile).

use serde::Serialize;

use crate::error::ApiError;
use crate::walk::At;

/// What workloads may open to the outside of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Egress {
    /// Which way.
    pub mode: EgressMode,
}

/// Ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EgressMode {
    /// Everything.
    #[default]
    AllowAll,
    /// What an `ExternalService` names; all else is refused.
    AllowList,
}

impl Egress {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["mode"], &[])?;
        let words = [("allowAll", EgressMode::AllowAll), ("allowList", EgressMode::AllowList)];
        Ok(Self { mode: fields.need("mode", "allowAll or allowList")?.one_of(&words, &[])? })
    }
}

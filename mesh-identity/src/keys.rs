//! Where tunnels find what they show and what they ask for.

use std::sync::Arc;

use mesh_api::spiffe::SpiffeId;

use crate::{Bundle, Svid};

/// The identities that live on a node. Asked at each handshake: what it answers may change between two.
pub trait Keys: Send + Sync {
    /// The newest certificate of an identity; `None`: there is none (yet), so its tunnels wait or fail.
    fn svid(&self, id: &SpiffeId) -> Option<Arc<Svid>>;

    /// Whom to believe; `None`: the control plane has not said yet.
    fn bundle(&self) -> Option<Arc<Bundle>>;
}

//! A certificate with its key, as it is shown to peers.

use std::sync::Arc;

use mesh_api::spiffe::SpiffeId;
use rustls::sign::CertifiedKey;

/// One workload identity's certificate and key.
#[derive(Debug)]
pub struct Svid {
    /// Whose.
    pub id: SpiffeId,
    /// Leaf first, then intermediates, no root; and the key that signs.
    pub certified: Arc<CertifiedKey>,
    /// First and last second of its validity, Unix time.
    pub not_before: u64,
    /// See [`Self::not_before`].
    pub not_after: u64,
}

//! The certificates that are held now, for whoever opens or takes a tunnel.
//!
//! A look-up a handshake: one read lock, one clone of two pointers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mesh_api::proto::v1;
use mesh_api::spiffe::SpiffeId;
use mesh_identity::{Bundle, Keys, Svid};
use parking_lot::RwLock;
use rustls_pki_types::CertificateRevocationListDer;

use super::keep::Keep;
use super::member::{Member, certificates};

/// An identity of this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub svid: Option<Arc<Svid>>,
    /// Hexadecimal; empty without a certificate.
    pub serial: String,
    /// Why there is no newer one; empty: nothing failed since.
    pub failure: String,
}

/// All identities of this node. Cheap to clone.
#[derive(Clone)]
pub struct Identities(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub member: Arc<Member>,
    pub keep: Keep,
    pub held: RwLock<HashMap<SpiffeId, Held>>,
    pub bundle: ArcSwapOption<Bundle>,
    /// Certificates that came, and that were asked for in vain.
    pub renewed: AtomicU64,
    pub failed: AtomicU64,
}

impl Identities {
    /// None yet.
    pub fn new(member: Arc<Member>, keep: Keep) -> Self {
        Self(Arc::new(Inner {
            member,
            keep,
            held: RwLock::default(),
            bundle: ArcSwapOption::empty(),
            renewed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }))
    }

    /// Believes this from now on.
    pub(super) fn believe(&self, told: &v1::TrustBundle) {
        let revoked = told.revoked.iter().map(|der| CertificateRevocationListDer::from(der.clone()));
        let roots = certificates(&told.roots);
        self.0.member.credentials().believe(roots.clone());
        let trust_domain = told.trust_domain.clone();
        self.0.bundle.store(Some(Arc::new(Bundle { trust_domain, roots, revoked: revoked.collect() })));
    }

    /// Returns when every identity of this node has a certificate.
    pub async fn complete(&self) {
        while self.0.held.read().values().any(|held| held.svid.is_none()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Certificates that an earlier agent left and that serve again, and those that are not kept for a next one.
    pub fn kept(&self) -> (u64, u64) {
        self.0.keep.counts()
    }

    /// Certificates that came since the start, and that were asked for in vain.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.renewed.load(Relaxed), self.0.failed.load(Relaxed))
    }
}

impl Keys for Identities {
    fn svid(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.0.held.read().get(id)?.svid.clone()
    }

    fn bundle(&self) -> Option<Arc<Bundle>> {
        self.0.bundle.load_full()
    }
}

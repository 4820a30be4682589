//! What connections to the control plane show, and what they believe: asked at each handshake.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

/// The node's own certificate.
#[derive(Clone, Debug)]
pub struct NodeCert {
    /// With its key.
    pub certified: Arc<CertifiedKey>,
    /// `spiffe://<trust domain>/node/<name>`.
    pub identity: String,
    /// Hexadecimal.
    pub serial: String,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// Which of the authority's keys signed it.
    pub generation: u64,
}

/// Shared by all connections.
#[derive(Debug, Default)]
pub struct Credentials(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// SHA-256 of the one root that the join token names.
    pin: Option<[u8; 32]>,
    roots: Vec<CertificateDer<'static>>,
    node: Option<Arc<NodeCert>>,
}

impl Credentials {
    /// With the root of a token.
    pub fn pinned(pin: [u8; 32]) -> Arc<Self> {
        let this = Self::default();
        this.pin(pin);
        Arc::new(this)
    }

    /// The root of this hash is believed.
    pub fn pin(&self, pin: [u8; 32]) {
        self.0.write().pin = Some(pin);
    }

    /// These roots are believed.
    pub fn believe(&self, roots: Vec<CertificateDer<'static>>) {
        self.0.write().roots = roots;
    }

    /// This certificate is shown.
    pub fn show(&self, node: NodeCert) {
        self.0.write().node = Some(Arc::new(node));
    }

    /// The hash of the root that the token names, and roots that are believed.
    pub fn believed(&self) -> (Option<[u8; 32]>, Vec<CertificateDer<'static>>) {
        let inner = self.0.read();
        (inner.pin, inner.roots.clone())
    }

    /// What is shown.
    pub fn node(&self) -> Option<Arc<NodeCert>> {
        self.0.read().node.clone()
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.node().map(|node| node.certified.clone())
    }

    fn has_certs(&self) -> bool {
        self.node().is_some()
    }
}

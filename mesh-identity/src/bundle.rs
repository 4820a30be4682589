//! What a peer's certificate must lead to.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

/// The authorities of a trust domain. More than one root while they are rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Identities of other trust domains are refused.
    pub trust_domain: String,
    /// Root certificates.
    pub roots: Vec<CertificateDer<'static>>,
    /// What was revoked before its time; none: nothing was.
    pub revoked: Vec<CertificateRevocationListDer<'static>>,
}

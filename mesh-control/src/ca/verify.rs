//! Judges the certificates that agents show: of a root that is believed now, not ended, not revoked.
//!
//! A client may show none: then it can only join. Whose the certificate is, and whether that is still a member, is
//! asked later (`auth::members`).

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

/// Follows the roots and lists of the authority.
pub struct Clients {
    inner: RwLock<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

impl Clients {
    /// Starts with these.
    pub fn new(
        roots: &[CertificateDer<'static>],
        revoked: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Arc<Self>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let inner = RwLock::new(verifier(&provider, roots, revoked)?);
        Ok(Arc::new(Self { inner, provider }))
    }

    /// Handshakes from now on are judged by these.
    pub fn replace(
        &self,
        roots: &[CertificateDer<'static>],
        revoked: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<(), Error> {
        *self.inner.write() = verifier(&self.provider, roots, revoked)?;
        Ok(())
    }

    fn now(&self) -> Arc<dyn ClientCertVerifier> {
        self.inner.read().clone()
    }
}

fn verifier(
    provider: &Arc<CryptoProvider>,
    certificates: &[CertificateDer<'static>],
    revoked: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for root in certificates {
        roots.add(root.clone())?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .with_crls(revoked)
        // Most intermediates have revoked nothing, and have no list.
        .allow_unknown_revocation_status()
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now().verify_client_cert(leaf, rest, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

//! How TLS is spoken between nodes: 1.3 alone, AES-GCM alone, HTTP/2 inside, a certificate from both ends.
//!
//! [`Svid`] + [`Bundle`](crate::Bundle) ──▶ **tls** ──▶ `ClientConfig`, `ServerConfig` of rustls
//!
//! Invariants: no session is resumed and no ticket sent, so that every connection proves both ends anew; no early
//! data; keys are logged nowhere. The verifiers hold no clock: `now` is rustls'.
//! Not here: what a certificate must be (verify), sockets.

use std::fmt;
use std::sync::Arc;

use mesh_api::spiffe::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme, version::TLS13,
};
use rustls_pki_types::{CertificateDer, DnsName, ServerName, UnixTime};

use crate::verify::{Peer, Roots};
use crate::{Refused, Svid};

/// The one protocol inside.
pub const ALPN: &[u8] = b"h2";

/// The cryptography that is used: rustls' own with fewer suites.
pub fn provider() -> Arc<CryptoProvider> {
    let suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
}

/// For whom accepts: shows `svid`, and asks whoever calls for a certificate of the bundle's trust domain.
pub fn server(
    provider: &Arc<CryptoProvider>,
    svid: &Svid,
    roots: &Arc<Roots>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier::new(provider, roots, Vec::new())))
        .with_cert_resolver(Arc::new(Shown(svid.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// For whom calls: shows `svid`, and talks to nobody but `expected`.
pub fn client(
    provider: &Arc<CryptoProvider>,
    svid: &Svid,
    roots: &Arc<Roots>,
    expected: Vec<SpiffeId>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(provider, roots, expected)))
        .with_client_cert_resolver(Arc::new(Shown(svid.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The name of a workload (`NAMESPACE/NAME`) in the handshake, for an address that several workloads share. One
/// that is no DNS name is left out: an address is never sent.
pub fn server_name(workload: &str) -> ServerName<'static> {
    let name = workload.split_once('/').map(|(namespace, name)| format!("{name}.{namespace}.workload"));
    match name.and_then(|name| DnsName::try_from(name).ok()) {
        Some(name) => ServerName::DnsName(name),
        None => ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into()),
    }
}

/// One certificate, whatever is asked for.
#[derive(Debug)]
pub(crate) struct Shown(pub Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Asks [`Roots::verify`].
struct Verifier {
    roots: Arc<Roots>,
    expected: Vec<SpiffeId>,
    signatures: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(provider: &CryptoProvider, roots: &Arc<Roots>, expected: Vec<SpiffeId>) -> Self {
        Self { roots: roots.clone(), expected, signatures: provider.signature_verification_algorithms }
    }

    fn ask(
        &self,
        peer: Peer<'_>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut chain = Vec::with_capacity(intermediates.len() + 1);
        chain.push(leaf.clone());
        chain.extend_from_slice(intermediates);
        self.roots.verify(peer, &chain, now).map(|_| ()).map_err(Refused::into_tls)
    }

    fn signed(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.signatures)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} {:?})", self.roots.trust_domain(), self.expected)
    }
}

/// TLS 1.2 is never spoken.
const NOT_SPOKEN: Error = Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.ask(Peer::Server(&self.expected), leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NOT_SPOKEN)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    // Hints would name our roots to whoever asks; clients of a mesh have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.ask(Peer::Client, leaf, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NOT_SPOKEN)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

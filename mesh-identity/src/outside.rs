//! How TLS is spoken with who is no part of the mesh: 1.2 and 1.3, a certificate that authorities of one's own choice
//! have issued for one of the names that are expected.
//!
//! Invariants: a certificate is always asked for and always checked, chain and name; no session is resumed, so that a
//! change of what is believed holds from the next connection on.
//! Not here: where authorities come from, sockets.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::Svid;
use crate::tls::Shown;

/// What a connection to the outside asks for.
pub struct Expected {
    /// Whom to believe.
    pub roots: Arc<RootCertStore>,
    /// The certificate is for one of these.
    pub names: Vec<ServerName<'static>>,
    /// Protocols that are offered.
    pub alpn: Vec<Vec<u8>>,
    /// Whether a name is asked for.
    pub sni: bool,
}

/// For whom calls; shows `svid`, if there is one and it is asked for.
pub fn client(expected: Expected, svid: Option<&Svid>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let signatures = provider.signature_verification_algorithms;
    let Expected { roots, names, alpn, sni } = expected;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { roots, names, signatures }));
    let mut config = match svid {
        Some(svid) => {
            let shown: Arc<dyn ResolvesClientCert> = Arc::new(Shown(svid.certified.clone()));
            builder.with_client_cert_resolver(shown)
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn;
    config.enable_sni = sni;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    names: Vec<ServerName<'static>>,
    signatures: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(leaf)?;
        let all = self.signatures.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, all)?;
        let mut wrong = Error::InvalidCertificate(CertificateError::NotValidForName);
        for name in &self.names {
            match verify_server_name(&certificate, name) {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                Err(error) => wrong = error,
            }
        }
        Err(wrong)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.signatures)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

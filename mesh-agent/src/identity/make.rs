//! Private keys, and requests to have them certified.

use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

/// A key that has no certificate yet. Wiped when it is dropped.
pub struct Key(Zeroizing<Vec<u8>>);

/// A key or certificate that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// No key can be made, or no request of it.
    #[error("a key cannot be made: {0}")]
    Key(#[from] rcgen::Error),
    /// The certificate does not belong to the key.
    #[error("the certificate is not for the key that was asked for: {0}")]
    Certificate(#[from] rustls::Error),
}

/// A new ECDSA P-256 key, and the request (PKCS#10, DER) for the identity `name`, or without a name.
pub fn key(name: Option<&str>) -> Result<(Key, Vec<u8>), MakeError> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = name {
        params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
    }
    let request = params.serialize_request(&pair);
    let key = Key(Zeroizing::new(pair.serialize_der()));
    pair.zeroize();
    Ok((key, request?.der().to_vec()))
}

impl Key {
    /// From PKCS#8.
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// As PKCS#8: for the node's own key on disk.
    pub fn pkcs8(&self) -> &[u8] {
        &self.0
    }

    /// With its certificates, the leaf first.
    pub fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Result<Arc<CertifiedKey>, MakeError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.as_slice()));
        // The library keeps it in memory of its own, which it wipes.
        let signs = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)?;
        let certified = CertifiedKey::new(chain, signs);
        certified.keys_match()?;
        Ok(Arc::new(certified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateSigningRequestParams, CertifiedIssuer};

    #[test]
    fn a_request_is_for_its_name_and_the_certificate_must_be_for_its_key() {
        const ID: &str = "spiffe://m/ns/a/sa/b";
        let (key, request) = super::key(Some(ID)).unwrap();
        let csr = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        assert_eq!(csr.params.subject_alt_names, [SanType::URI(ID.try_into().unwrap())]);
        let ca = CertifiedIssuer::self_signed(CertificateParams::default(), KeyPair::generate().unwrap());
        let leaf = csr.signed_by(&ca.unwrap()).unwrap().der().clone();
        key.certified(vec![leaf.clone()]).unwrap();
        let again = Key::from_pkcs8(key.pkcs8().to_vec());
        again.certified(vec![leaf.clone()]).unwrap();
        let (other, _) = super::key(None).unwrap();
        assert!(matches!(other.certified(vec![leaf]), Err(MakeError::Certificate(_))));
    }
}

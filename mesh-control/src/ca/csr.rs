//! What is taken of a certificate signing request: its public key, if whoever sent it has the private one.
//!
//! Everything else that a request may ask for (usages, constraints, lives) is ignored: certificates are made by
//! `profile` alone.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

use super::profile::P256;

/// Largest request that is looked at, bytes.
const BYTES_MAX: usize = 4096;
/// Bytes of an uncompressed point of P-256.
const POINT: usize = 65;

/// Which names a request must bring.
#[derive(Clone, Copy, Debug)]
pub enum Names<'a> {
    /// None: whoever asks does not know its identity yet.
    None,
    /// This identity and nothing else.
    Only(&'a str),
}

/// The key of a request, or what is wrong with it.
pub fn check(der: &[u8], names: Names<'_>) -> Result<P256, String> {
    if der.len() > BYTES_MAX {
        return Err(format!("the request has {} bytes; up to {BYTES_MAX} are taken", der.len()));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der)
        .map_err(|_| "the request is not PKCS#10 in DER".to_owned())?;
    if !rest.is_empty() {
        return Err("bytes follow the request".to_owned());
    }
    let info = &csr.certification_request_info;
    let algorithm = &info.subject_pki.algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve != Some(OID_EC_P256)
        || csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256
    {
        return Err("the key is not ECDSA P-256 with SHA-256".to_owned());
    }
    let point = &info.subject_pki.subject_public_key.data;
    if point.len() != POINT || point[0] != 4 {
        return Err("the key is not an uncompressed point of P-256".to_owned());
    }
    csr.verify_signature().map_err(|_| "the request is not signed by its own key".to_owned())?;
    let found: Vec<String> = csr
        .requested_extensions()
        .into_iter()
        .flatten()
        .filter_map(|extension| match extension {
            ParsedExtension::SubjectAlternativeName(san) => Some(&san.general_names),
            _ => None,
        })
        .flatten()
        .map(|name| match name {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => other.to_string(),
        })
        .collect();
    match (names, &found[..]) {
        (Names::None, []) => {}
        (Names::Only(wanted), [only]) if only == wanted => {}
        (Names::None, _) => return Err("a request to join brings no names".to_owned()),
        (Names::Only(wanted), found) => {
            let found: String = found.join(", ").chars().take(300).collect();
            return Err(format!("the request is for {found:?}, not for {wanted} alone"));
        }
    }
    Ok(P256(point.to_vec()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, SanType};

    use super::*;

    const ID: &str = "spiffe://mesh.local/ns/shop/sa/cart";

    fn csr(names: &[&str], key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn refusal(der: &[u8], names: Names<'_>) -> String {
        check(der, names).err().expect("it must be refused")
    }

    #[test]
    fn a_request_for_the_identity_gives_its_key() {
        let key = KeyPair::generate().unwrap();
        let taken = check(&csr(&[ID], &key), Names::Only(ID)).unwrap();
        assert_eq!(taken.0, key.public_key_raw());
        assert_eq!(check(&csr(&[], &key), Names::None).unwrap().0, key.public_key_raw());
    }

    #[test]
    fn other_names_are_refused() {
        let key = KeyPair::generate().unwrap();
        let other = "spiffe://mesh.local/ns/shop/sa/pay";
        for names in [&[other][..], &[ID, other], &[], &[ID, ID]] {
            assert!(refusal(&csr(names, &key), Names::Only(ID)).contains("not for"));
        }
        assert!(refusal(&csr(&[ID], &key), Names::None).contains("no names"));
    }

    #[test]
    fn who_does_not_have_the_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = csr(&[ID], &key);
        // Another key under the same signature.
        let (from, to) = (key.public_key_raw().to_vec(), KeyPair::generate().unwrap());
        let place = good.windows(from.len()).position(|window| window == from).unwrap();
        let mut forged = good.clone();
        forged[place..place + from.len()].copy_from_slice(to.public_key_raw());
        assert!(refusal(&forged, Names::Only(ID)).contains("its own key"));
        let mut cut = good.clone();
        cut.truncate(good.len() / 2);
        assert!(refusal(&cut, Names::Only(ID)).contains("PKCS#10"));
        assert!(refusal(&[&good[..], b"x"].concat(), Names::Only(ID)).contains("follow"));
        assert!(refusal(&[0; BYTES_MAX + 1], Names::Only(ID)).contains("bytes"));
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(refusal(&csr(&[ID], &key), Names::Only(ID)).contains("P-256"));
    }
}

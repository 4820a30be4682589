//! Authorities and certificates for tests, here and in the crates that use this one: whatever a test needs to be wrong
//! about a certificate can be.
//!
//! Panics on what cannot be made: these are tests. Not here: how mesh-control issues.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::{Bundle, Svid};

/// A certificate authority.
pub struct Authority {
    /// Its certificate.
    pub root: CertificateDer<'static>,
    /// The same as text.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf says.
pub struct Leaf {
    /// URIs.
    pub uris: Vec<String>,
    /// Names.
    pub names: Vec<String>,
    /// Valid from, to.
    pub valid: (SystemTime, SystemTime),
    /// It may sign others.
    pub ca: bool,
    /// What it is for; none: it does not say.
    pub uses: Vec<ExtendedKeyUsagePurpose>,
    /// Its number.
    pub serial: u64,
}

impl Leaf {
    /// One as it should be: an hour from `now`.
    pub fn of(id: &str, now: SystemTime) -> Self {
        Self {
            uris: vec![id.to_owned()],
            names: Vec::new(),
            valid: (now - Duration::from_mins(2), now + Duration::from_hours(1)),
            ca: false,
            uses: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            serial: 1,
        }
    }
}

/// A leaf and its key.
pub struct Made {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The same as text.
    pub pem: String,
    /// Its key.
    pub key: KeyPair,
}

impl Authority {
    /// A root of ten years around `now`.
    pub fn new(name: &str, now: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = (now - Duration::from_hours(24)).into();
        params.not_after = (now + Duration::from_hours(24 * 3650)).into();
        let key = KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        let (root, pem) = (made.der().clone(), made.pem());
        Self { root, pem, issuer: Issuer::new(params, key) }
    }

    /// An authority that this one has made.
    #[must_use]
    pub fn intermediate(&self, name: &str, now: SystemTime) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - Duration::from_hours(1)).into();
        params.not_after = (now + Duration::from_hours(24)).into();
        params.serial_number = Some(SerialNumber::from(77));
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let (root, pem) = (made.der().clone(), made.pem());
        Self { root, pem, issuer: Issuer::new(params, key) }
    }

    /// Issues a leaf.
    pub fn issue(&self, leaf: &Leaf) -> Made {
        let mut params = CertificateParams::default();
        let uris = leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
        let names = leaf.names.iter().map(|name| SanType::DnsName(name.as_str().try_into().unwrap()));
        params.subject_alt_names = names.chain(uris).collect();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = leaf.valid.0.into();
        params.not_after = leaf.valid.1.into();
        params.is_ca = if leaf.ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        params.extended_key_usages.clone_from(&leaf.uses);
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        Made { der: made.der().clone(), pem: made.pem(), key }
    }

    /// The list of what it takes back: these numbers.
    pub fn revoke(&self, serials: &[u64], now: SystemTime) -> CertificateRevocationListDer<'static> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: (now - Duration::from_mins(1)).into(),
            next_update: (now + Duration::from_hours(1)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().clone()
    }

    /// What peers of `trust_domain` believe where this is the only root.
    pub fn bundle(&self, trust_domain: &str) -> Bundle {
        Bundle { trust_domain: trust_domain.to_owned(), roots: vec![self.root.clone()], revoked: Vec::new() }
    }

    /// A certificate with its key, ready to be shown.
    pub fn svid(&self, leaf: &Leaf) -> Svid {
        let made = self.issue(leaf);
        let id = leaf.uris.first().and_then(|uri| uri.parse::<SpiffeId>().ok());
        let key = PrivateKeyDer::try_from(made.key.serialize_der()).unwrap();
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs();
        Svid {
            id: id.unwrap_or_else(|| SpiffeId::new("nobody", "none", "none").unwrap()),
            certified: Arc::new(CertifiedKey::new(vec![made.der], any_supported_type(&key).unwrap())),
            not_before: seconds(leaf.valid.0),
            not_after: seconds(leaf.valid.1),
        }
    }
}

//! What each certificate and revocation list of the mesh looks like.
//!
//! | | signed by | good for | names | usage |
//! |---|---|---|---|---|
//! | root | itself | 10 years | CN | signs certificates and lists |
//! | cross | the root before it | as that one | the new root's CN and key | the same |
//! | intermediate | root | 30 days | CN, path length 0 | the same |
//! | SVID | intermediate | an hour as a rule | one URI, critical; no subject | signature, key encipherment; server and client |
//! | server | intermediate | 30 days | DNS names, addresses | signature; server |
//!
//! All keys are ECDSA P-256; serial numbers are 127 random bits. What nodes show and check begins two minutes
//! before it is made, because their clocks may be behind.
//!
//! Invariants: no certificate outlives the one that signed it; no clock is read here.
//! Not here: where keys are kept (`files`), who gets what (`office`).

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;

use super::hex;

/// How long a root is good for, seconds.
pub const ROOT_LIFE: u64 = 3650 * 86_400;
/// How long an intermediate is good for, seconds.
pub const INTERMEDIATE_LIFE: u64 = 30 * 86_400;
/// How long the server's own certificate is good for, seconds.
const SERVER_LIFE: u64 = 30 * 86_400;
/// Clocks of nodes may be behind by this much, seconds.
pub const SKEW: u64 = 120;
/// Clocks of people who look at the server may be behind by more.
const SERVER_SKEW: u64 = 3600;

/// Signs.
pub type Signer = Issuer<'static, KeyPair>;

/// A certificate and its key, as they are kept.
pub struct Made {
    /// PEM.
    pub cert: String,
    /// PEM.
    pub key: String,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Hexadecimal.
    pub serial: String,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
}

/// A public key as it stands in a request: an uncompressed point of P-256.
pub struct P256(pub Vec<u8>);

impl PublicKeyData for P256 {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn moment(unix: u64) -> OffsetDateTime {
    let seconds = i64::try_from(unix).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// 127 random bits: positive, and never shorter than 16 bytes.
fn serial() -> Result<[u8; 16], rcgen::Error> {
    let mut bytes = [0; 16];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

fn authority(name: &str, path: BasicConstraints, from: u64, to: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (moment(from), moment(to));
    params
}

/// A name that no other authority of the mesh has: revocation lists are found by it.
fn name(what: &str) -> Result<String, rcgen::Error> {
    Ok(format!("Nodemesh {what} {}", hex(&serial()?[8..])))
}

/// A new root.
pub fn root(now: u64) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let params =
        authority(&name("root")?, BasicConstraints::Unconstrained, now - SERVER_SKEW, now + ROOT_LIFE);
    Ok(Made { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// The certificate of `root` once more, signed by the root `by` that ends at `end`: who knows only that one takes
/// what the new root has signed.
pub fn cross(root: &Made, by: &Signer, now: u64, end: u64) -> Result<String, super::CaError> {
    let key = KeyPair::from_pem(&root.key)?;
    let der = super::files::certificate("the new root", &root.cert)?;
    let name = super::peer::common_name(&der);
    let mut params = authority(&name, BasicConstraints::Constrained(1), now - SKEW, end);
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(&key, by)?.pem())
}

/// A new intermediate of `root`, which ends at `end`.
pub fn intermediate(root: &Signer, now: u64, end: u64) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(Made { cert: intermediate_of(&key, root, now, end)?, key: key.serialize_pem() })
}

/// The same for a key that is elsewhere, PEM.
pub fn intermediate_of(
    key: &impl PublicKeyData,
    root: &Signer,
    now: u64,
    end: u64,
) -> Result<String, rcgen::Error> {
    let to = (now + INTERMEDIATE_LIFE).min(end);
    let mut params = authority(&name("intermediate")?, BasicConstraints::Constrained(0), now - SKEW, to);
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, root)?.pem())
}

/// An identity's certificate for `life` seconds, or less where the signer ends before.
pub fn svid(uri: &str, key: &P256, by: &Signer, now: u64, life: u64, end: u64) -> Result<Leaf, rcgen::Error> {
    let (not_before, not_after) = (now - SKEW, (now + life).min(end));
    let serial = serial()?;
    let mut params = CertificateParams::default();
    // Without a subject the name is critical.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params.not_before, params.not_after) = (moment(not_before), moment(not_after));
    let der = params.signed_by(key, by)?.der().clone();
    Ok(Leaf { der, serial: hex(&serial), not_before, not_after })
}

/// mesh-control's own certificate, good for `names`.
pub fn server(
    names: &[String],
    key: &KeyPair,
    by: &Signer,
    now: u64,
    end: u64,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "mesh-control");
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (params.not_before, params.not_after) = (moment(now - SERVER_SKEW), moment((now + SERVER_LIFE).min(end)));
    Ok(params.signed_by(key, by)?.der().clone())
}

/// The list of what of `by` is revoked, as (serial, since). `number` rises from list to list.
pub fn revocations(
    by: &Signer,
    revoked: &[(String, u64)],
    number: u64,
    now: u64,
    end: u64,
) -> Result<CertificateRevocationListDer<'static>, rcgen::Error> {
    let one = |(serial, since): &(String, u64)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&super::unhex(serial)),
        revocation_time: moment(*since),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: moment(now - SKEW),
        // Agents keep it while the control plane is away, for as long as anything that it speaks of may be shown.
        next_update: moment(end.max(now + 1)),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(one).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(by)?.der().clone())
}

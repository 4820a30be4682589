//! The mesh's own certificate authority, as far as the control plane's own name needs it.
//!
//! `ca.pem` and `ca.key` are made at the first start and only read afterwards; the certificate that the
//! server shows is made at each start and never stored. Agents pin the authority by the SHA-256 of its
//! DER, which every join token carries.
//!
//! Invariant: `ca.key` is 0600 from the moment it exists, and is never rewritten.
//! Not here: workload certificates, rotation.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

/// How long the authority itself is good for.
const CA_LIFE: Duration = Duration::days(3650);
/// How long a server certificate is good for: several times the interval at which it is made anew.
const LEAF_LIFE: Duration = Duration::days(30);
/// Clocks of nodes may be behind by this much.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Why there is no authority to work with. Each message ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Reading or writing one of the two files.
    #[error("cannot {doing} {}: {cause}; give the data directory to the user that runs mesh-control", path.display())]
    File {
        /// "read" or "write".
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// One file of the pair is missing.
    #[error("{} is missing while its other half is there; restore it from a backup, or move both away to begin a new mesh", .0.display())]
    Half(PathBuf),
    /// A file does not hold what it should.
    #[error("{} is not usable ({cause}); restore it from a backup, or move ca.pem and ca.key away to begin a new mesh", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A name given for the server cannot stand in a certificate.
    #[error("--name {name} is neither a host name nor an IP address")]
    Name {
        /// The name.
        name: String,
    },
    /// Signing failed.
    #[error("cannot make a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// rustls refuses the pair of key and certificate.
    #[error("ca.pem and ca.key do not belong together ({0}); restore both from the same backup")]
    Pair(#[from] rustls::Error),
}

/// The authority: signs the server's certificate.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    /// Reads the authority from `dir`, or makes it there when neither of its files exists.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        match (cert_path.exists(), key_path.exists()) {
            (true, true) => Self::load(&cert_path, &key_path),
            (false, false) => Self::create(&cert_path, &key_path),
            (true, false) => Err(CaError::Half(key_path)),
            (false, true) => Err(CaError::Half(cert_path)),
        }
    }

    fn load(cert_path: &Path, key_path: &Path) -> Result<Self, CaError> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|cause| CaError::File {
                doing: "read",
                path: path.to_owned(),
                cause,
            })
        };
        let corrupt = |path: &Path, cause: String| CaError::Corrupt { path: path.to_owned(), cause };
        let pem = read(cert_path)?;
        let key = KeyPair::from_pem(&read(key_path)?).map_err(|e| corrupt(key_path, e.to_string()))?;
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| corrupt(cert_path, e.to_string()))?;
        certified(vec![der.clone()], &key)?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| corrupt(cert_path, e.to_string()))?;
        Ok(Self { issuer, der, pem })
    }

    fn create(cert_path: &Path, key_path: &Path) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Nodemesh CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + CA_LIFE;
        let cert = params.self_signed(&key)?;
        write_new(key_path, key.serialize_pem().as_bytes(), 0o600)?;
        write_new(cert_path, cert.pem().as_bytes(), 0o644)?;
        Ok(Self { issuer: Issuer::new(params, key), der: cert.der().clone(), pem: cert.pem() })
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the authority's DER, hex: what join tokens pin.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }

    /// A fresh certificate for the server, good for `names`, with the authority in its chain.
    pub fn server_certificate(&self, names: &[String]) -> Result<Arc<CertifiedKey>, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "mesh-control");
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + LEAF_LIFE;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Arc::new(certified(vec![leaf.der().clone(), self.der.clone()], &key)?))
    }
}

/// The names that the server's certificate is good for: the given ones, this host, and loopback.
pub fn server_names(given: &[String], hostname: Option<String>) -> Result<Vec<String>, CaError> {
    let mut names = Vec::new();
    for name in given {
        if name.parse::<IpAddr>().is_err() && !is_host_name(name) {
            return Err(CaError::Name { name: name.clone() });
        }
        names.push(name.clone());
    }
    names.extend(hostname.filter(|name| is_host_name(name)));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names.sort();
    names.dedup();
    Ok(names)
}

fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Fails where the key and the first certificate do not belong together.
fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<CertifiedKey, rustls::Error> {
    let provider: CryptoProvider = rustls::crypto::aws_lc_rs::default_provider();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(chain, der, &provider)
}

/// Writes a file that must not exist yet, with its mode from the start, and syncs it.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let failed = |cause| CaError::File { doing: "write", path: path.to_owned(), cause };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_start_finds_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ca::open(dir.path()).unwrap().fingerprint();
        let again = Ca::open(dir.path()).unwrap();
        assert_eq!(first, again.fingerprint());
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        again.server_certificate(&server_names(&[], Some("host-1".into())).unwrap()).unwrap();
    }

    #[test]
    fn halves_and_strangers_are_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&a, &b] {
            Ca::open(dir.path()).unwrap();
        }
        fs::copy(b.path().join("ca.key"), a.path().join("ca.key")).unwrap();
        assert!(matches!(Ca::open(a.path()), Err(CaError::Pair(_))));
        fs::remove_file(a.path().join("ca.key")).unwrap();
        assert!(matches!(Ca::open(a.path()), Err(CaError::Half(_))));
        fs::write(b.path().join("ca.pem"), "no certificate").unwrap();
        assert!(matches!(Ca::open(b.path()), Err(CaError::Corrupt { .. })));
    }

    #[test]
    fn names_are_host_names_or_addresses() {
        assert!(server_names(&["cp.example".into(), "10.0.0.1".into(), "fd00::1".into()], None).is_ok());
        assert!(matches!(server_names(&["a_b".into()], None), Err(CaError::Name { .. })));
        assert!(matches!(server_names(&[String::new()], None), Err(CaError::Name { .. })));
    }
}

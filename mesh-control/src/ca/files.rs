//! What the authority keeps on disk: `authority.json`, 0600, replaced whole; and `ca.pem` for people to trust.
//!
//! A data directory of before has `ca.pem` and `ca.key` alone: they become the root, and `ca.key` is removed when
//! its content is safe in `authority.json`.
//!
//! Invariant: a private key is readable by its owner alone from the moment it is on disk; a crash leaves the state
//! before a change or after it.
//! Not here: what the state means (`authority`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::profile::{Made, Signer};

/// The file.
pub const STATE: &str = "authority.json";
const ROOTS: &str = "ca.pem";
/// The root's key, in data directories of before.
const KEY: &str = "ca.key";
const FORMAT: u32 = 1;

/// Why there is no authority to work with. Each message ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Reading or writing a file.
    #[error("cannot {doing} {}: {cause}; give the data directory to the user that runs mesh-control", path.display())]
    File {
        /// "read" or "write".
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The certificate of an authority is there, its key is not.
    #[error("{} is missing while its other half is there; restore it from a backup, or move both away to begin a new mesh", .0.display())]
    Half(PathBuf),
    /// A file does not hold what it should.
    #[error("{} is not usable ({cause}); restore it from a backup, or move it, ca.pem and ca.key away to begin a new mesh", path.display())]
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
    /// What was given as an intermediate is none.
    #[error(
        "--ca-cert, --ca-key and --ca-bundle are not an intermediate and its roots: {0}; give PEM files of all three"
    )]
    Given(String),
    /// Signing failed.
    #[error("cannot make a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// rustls refuses the pair of key and certificate.
    #[error(
        "a certificate of the authority and its key do not belong together ({0}); restore both from the same backup"
    )]
    Pair(#[from] rustls::Error),
    /// Replicas share a secret, and this one has not got it.
    #[error(
        "{} is missing: another replica holds the mesh's root; copy replica.secret of its data directory there, or name it \
         with --ca-secret", .0.display()
    )]
    NoSecret(PathBuf),
    /// What is there is no secret.
    #[error("{} is no secret of replicas ({cause}); copy replica.secret of the replica that holds the root", path.display())]
    BadSecret {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// What stands in the store was not written by a replica of this mesh.
    #[error(
        "{0} in the store is not of a replica with this secret: give every replica the same --ca-secret, and see who else \
         writes into this etcd"
    )]
    Foreign(String),
    /// Nobody gives this replica an intermediate.
    #[error("replica {0}, which holds the mesh's root, gives no intermediate: start it, then this one again")]
    NoHolder(String),
    /// The data directory and the store are of two meshes.
    #[error(
        "the root in the data directory is not that of the mesh in the store, which replica {0} holds: give --data another \
         directory, or --etcd-prefix another mesh"
    )]
    OtherRoot(String),
    /// What was asked for is not possible now.
    #[error("{0}")]
    Refused(String),
}

/// A certificate and its key, PEM.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl From<Made> for Pair {
    fn from(Made { cert, key }: Made) -> Self {
        Self { cert, key }
    }
}

/// A root that has been replaced and is still believed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// Its certificate, PEM.
    pub cert: String,
    /// The certificate by which it vouches for the root after it, PEM.
    pub cross: String,
    /// When nothing that it vouched for is valid any more, Unix seconds.
    pub until: u64,
}

/// An intermediate that has been replaced, and may have to revoke what it signed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Retired {
    pub pair: Pair,
    pub generation: u64,
    /// When nothing that it signed is valid any more, Unix seconds.
    pub until: u64,
}

/// All of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    format: u32,
    /// Signs intermediates.
    pub root: Pair,
    /// Believed already, and signs nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Pair>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Former>,
    /// The intermediate.
    pub signer: Pair,
    /// Rises with each intermediate.
    pub generation: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Retired>,
}

impl Saved {
    /// A beginning.
    pub fn new(root: Pair, signer: Pair) -> Self {
        let (next, former, retired) = (None, Vec::new(), Vec::new());
        Self { format: FORMAT, root, next, former, signer, generation: 1, retired }
    }

    /// Writes the state, then the roots as people see them.
    pub fn write(&self, dir: &Path) -> Result<(), CaError> {
        let path = dir.join(STATE);
        let text = serde_json::to_vec_pretty(self).map_err(|cause| CaError::File {
            doing: "write",
            path: path.clone(),
            cause: cause.into(),
        })?;
        replace(&path, &text, 0o600)?;
        self.show(dir)
    }

    /// Writes the roots as people see them.
    pub fn show(&self, dir: &Path) -> Result<(), CaError> {
        show(dir, &self.roots().concat())
    }

    /// Who is believed, PEM; who signs, first.
    pub fn roots(&self) -> Vec<&str> {
        let former = self.former.iter().map(|former| &*former.cert);
        let next = self.next.iter().map(|next| &*next.cert);
        [&*self.root.cert].into_iter().chain(next).chain(former).collect()
    }
}

/// What people are to trust, in `ca.pem`.
pub fn show(dir: &Path, roots: &str) -> Result<(), CaError> {
    let path = dir.join(ROOTS);
    if fs::read_to_string(&path).is_ok_and(|shown| shown == roots) {
        return Ok(());
    }
    replace(&path, roots.as_bytes(), 0o644)
}

/// What a data directory holds.
pub enum Found {
    /// A state.
    Saved(Box<Saved>),
    /// A root alone, of before.
    Root(Pair),
    /// Nothing.
    Nothing,
}

/// Looks.
pub fn find(dir: &Path) -> Result<Found, CaError> {
    let (state, cert, key) = (dir.join(STATE), dir.join(ROOTS), dir.join(KEY));
    if state.exists() {
        let corrupt = |cause: String| CaError::Corrupt { path: state.clone(), cause };
        let saved: Saved =
            serde_json::from_str(&read(&state)?).map_err(|cause| corrupt(cause.to_string()))?;
        if saved.format != FORMAT {
            return Err(corrupt(format!("its format is {}, not {FORMAT}", saved.format)));
        }
        return Ok(Found::Saved(Box::new(saved)));
    }
    match (cert.exists(), key.exists()) {
        (true, true) => {
            let pair = Pair { cert: read(&cert)?, key: read(&key)? };
            signer(&pair).map_err(|error| match error {
                CaError::Refused(cause) => CaError::Corrupt { path: cert, cause },
                other => other,
            })?;
            Ok(Found::Root(pair))
        }
        (false, false) => Ok(Found::Nothing),
        (true, false) => Err(CaError::Half(key)),
        (false, true) => Err(CaError::Half(cert)),
    }
}

/// The root's key is in the state now.
pub fn forget_key(dir: &Path) -> Result<(), CaError> {
    let path = dir.join(KEY);
    match fs::remove_file(&path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(CaError::File { doing: "write", path, cause })
        }
        _ => Ok(()),
    }
}

/// A file's text.
pub fn read(path: &Path) -> Result<String, CaError> {
    let failed = |cause| CaError::File { doing: "read", path: path.to_owned(), cause };
    fs::read_to_string(path).map_err(failed)
}

/// The first certificate of a PEM text.
pub fn certificate(what: &str, pem: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|cause| CaError::Refused(format!("{what} is no PEM certificate: {cause}")))
}

/// Signs as this pair, which must belong together.
pub fn signer(pair: &Pair) -> Result<Signer, CaError> {
    let der = certificate("an authority's certificate", &pair.cert)?;
    let key = KeyPair::from_pem(&pair.key)
        .map_err(|cause| CaError::Refused(format!("an authority's key cannot be read: {cause}")))?;
    super::authority::certified(vec![der.clone()], &key)?;
    Ok(Issuer::from_ca_cert_der(&der, key)?)
}

/// Writes beside, then renames; synced, with its mode from the start.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let failed = |cause| CaError::File { doing: "write", path: path.to_owned(), cause };
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

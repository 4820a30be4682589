//! A certificate of somebody else's for the REST port, from files that are read again when they change.
//!
//! Invariant: what is shown is always a certificate with its key; files that are half written are tried again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::ServerCert;
use crate::stop::stopped;

/// Between two looks at the files.
const EACH: Duration = Duration::from_secs(5);

/// Chain and key, PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, and what is between it and a root.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// Reads both; the error is one sentence.
    pub fn read(&self) -> Result<Arc<CertifiedKey>, String> {
        let cannot = |flag: &str, path: &Path, cause: &dyn std::fmt::Display| {
            format!("{flag} {}: {cause}; give a PEM file that this user may read", path.display())
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&self.cert).and_then(Iterator::collect);
        let chain = chain.map_err(|cause| cannot("--tls-cert", &self.cert, &cause))?;
        if chain.is_empty() {
            return Err(cannot("--tls-cert", &self.cert, &"it holds no certificate"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|cause| cannot("--tls-key", &self.key, &cause))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key, &provider)
            .map(Arc::new)
            .map_err(|cause| cannot("--tls-key", &self.key, &format!("not the key of --tls-cert ({cause})")))
    }

    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.cert, &self.key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }

    /// Shows what the files hold, until the server stops.
    pub async fn follow(self, shown: Arc<ServerCert>, mut stop: watch::Receiver<bool>) {
        let (mut seen, mut told) = (self.changed(), None);
        loop {
            tokio::select! {
                () = tokio::time::sleep(EACH) => {}
                () = stopped(&mut stop) => return,
            }
            let now = self.changed();
            if now == seen {
                continue;
            }
            match self.read() {
                Ok(key) => {
                    shown.replace(key);
                    (seen, told) = (now, None);
                    tracing::info!(cert = %self.cert.display(), "the REST port shows a new certificate");
                }
                Err(error) if told.as_ref() != Some(&error) => {
                    tracing::warn!(error, "the REST port keeps its certificate");
                    told = Some(error);
                }
                Err(_) => {}
            }
        }
    }
}

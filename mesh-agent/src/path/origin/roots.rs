//! Authorities that are believed outside of the mesh: given ones, those of a file, or the node's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::outside::Believed;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

/// Files are read again after this time.
const AGAIN: Duration = Duration::from_mins(1);
/// Where nodes keep their authorities; `SSL_CERT_FILE` comes first.
const NODE: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Authorities, parsed.
pub struct Roots {
    store: Arc<RootCertStore>,
    /// Until then; `None`: they never change.
    until: Option<Instant>,
}

impl Roots {
    /// Reads and parses them, away from the worker's thread.
    pub async fn read(believed: &Believed) -> Result<Self, String> {
        let (path, text) = match believed {
            Believed::Bundle(text) => (None, Some(text.to_string())),
            Believed::File(path) => (Some(PathBuf::from(&**path)), None),
            Believed::Node => (Some(of_node()?), None),
        };
        let reading = tokio::task::spawn_blocking(move || match (path, text) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
                let store = parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
                Ok(Self { store, until: Some(Instant::now() + AGAIN) })
            }
            (None, text) => {
                let store = parse(&text.unwrap_or_default()).map_err(|why| format!("caBundle: {why}"))?;
                Ok(Self { store, until: None })
            }
        });
        reading.await.map_err(|error| error.to_string())?
    }

    /// Themselves.
    pub fn store(&self) -> Arc<RootCertStore> {
        self.store.clone()
    }

    /// Need they not be read again?
    pub fn fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    /// The same, for as long again.
    pub fn again(self) -> Self {
        Self { until: Some(Instant::now() + AGAIN), ..self }
    }
}

fn of_node() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("SSL_CERT_FILE") {
        return Ok(path.into());
    }
    let found = NODE.iter().map(Path::new).find(|path| path.exists());
    found.map(Path::to_owned).ok_or_else(|| {
        "the node has no file of authorities (package ca-certificates): install one, or give caBundle or caFile"
            .to_owned()
    })
}

fn parse(text: &str) -> Result<Arc<RootCertStore>, String> {
    let blocks = pem::parse_many(text).map_err(|error| format!("is no PEM: {error}"))?;
    let mut store = RootCertStore::empty();
    let certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    let (used, _) = store
        .add_parsable_certificates(certificates.map(|block| CertificateDer::from(block.into_contents())));
    if used == 0 {
        return Err("holds no certificate that can be used".to_owned());
    }
    Ok(Arc::new(store))
}

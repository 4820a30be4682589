//! Certificates for Envoys and clients of gRPC, by which they are known at :15010.
//!
//! The key stays where the request was made. The name is `spiffe://<trust domain>/envoy/<node type>`: no workload's, so
//! no connection in the mesh is let in by it.

use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::ca::csr::{self, Names};
use crate::ca::issued::Issued;
use crate::ca::office::Office;
use crate::engine::Engine;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NoCertificate {
    /// The request is at fault.
    #[error("{0}")]
    Request(String),
    /// The server is.
    #[error("{0}")]
    Server(String),
}

/// A certificate for nodes of a type, as PEM, with what it is checked by.
pub fn issue(
    engine: &Engine,
    office: &Office,
    node_type: &str,
    pem: &str,
    now: u64,
) -> Result<Value, NoCertificate> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        NoCertificate::Request(
            "csr is no PEM of a certificate request; make one with `openssl req -new -newkey ec -pkeyopt \
             ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj / -out csr.pem`"
                .to_owned(),
        )
    })?;
    let key = csr::check(&der, Names::None).map_err(NoCertificate::Request)?;
    let uri = format!("spiffe://{}/envoy/{node_type}", engine.trust_domain());
    let live = office.authority.live();
    let failed = |error: String| NoCertificate::Server(error);
    let certificate =
        live.sign(&uri, &key, now, office.authority.lives.node).map_err(|error| failed(error.to_string()))?;
    let note = Issued {
        serial: certificate.serial.clone(),
        identity: uri.clone(),
        node: format!("envoy:{node_type}"),
        at: now,
        not_after: certificate.not_after,
        generation: certificate.generation,
        by: engine.replicas.name().to_owned(),
    };
    office.ledger().note(vec![note], now).map_err(|error| failed(error.to_string()))?;
    engine.metrics.certificates_issued.inc();
    let chain: String = certificate.chain.iter().map(|der| text(der)).collect();
    let roots: String = live.roots.iter().map(|der| text(der)).collect();
    tracing::info!(identity = uri, serial = certificate.serial, "certificate for an Envoy");
    Ok(json!({
        "identity": uri,
        "serial": certificate.serial,
        "notAfter": certificate.not_after,
        "certificate": chain,
        "ca": roots,
    }))
}

fn text(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

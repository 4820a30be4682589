//! Who is at the other end of a connection, by its certificate.
//!
//! The chain was verified by TLS; here only the name is read. A certificate that is not a node's gives nobody.

use mesh_api::resource::is_node_type;
use mesh_api::spiffe::NodeId;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use super::hex;

/// A node that showed a certificate of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub node: NodeId,
    /// Serial number of its certificate, hexadecimal.
    pub serial: String,
    /// When its certificate ends, Unix seconds.
    pub not_after: u64,
}

impl Peer {
    /// The node of a verified certificate; `None`: it is not a node's.
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        if cert.is_ca() {
            return None;
        }
        let names = cert.subject_alternative_name().ok()??;
        let [GeneralName::URI(uri)] = &names.value.general_names[..] else { return None };
        Some(Self {
            node: uri.parse().ok()?,
            serial: hex(cert.raw_serial()),
            not_after: u64::try_from(cert.validity().not_after.timestamp()).ok()?,
        })
    }
}

/// An Envoy or a client of gRPC that showed a certificate of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What it may call itself.
    pub node_type: String,
    /// Serial number of its certificate, hexadecimal.
    pub serial: String,
    /// When its certificate ends, Unix seconds.
    pub not_after: u64,
}

impl Guest {
    /// Of a verified certificate with the name `spiffe://<trust domain>/envoy/<node type>`.
    pub fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        let names = cert.subject_alternative_name().ok()??;
        let [GeneralName::URI(uri)] = &names.value.general_names[..] else { return None };
        let (_, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let node_type = path.strip_prefix("envoy/").filter(|text| is_node_type(text))?;
        Some(Self {
            node_type: node_type.to_owned(),
            serial: hex(cert.raw_serial()),
            not_after: u64::try_from(cert.validity().not_after.timestamp()).ok()?,
        })
    }
}

/// The common name of an authority's certificate; empty: it has none.
pub fn common_name(der: &CertificateDer<'_>) -> String {
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(der) else { return String::new() };
    let name = cert.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.unwrap_or_default().to_owned()
}

/// When a certificate ends, Unix seconds; 0: it is none.
pub fn end(der: &CertificateDer<'_>) -> u64 {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed.map_or(0, |(_, cert)| u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0))
}

/// When a certificate begins, Unix seconds; 0: it is none.
pub fn begin(der: &CertificateDer<'_>) -> u64 {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed.map_or(0, |(_, cert)| u64::try_from(cert.validity().not_before.timestamp()).unwrap_or(0))
}

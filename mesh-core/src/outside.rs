//! What external services are, beside what they have in common with services.
//!
//! compile ──[`Origination`] of service ports, [`Outside`] of endpoints──▶ snapshot ──▶ the proxy, plan, names
//!
//! Not here: resolving, TLS (mesh-agent).

use mesh_api::proto::v1;

/// What an endpoint outside of the mesh is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// An address that was given: workloads may dial it as it stands, at its ports.
    Given,
    /// An address that a host name resolved to just now: others may have it, too.
    Resolved,
}

/// What a workload may open to the outside of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// Everything.
    #[default]
    All,
    /// What is on the list: names and addresses of external services.
    Listed,
}

/// How the agent speaks TLS with the endpoints of a service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origination {
    /// Another one with each change: connections that were opened before are not used again.
    pub number: u32,
    /// The name that is asked for; empty: none.
    pub sni: Box<str>,
    /// DNS names or addresses; the certificate is for one of them. Never empty.
    pub names: Box<[Box<str>]>,
    /// Whom to believe.
    pub believed: Believed,
    /// The workload shows its certificate of the mesh.
    pub client_certificate: bool,
    /// Protocols that are offered.
    pub alpn: Box<[Box<str>]>,
}

/// Whom to believe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Believed {
    /// The node's own authorities.
    #[default]
    Node,
    /// These, in PEM.
    Bundle(Box<str>),
    /// Those in a file on the node.
    File(Box<str>),
}

impl Origination {
    /// From what was received; `number` 0.
    pub fn read(spec: &v1::TlsOrigination, protocol: v1::Protocol) -> Self {
        let texts = |all: &[String]| all.iter().map(|text| text.as_str().into()).collect::<Box<[Box<str>]>>();
        let names = if spec.subject_alt_names.is_empty() {
            [spec.sni.as_str().into()].into()
        } else {
            texts(&spec.subject_alt_names)
        };
        let alpn = if spec.alpn.is_empty() && protocol == v1::Protocol::Http {
            ["http/1.1".into()].into()
        } else {
            texts(&spec.alpn)
        };
        let believed = match (&*spec.ca_bundle, &*spec.ca_file) {
            ("", "") => Believed::Node,
            ("", file) => Believed::File(file.into()),
            (bundle, _) => Believed::Bundle(bundle.into()),
        };
        let (sni, client_certificate) = (spec.sni.as_str().into(), spec.client_certificate);
        Self { number: 0, sni, names, believed, client_certificate, alpn }
    }

    /// Does it say the same, whatever its number?
    pub fn says(&self, other: &Self) -> bool {
        Self { number: 0, ..self.clone() } == Self { number: 0, ..other.clone() }
    }
}

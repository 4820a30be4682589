//! How the connections of workloads are encrypted: mutual TLS or none, and what is refused without it.
//!
//! Said by the `Mesh` for everybody, by a `TransportPolicy` for some.
//! Not here: which of several policies holds for a workload (mesh-core's compile).

use serde::Serialize;

use crate::error::ApiError;
use crate::walk::{At, distinct};

/// Most ports with a mode of their own, a policy.
const MAX_PORTS: usize = 64;

/// Ways of encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum MtlsMode {
    /// None: neither asked for nor offered.
    Off,
    /// Between workloads of two nodes always; from others plaintext is taken as well.
    #[default]
    Permissive,
    /// Plaintext is refused, but from workloads that the kernel of the same node proves.
    Strict,
}

/// What a `TransportPolicy` says of encryption: one of the two at least.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mtls {
    /// For every port that has none of its own; `None`: another policy or the mesh says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
    /// For ports of the workload that is called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMtls>,
}

/// The mode of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PortMtls {
    /// Port of the workload.
    pub port: u16,
    /// What holds there.
    pub mode: MtlsMode,
}

impl MtlsMode {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        at.one_of(&[("off", Self::Off), ("permissive", Self::Permissive), ("strict", Self::Strict)], &[])
    }
}

impl Mtls {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["mode", "ports"], &[])?;
        let mtls = Self {
            mode: fields.read("mode", |at| MtlsMode::read(&at))?,
            ports: fields.each("ports", 0..=MAX_PORTS, |at| PortMtls::read(&at))?,
        };
        let place = |i: usize| (format!("{}.ports[{i}].port", at.path()), mtls.ports[i].port.into());
        distinct(mtls.ports.iter().map(|one| one.port), place, "ports that differ")?;
        if mtls == Self::default() {
            fields.need("mode", "off, permissive or strict, where no ports are given")?;
        }
        Ok(mtls)
    }
}

impl PortMtls {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["port", "mode"], &[])?;
        Ok(Self {
            port: fields.need("port", "1..=65535")?.port()?,
            mode: MtlsMode::read(&fields.need("mode", "off, permissive or strict")?)?,
        })
    }
}

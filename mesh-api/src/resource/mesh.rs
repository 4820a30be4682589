//! `Mesh`: the one object with the settings of the whole mesh.
//!
//! Not here: allocation from the pool (mesh-registry).

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

use super::dns::Dns;
use super::egress::Egress;
use super::ext_authz::{ExtAuthz, MAX_EXT_AUTHZ};
use super::jwt::{JwtProvider, MAX_PROVIDERS};
use super::mtls::MtlsMode;
use crate::error::ApiError;
use crate::name::TRUST_DOMAIN;
use crate::walk::{At, distinct};

/// What the `Mesh` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// Trust domain of identities.
    pub trust_domain: String,
    /// Where virtual addresses come from.
    pub vip_pool: VipPool,
    /// Which path HTTP takes where no policy says.
    pub http: HttpMode,
    /// How connections are encrypted where no policy says.
    pub mtls: MeshMtls,
    /// What workloads may open to the outside, where no policy says.
    pub egress: Egress,
    /// Whose tokens policies may ask for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jwt_providers: Vec<JwtProvider>,
    /// Who may be asked about requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ext_authz: Vec<ExtAuthz>,
    /// What is said of names, where a service says nothing else; `None`: answers hold for 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// How connections are encrypted where no policy says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MeshMtls {
    /// Which way.
    pub mode: MtlsMode,
}

/// Where virtual addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VipPool {
    /// Network and prefix length; the host part is zero.
    #[serde(serialize_with = "as_cidr")]
    pub v4: (Ipv4Addr, u8),
    /// Network and prefix length; the host part is zero.
    #[serde(serialize_with = "as_cidr")]
    pub v6: (Ipv6Addr, u8),
}

/// Which path HTTP takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HttpMode {
    /// Balanced per request by the agent.
    #[default]
    Proxy,
    /// Balanced per connection by the kernel.
    Kernel,
}

fn as_cidr<A: std::fmt::Display, S: Serializer>(cidr: &(A, u8), to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{}/{}", cidr.0, cidr.1))
}

impl Default for VipPool {
    fn default() -> Self {
        let v6 = Ipv6Addr::new(0xfd00, 0x6e6d, 0, 0, 0, 0, 0, 0);
        Self { v4: (Ipv4Addr::new(240, 240, 0, 0), 16), v6: (v6, 64) }
    }
}

impl Default for MeshSpec {
    fn default() -> Self {
        Self {
            trust_domain: "mesh.local".to_owned(),
            vip_pool: VipPool::default(),
            http: HttpMode::default(),
            mtls: MeshMtls::default(),
            egress: Egress::default(),
            jwt_providers: Vec::new(),
            ext_authz: Vec::new(),
            dns: None,
        }
    }
}

impl MeshSpec {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(
            &["trustDomain", "vipPool", "http", "mtls", "egress", "jwtProviders", "extAuthz", "dns"],
            &["dnsDomains", "udp"],
        )?;
        let default = Self::default();
        let jwt_providers = fields.each("jwtProviders", 0..=MAX_PROVIDERS, |at| JwtProvider::read(&at))?;
        let ext_authz = fields.each("extAuthz", 0..=MAX_EXT_AUTHZ, |at| ExtAuthz::read(&at))?;
        for (field, names) in [
            ("jwtProviders", jwt_providers.iter().map(|one| &*one.name).collect::<Vec<_>>()),
            ("extAuthz", ext_authz.iter().map(|one| &*one.name).collect()),
        ] {
            let place = |i: usize| (format!("{}.{field}[{i}].name", at.path()), names[i].into());
            distinct(names.iter().copied(), place, "providers with different names")?;
        }
        Ok(Self {
            trust_domain: fields
                .read("trustDomain", |at| at.checked(&TRUST_DOMAIN))?
                .unwrap_or(default.trust_domain),
            vip_pool: fields.read("vipPool", |at| VipPool::read(&at))?.unwrap_or(default.vip_pool),
            http: fields.read("http", |at| HttpMode::read(&at))?.unwrap_or(default.http),
            mtls: fields.read("mtls", |at| MeshMtls::read(&at))?.unwrap_or_default(),
            egress: fields.read("egress", |at| Egress::read(&at))?.unwrap_or_default(),
            jwt_providers,
            ext_authz,
            dns: fields.read("dns", |at| Dns::read(&at))?,
        })
    }
}

impl MeshMtls {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["mode"], &[])?;
        Ok(Self { mode: MtlsMode::read(&fields.need("mode", "off, permissive or strict")?)? })
    }
}

impl HttpMode {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        at.one_of(&[("proxy", Self::Proxy), ("kernel", Self::Kernel)], &[])
    }
}

impl VipPool {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["v4", "v6"], &[])?;
        let default = Self::default();
        let v4 = fields.read("v4", |at| {
            at.parsed("an IPv4 network a.b.c.d/8..=30, unicast or 240.0.0.0/4, host part zero", v4_pool)
        })?;
        let v6 = fields.read("v6", |at| {
            at.parsed("an IPv6 network of fd00::/8 or 2000::/3, /16..=120, host part zero", v6_pool)
        })?;
        Ok(Self { v4: v4.unwrap_or(default.v4), v6: v6.unwrap_or(default.v6) })
    }
}

fn v4_pool(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (Ipv4Addr, u8) = (address.parse().ok()?, length.parse().ok()?);
    let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
    let odd = address.is_loopback() || address.is_multicast() || address.is_link_local();
    let whole = (8..=30).contains(&length) && u32::from(address) & host == 0;
    (whole && !odd && address.octets()[0] != 0).then_some((address, length))
}

fn v6_pool(text: &str) -> Option<(Ipv6Addr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (Ipv6Addr, u8) = (address.parse().ok()?, length.parse().ok()?);
    let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
    let first = address.segments()[0];
    let usable = first & 0xff00 == 0xfd00 || first & 0xe000 == 0x2000;
    ((16..=120).contains(&length) && u128::from(address) & host == 0 && usable).then_some((address, length))
}

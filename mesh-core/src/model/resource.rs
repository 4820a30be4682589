//! One resource as it came over the wire, checked once.
//!
//! Kept encoded: decoded, it would take several times as much, and it is looked at only when something near
//! it changes. Kept as received, too, with what a newer control plane says and this build does not know.

use std::fmt;
use std::sync::Arc;

use mesh_api::proto::v1;

use super::{Kind, Name, join};

/// A resource as received: its version and the encoded message, in one piece of memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw {
    /// The length of the version in four bytes, the version, the message.
    packed: Arc<[u8]>,
}

/// Bytes that the length of a version takes.
const HEAD: usize = size_of::<u32>();

impl Raw {
    /// `version`: the content hash, by which the control plane knows it.
    pub fn new(version: &str, message: &[u8]) -> Self {
        let mut packed = Vec::with_capacity(HEAD + version.len() + message.len());
        packed.extend_from_slice(&(version.len() as u32).to_ne_bytes());
        packed.extend_from_slice(version.as_bytes());
        packed.extend_from_slice(message);
        Self { packed: packed.into() }
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        let (head, rest) = self.packed.split_first_chunk::<HEAD>().unwrap_or((&[0; HEAD], &[]));
        rest.split_at_checked(u32::from_ne_bytes(*head) as usize).unwrap_or_default()
    }

    /// The version that it came with.
    pub fn version(&self) -> &str {
        std::str::from_utf8(self.parts().0).unwrap_or_default()
    }

    /// The encoded message.
    pub fn message(&self) -> &[u8] {
        self.parts().1
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raw({}, {} bytes)", self.version(), self.message().len())
    }
}

/// A message that nodes are told.
pub trait Message: prost::Message + Default {
    /// Of which kind.
    const KIND: Kind;
    /// Its xDS name.
    fn full_name(&self) -> Name;
}

macro_rules! messages {
    ($($kind:ident),*) => {$(
        impl Message for v1::$kind {
            const KIND: Kind = Kind::$kind;
            fn full_name(&self) -> Name {
                join(&self.namespace, &self.name)
            }
        }
    )*};
}

messages!(
    Service,
    Workload,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    TrafficPolicy,
    AuthorizationPolicy,
    TransportPolicy,
    ExternalService
);

impl Message for v1::Mesh {
    const KIND: Kind = Kind::Mesh;
    fn full_name(&self) -> Name {
        Name::from("mesh")
    }
}

impl Message for v1::TrustBundle {
    const KIND: Kind = Kind::TrustBundle;
    fn full_name(&self) -> Name {
        Name::from("mesh")
    }
}

impl Message for v1::JwtKeys {
    const KIND: Kind = Kind::JwtKeys;
    fn full_name(&self) -> Name {
        Name::from(self.provider.as_str())
    }
}

/// A resource that can be decoded and has the name that it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) raw: Raw,
}

impl Resource {
    /// Checks what was received as `name`; an error says what is wrong with it.
    pub fn new(kind: Kind, name: &str, raw: Raw) -> Result<Self, String> {
        fn full_name<M: Message>(raw: &Raw) -> Result<Name, prost::DecodeError> {
            M::decode(raw.message()).map(|message| message.full_name())
        }
        let says = match kind {
            Kind::Service => full_name::<v1::Service>(&raw),
            Kind::Workload => full_name::<v1::Workload>(&raw),
            Kind::HttpRoute => full_name::<v1::HttpRoute>(&raw),
            Kind::GrpcRoute => full_name::<v1::GrpcRoute>(&raw),
            Kind::TlsRoute => full_name::<v1::TlsRoute>(&raw),
            Kind::TcpRoute => full_name::<v1::TcpRoute>(&raw),
            Kind::UdpRoute => full_name::<v1::UdpRoute>(&raw),
            Kind::TrafficPolicy => full_name::<v1::TrafficPolicy>(&raw),
            Kind::AuthorizationPolicy => full_name::<v1::AuthorizationPolicy>(&raw),
            Kind::TransportPolicy => full_name::<v1::TransportPolicy>(&raw),
            Kind::ExternalService => full_name::<v1::ExternalService>(&raw),
            Kind::Mesh => full_name::<v1::Mesh>(&raw),
            Kind::TrustBundle => full_name::<v1::TrustBundle>(&raw),
            Kind::JwtKeys => full_name::<v1::JwtKeys>(&raw),
        }
        .map_err(|error| format!("it cannot be decoded: {error}"))?;
        if *says != *name {
            return Err(format!("it says that its name is {says}"));
        }
        Ok(Self { kind, name: says, raw })
    }

    /// The version that it came with.
    pub fn version(&self) -> &str {
        self.raw.version()
    }
}

/// A resource that nobody has given a version.
impl<M: Message> From<M> for Resource {
    fn from(message: M) -> Self {
        let raw = Raw::new("", &message.encode_to_vec());
        Self { kind: M::KIND, name: message.full_name(), raw }
    }
}

/// The message in `raw`, which came in a [`Resource`] of this kind: it was decoded before.
pub(super) fn decode<M: Message>(raw: &Raw) -> M {
    M::decode(raw.message()).unwrap_or_default()
}

/// What a workload serves, and no more of it: all workloads of a mesh are asked.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Memberships {
    #[prost(message, repeated, tag = "7")]
    pub services: Vec<Membership>,
}

/// The service of a `v1::WorkloadService`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Membership {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub service: String,
}

impl Memberships {
    pub fn of(workload: &Raw) -> Self {
        <Self as prost::Message>::decode(workload.message()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn a_resource_must_be_what_its_name_says() {
        let service = v1::Service { namespace: "a".into(), name: "b".into(), ..v1::Service::default() };
        let raw = Raw::new("v", &service.encode_to_vec());
        let resource = Resource::new(Kind::Service, "a/b", raw.clone()).unwrap();
        assert_eq!(decode::<v1::Service>(&resource.raw), service);
        assert!(Resource::new(Kind::Service, "a/c", raw).unwrap_err().contains("a/b"));
        let raw = Raw::new("v", &[0xff; 3]);
        assert!(Resource::new(Kind::Service, "a/b", raw).unwrap_err().contains("decoded"));
    }

    #[test]
    fn what_is_packed_comes_apart() {
        for (version, message) in [("", &b""[..]), ("v1", b""), ("", b"m"), ("0123456789abcdef", b"message")]
        {
            let raw = Raw::new(version, message);
            assert_eq!((raw.version(), raw.message()), (version, message));
        }
    }

    #[test]
    fn memberships_are_those_of_the_workload() {
        let service = |name: &str| v1::WorkloadService {
            namespace: "a".into(),
            service: name.into(),
            service_port: 80,
            ..Default::default()
        };
        let services = vec![service("s"), service("t")];
        let workload = v1::Workload { name: "w".into(), services, ..Default::default() };
        let served = Memberships::of(&Raw::new("v", &workload.encode_to_vec())).services;
        let names: Vec<_> = served.iter().map(|s| (&*s.namespace, &*s.service)).collect();
        assert_eq!(names, [("a", "s"), ("a", "t")]);
    }
}

//! One resource as it came over the wire, checked once.
//!
//! Kept encoded: decoded, it would take several times as much, and it is looked at only when something near
//! it changes. Kept as received, too, with what a newer control plane says and this build does not know.

use std::sync::Arc;

use mesh_api::proto::v1;

use super::{Kind, Name, join};

/// A resource as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Content hash, by which the control plane knows it.
    pub version: Box<str>,
    /// The encoded message.
    pub bytes: Box<[u8]>,
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
    TcpRoute,
    UdpRoute,
    TrafficPolicy,
    AuthorizationPolicy,
    TransportPolicy
);

impl Message for v1::Mesh {
    const KIND: Kind = Kind::Mesh;
    fn full_name(&self) -> Name {
        Name::from("mesh")
    }
}

/// A resource that can be decoded and has the name that it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) raw: Arc<Raw>,
}

impl Resource {
    /// Checks what was received as `name`; an error says what is wrong with it.
    pub fn new(kind: Kind, name: &str, raw: Raw) -> Result<Self, String> {
        fn full_name<M: Message>(raw: &Raw) -> Result<Name, prost::DecodeError> {
            M::decode(&*raw.bytes).map(|message| message.full_name())
        }
        let says = match kind {
            Kind::Service => full_name::<v1::Service>(&raw),
            Kind::Workload => full_name::<v1::Workload>(&raw),
            Kind::HttpRoute => full_name::<v1::HttpRoute>(&raw),
            Kind::TcpRoute => full_name::<v1::TcpRoute>(&raw),
            Kind::UdpRoute => full_name::<v1::UdpRoute>(&raw),
            Kind::TrafficPolicy => full_name::<v1::TrafficPolicy>(&raw),
            Kind::AuthorizationPolicy => full_name::<v1::AuthorizationPolicy>(&raw),
            Kind::TransportPolicy => full_name::<v1::TransportPolicy>(&raw),
            Kind::Mesh => full_name::<v1::Mesh>(&raw),
        }
        .map_err(|error| format!("it cannot be decoded: {error}"))?;
        if *says != *name {
            return Err(format!("it says that its name is {says}"));
        }
        Ok(Self { kind, name: says, raw: Arc::new(raw) })
    }

    /// The version that it came with.
    pub fn version(&self) -> &str {
        &self.raw.version
    }
}

/// A resource that nobody has given a version.
impl<M: Message> From<M> for Resource {
    fn from(message: M) -> Self {
        let raw = Raw { version: Box::default(), bytes: message.encode_to_vec().into() };
        Self { kind: M::KIND, name: message.full_name(), raw: Arc::new(raw) }
    }
}

/// The message in `raw`, which came in a [`Resource`] of this kind: it was decoded before.
pub(super) fn decode<M: Message>(raw: &Raw) -> M {
    M::decode(&*raw.bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn a_resource_must_be_what_its_name_says() {
        let service = v1::Service { namespace: "a".into(), name: "b".into(), ..v1::Service::default() };
        let raw = Raw { version: "v".into(), bytes: service.encode_to_vec().into() };
        let resource = Resource::new(Kind::Service, "a/b", raw.clone()).unwrap();
        assert_eq!(decode::<v1::Service>(&resource.raw), service);
        assert!(Resource::new(Kind::Service, "a/c", raw).unwrap_err().contains("a/b"));
        let raw = Raw { version: "v".into(), bytes: [0xff; 3].into() };
        assert!(Resource::new(Kind::Service, "a/b", raw).unwrap_err().contains("decoded"));
    }
}

//! Envoy's API in JSON to messages on the wire.
//!
//! `envoy-v3.binpb` holds descriptors of all of v3 (made by `cargo xtask envoy-api`); a resource is decoded by them,
//! unknown fields and types refused with their place, and encoded. What is generated goes the same way as what people
//! write, so that both are proved alike.
//!
//! Invariant: equal JSON has equal versions; a version says nothing else.
//! Not here: rules of validation beyond types: Envoy itself refuses (NACK), and its text is shown.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde_json::Value;
use sha2::{Digest, Sha256};

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(&include_bytes!("../envoy-v3.binpb")[..]).ok());

/// A type of resource, in the order in which they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
    Secret,
}

impl Type {
    /// All of them, in the order in which they are sent.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route, Self::Secret];

    /// Its place in arrays.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// As the wire says it.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// As people say it, and as `EnvoyResources` and `/v3/discovery:` name it.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Endpoints => "endpoints",
            Self::Listener => "listeners",
            Self::Route => "routes",
            Self::Secret => "secrets",
        }
    }

    /// The field that names a resource.
    pub const fn name_field(self) -> &'static str {
        if matches!(self, Self::Endpoints) { "cluster_name" } else { "name" }
    }

    /// The type of this URL.
    pub fn from_url(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.url() == text)
    }

    /// The type of this word.
    pub fn from_plural(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.plural() == text)
    }

    fn descriptor(self) -> Option<MessageDescriptor> {
        let name = self.url().rsplit('/').next()?;
        POOL.as_ref()?.get_message_by_name(name)
    }
}

/// A resource as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its type.
    pub of: Type,
    /// Its name.
    pub name: Arc<str>,
    /// Hash of what it says.
    pub version: Arc<str>,
    /// As JSON, without `@type`.
    pub json: Value,
    /// As a message.
    pub body: Vec<u8>,
}

/// JSON that is no such resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Bad {
    /// Where, within the resource; empty: the whole.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

/// Encodes a resource.
pub fn encode(of: Type, json: Value) -> Result<Resource, Bad> {
    let bad = |path: &str, why: &str| Bad { path: path.to_owned(), why: why.to_owned() };
    let descriptor = of.descriptor().ok_or_else(|| bad("", "this build knows no such type"))?;
    let mut track = serde_path_to_error::Track::new();
    let source = serde_path_to_error::Deserializer::new(&json, &mut track);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor, source, &options);
    let message = message.map_err(|error| Bad { path: track.path().to_string(), why: error.to_string() })?;
    let name = message.get_field_by_name(of.name_field());
    let name = name.as_ref().and_then(|value| value.as_str()).filter(|name| !name.is_empty());
    let Some(name) = name.map(Arc::from) else { return Err(bad(of.name_field(), "a resource has a name")) };
    let version = digest(json.to_string().as_bytes());
    Ok(Resource { of, name, version, body: message.encode_to_vec(), json })
}

/// A short hash as text: nobody gains by a collision.
pub fn digest(of: &[u8]) -> Arc<str> {
    let mut out = String::with_capacity(32);
    for byte in Sha256::digest(of).iter().take(16) {
        // Writing into a String can't fail.
        let _ = write!(out, "{byte:02x}");
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_is_known() {
        DescriptorPool::decode(&include_bytes!("../envoy-v3.binpb")[..]).unwrap();
        for of in Type::ALL {
            assert!(of.descriptor().is_some(), "{of:?}");
            assert_eq!(Type::from_url(of.url()), Some(of));
            assert_eq!(Type::from_plural(of.plural()), Some(of));
        }
    }

    #[test]
    fn both_spellings_are_taken_and_encoded() {
        let snake = encode(Type::Cluster, json!({"name": "c", "connect_timeout": "0.25s"})).unwrap();
        let camel = encode(Type::Cluster, json!({"name": "c", "connectTimeout": "0.25s"})).unwrap();
        assert_eq!((&*snake.name, &snake.body), ("c", &camel.body));
        assert_eq!(snake.version.len(), 32);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let refused = |of, json| encode(of, json).unwrap_err();
        let bad = refused(Type::Cluster, json!({"name": "c", "lb_policy": "BEST"}));
        assert_eq!(bad.path, "lb_policy", "{bad}");
        let bad =
            refused(Type::Cluster, json!({"name": "c", "circuit_breakers": {"thresholds": [{"max": 1}]}}));
        assert!(bad.path.starts_with("circuit_breakers.thresholds[0]") && bad.why.contains("max"), "{bad}");
        let bad = refused(Type::Endpoints, json!({"endpoints": []}));
        assert_eq!(bad.path, "cluster_name");
        let filter = json!({"name": "f", "typed_config": {"@type": "type.googleapis.com/no.such.Type"}});
        let bad = refused(Type::Listener, json!({"name": "l", "filter_chains": [{"filters": [filter]}]}));
        assert!(bad.why.contains("no.such.Type"), "{bad}");
        let filter = json!({"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "clutser": "c"}});
        let bad = refused(Type::Listener, json!({"name": "l", "filter_chains": [{"filters": [filter]}]}));
        assert!(
            bad.path.starts_with("filter_chains[0].filters[0].typed_config") && bad.why.contains("clutser"),
            "{bad}"
        );
    }
}

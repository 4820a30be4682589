//! Resources as they came over the wire: kind, name, version, bytes.
//!
//! Kept as received, because the snapshot on disk and `initial_resource_versions` need nothing more. Not
//! here: what they mean (mesh-core).

use std::collections::BTreeMap;

use mesh_api::proto::v1;
use mesh_core::model::Resource;
use mesh_core::snapshot::Revision;
use prost::Message;

pub use mesh_core::model::Kind;

/// Its type URL.
pub const fn type_url(kind: Kind) -> &'static str {
    match kind {
        Kind::Mesh => "type.googleapis.com/nodemesh.v1.Mesh",
        Kind::Service => "type.googleapis.com/nodemesh.v1.Service",
        Kind::Workload => "type.googleapis.com/nodemesh.v1.Workload",
        Kind::HttpRoute => "type.googleapis.com/nodemesh.v1.HttpRoute",
        Kind::TrafficPolicy => "type.googleapis.com/nodemesh.v1.TrafficPolicy",
    }
}

/// Inverse of [`type_url`].
pub fn kind_of(url: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| type_url(*kind) == url)
}

/// Decodes a resource; an error names what is wrong.
pub fn decode(key: &Key, raw: &Raw) -> Result<Resource, String> {
    let bytes = raw.bytes.as_slice();
    let mut resource = match key.0 {
        Kind::Mesh => v1::Mesh::decode(bytes).map(Resource::Mesh),
        Kind::Service => v1::Service::decode(bytes).map(Resource::Service),
        Kind::Workload => v1::Workload::decode(bytes).map(Resource::Workload),
        Kind::HttpRoute => v1::HttpRoute::decode(bytes).map(Resource::HttpRoute),
        Kind::TrafficPolicy => v1::TrafficPolicy::decode(bytes).map(Resource::TrafficPolicy),
    }
    .map_err(|error| format!("it cannot be decoded: {error}"))?;
    if let Resource::Workload(workload) = &mut resource {
        // A decoded list has room for four, and most workloads serve one service at one address.
        workload.services.shrink_to_fit();
        workload.addresses.shrink_to_fit();
    }
    if *resource.name() != *key.1 {
        return Err(format!("it says that its name is {}", resource.name()));
    }
    Ok(resource)
}

/// Which resource: kind and "<namespace>/<name>".
pub type Key = (Kind, String);

/// A resource as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Content hash.
    pub version: String,
    /// The encoded message.
    pub bytes: Vec<u8>,
}

/// One change that is taken whole: from one or several responses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Where the control plane's history stands after it.
    pub revision: Revision,
    /// It is everything that there is: what it does not hold is gone.
    pub full: bool,
    /// New or changed; `None`: gone.
    pub changes: BTreeMap<Key, Option<Raw>>,
}

/// A resource of an update that was not taken, and why. The state keeps what it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Which.
    pub key: Key,
    /// Why.
    pub reason: String,
}

/// `"<store id>/<revision>"`.
pub fn parse_revision(text: &str) -> Option<Revision> {
    let (store, number) = text.rsplit_once('/')?;
    if store.is_empty() {
        return None;
    }
    Some(Revision { store: store.to_owned(), number: number.parse().ok()? })
}

/// Inverse of [`parse_revision`]; empty where nothing was received yet.
pub fn show_revision(revision: &Revision) -> String {
    if revision.store.is_empty() { String::new() } else { format!("{}/{}", revision.store, revision.number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_round_trip() {
        let revision = parse_revision("st0re/42").unwrap();
        assert_eq!((revision.store.as_str(), revision.number), ("st0re", 42));
        assert_eq!(show_revision(&revision), "st0re/42");
        for bad in ["", "42", "/42", "store/", "store/x", "store/-1"] {
            assert!(parse_revision(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn kinds_round_trip() {
        for kind in Kind::ALL {
            assert_eq!(kind_of(type_url(kind)), Some(kind));
        }
    }

    #[test]
    fn a_resource_must_be_what_its_name_says() {
        let service = v1::Service { namespace: "a".into(), name: "b".into(), ..v1::Service::default() };
        let raw = Raw { version: String::new(), bytes: service.encode_to_vec() };
        assert!(decode(&(Kind::Service, "a/b".into()), &raw).is_ok());
        assert!(decode(&(Kind::Service, "a/c".into()), &raw).unwrap_err().contains("a/b"));
        let raw = Raw { version: String::new(), bytes: vec![0xff; 3] };
        assert!(decode(&(Kind::Service, "a/b".into()), &raw).unwrap_err().contains("decoded"));
    }
}

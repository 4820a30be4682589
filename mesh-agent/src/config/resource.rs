//! What comes over the wire: type URLs, revisions, updates. Not here: what resources mean and how they are
//! kept (mesh-core).

use std::collections::BTreeMap;

use mesh_core::snapshot::Revision;

pub use mesh_core::model::{Kind, Raw};

/// Its type URL.
pub const fn type_url(kind: Kind) -> &'static str {
    match kind {
        Kind::Mesh => "type.googleapis.com/nodemesh.v1.Mesh",
        Kind::Service => "type.googleapis.com/nodemesh.v1.Service",
        Kind::Workload => "type.googleapis.com/nodemesh.v1.Workload",
        Kind::HttpRoute => "type.googleapis.com/nodemesh.v1.HttpRoute",
        Kind::GrpcRoute => "type.googleapis.com/nodemesh.v1.GrpcRoute",
        Kind::TlsRoute => "type.googleapis.com/nodemesh.v1.TlsRoute",
        Kind::TcpRoute => "type.googleapis.com/nodemesh.v1.TcpRoute",
        Kind::UdpRoute => "type.googleapis.com/nodemesh.v1.UdpRoute",
        Kind::TrafficPolicy => "type.googleapis.com/nodemesh.v1.TrafficPolicy",
        Kind::AuthorizationPolicy => "type.googleapis.com/nodemesh.v1.AuthorizationPolicy",
        Kind::TransportPolicy => "type.googleapis.com/nodemesh.v1.TransportPolicy",
        Kind::ExternalService => "type.googleapis.com/nodemesh.v1.ExternalService",
        Kind::TrustBundle => "type.googleapis.com/nodemesh.v1.TrustBundle",
        Kind::JwtKeys => "type.googleapis.com/nodemesh.v1.JwtKeys",
    }
}

/// Inverse of [`type_url`].
pub fn kind_of(url: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| type_url(*kind) == url)
}

/// Which resource: kind and "<namespace>/<name>".
pub type Key = (Kind, String);

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
}

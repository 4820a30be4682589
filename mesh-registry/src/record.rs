//! Keys and values of the store, as text.
//!
//! Not here: when they are written ([`crate::intent`]), what follows from them ([`crate::feed`]).

use std::net::IpAddr;

use mesh_api::error::ApiError;
use mesh_api::resource::{Key, Kind, Resource};
use serde_json::{Value, json};

use crate::source::{LeaseRef, Owner};
use crate::store::{Entry, StoreError};

/// Keys of objects that people wrote.
pub const INTENT: &str = "/intent/";
/// Keys of registrations.
pub const REGISTERED: &str = "/registered/";

/// Key of an object.
pub fn intent_key(key: &Key) -> String {
    format!("{INTENT}{}/{}/{}", key.kind.plural(), key.namespace, key.name)
}

/// What the keys of a kind's objects, or of those in one namespace, start with.
pub fn namespace_prefix(kind: Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("{INTENT}{}/{namespace}/", kind.plural()),
        None => format!("{INTENT}{}/", kind.plural()),
    }
}

/// Key of a registration. Owners may register the same name: the registry shows the conflict.
pub fn registered_key(owner: &Owner, key: &Key) -> String {
    format!("{REGISTERED}{owner}/{}/{}", key.namespace, key.name)
}

/// Key of a claim of a virtual address.
pub fn vip_key(address: IpAddr) -> String {
    format!("/vip/{address}")
}

/// Whose the key is, and of what: from the key alone, for removals.
pub fn parse_key(key: &str) -> Option<(Option<Owner>, Key)> {
    if let Some(rest) = key.strip_prefix(INTENT) {
        let mut parts = rest.splitn(3, '/');
        let kind = Kind::from_plural(parts.next()?)?;
        return Some((None, Key::new(kind, parts.next()?, parts.next()?)));
    }
    // Owners may contain slashes; names may not.
    let mut parts = key.strip_prefix(REGISTERED)?.rsplitn(3, '/');
    let (name, namespace, owner) = (parts.next()?, parts.next()?, parts.next()?);
    Some((Some(Owner::named(owner)), Key::new(Kind::Workload, namespace, name)))
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// The object; its revision is the entry's.
    pub resource: Resource,
    /// The lease of a registration.
    pub lease: Option<LeaseRef>,
    /// Number of the object's last entry in [`crate::history`]; 0: none, or not known.
    pub number: u32,
}

impl Record {
    /// As stored.
    pub fn write(&self) -> Vec<u8> {
        let mut out = json!({ "owner": self.owner.as_str(), "object": self.resource.to_json() });
        if self.number > 0 {
            out["number"] = self.number.into();
        }
        if let Some(lease) = &self.lease {
            let millis = u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX);
            out["lease"] = json!({ "name": lease.name, "ttlMs": millis });
        }
        out.to_string().into_bytes()
    }

    /// From what is stored.
    pub fn read(entry: &Entry) -> Result<Self, StoreError> {
        let damaged = |cause: String| StoreError::Corrupt { path: entry.key.clone(), cause };
        let value: Value =
            serde_json::from_slice(&entry.value).map_err(|cause| damaged(cause.to_string()))?;
        let owner = value["owner"].as_str().ok_or_else(|| damaged("no owner".to_owned()))?;
        let mut resource =
            Resource::parse(&value["object"]).map_err(|cause: ApiError| damaged(cause.message))?;
        resource.metadata.revision = entry.modified;
        let lease = match (&value["lease"]["name"], &value["lease"]["ttlMs"]) {
            (Value::String(name), Value::Number(millis)) => {
                let ttl = std::time::Duration::from_millis(millis.as_u64().unwrap_or(0));
                Some(LeaseRef { name: name.clone(), ttl })
            }
            _ => None,
        };
        let number = value["number"].as_u64().and_then(|number| number.try_into().ok()).unwrap_or(0);
        Ok(Self { owner: Owner::named(owner), resource, lease, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let service = Key::new(Kind::Service, "shop", "cart");
        assert_eq!(parse_key(&intent_key(&service)), Some((None, service)));
        assert_eq!(parse_key(&intent_key(&Key::mesh())), Some((None, Key::mesh())));
        let workload = Key::new(Kind::Workload, "shop", "cart-1.a");
        for owner in [Owner::node("n1"), Owner::named("file:/etc/mesh"), Owner::rest()] {
            let key = registered_key(&owner, &workload);
            assert_eq!(parse_key(&key), Some((Some(owner), workload.clone())), "{key}");
        }
        for other in ["/vip/10.0.0.1", "/intent/nothing/a/b", "/intent/services/a", "/tokens/x", ""] {
            assert_eq!(parse_key(other), None, "{other}");
        }
    }
}

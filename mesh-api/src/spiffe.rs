//! Identities: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` of a workload,
//! `spiffe://<trust domain>/node/<name>` of a node.
//!
//! Not here: certificates that carry them.

use std::fmt;
use std::str::FromStr;

use crate::name::{LABEL, SUBDOMAIN, TRUST_DOMAIN};

/// A workload's identity; its parts have been checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// Not an identity of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT: {cause}")]
pub struct SpiffeError {
    text: String,
    cause: &'static str,
}

impl SpiffeId {
    /// From its parts.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        let refuse = |cause| SpiffeError {
            text: format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"),
            cause,
        };
        for (form, part) in [(TRUST_DOMAIN, trust_domain), (LABEL, namespace), (SUBDOMAIN, service_account)] {
            if !(form.holds)(part) {
                return Err(refuse(form.accepted));
            }
        }
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// Trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Service account within the namespace.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let refuse = |cause| SpiffeError { text: text.chars().take(300).collect(), cause };
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| refuse("it starts otherwise"))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(refuse("its path has another shape"));
        };
        Self::new(trust_domain, namespace, service_account)
    }
}

/// A node's identity; its parts have been checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    trust_domain: String,
    name: String,
}

/// Not the identity of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not spiffe://TRUST-DOMAIN/node/NAME: {cause}")]
pub struct NodeIdError {
    text: String,
    cause: &'static str,
}

impl NodeId {
    /// From its parts.
    pub fn new(trust_domain: &str, name: &str) -> Result<Self, NodeIdError> {
        for (form, part) in [(TRUST_DOMAIN, trust_domain), (SUBDOMAIN, name)] {
            if !(form.holds)(part) {
                let text = format!("spiffe://{trust_domain}/node/{name}");
                return Err(NodeIdError { text, cause: form.accepted });
            }
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), name: name.to_owned() })
    }

    /// Trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/node/{}", self.trust_domain, self.name)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let refuse = |cause| NodeIdError { text: text.chars().take(300).collect(), cause };
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| refuse("it starts otherwise"))?;
        match rest.split('/').collect::<Vec<_>>()[..] {
            [trust_domain, "node", name] => Self::new(trust_domain, name),
            _ => Err(refuse("its path has another shape")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_identities_of_their_own_shape() {
        let id: NodeId = "spiffe://mesh.local/node/n1.example".parse().unwrap();
        assert_eq!((id.trust_domain(), id.name()), ("mesh.local", "n1.example"));
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["spiffe://mesh.local/ns/a/sa/b", "spiffe://mesh.local/node/", "spiffe://m/node/a/b", "x"]
        {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
        assert!("spiffe://mesh.local/node/n1".parse::<SpiffeId>().is_err());
    }

    #[test]
    fn an_identity_is_written_as_it_is_read() {
        let text = "spiffe://mesh.local/ns/shop/sa/cart";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), ("mesh.local", "shop", "cart"));
        assert_eq!(id.to_string(), text);
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in [
            "http://mesh.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://mesh.local/ns/a/sa/b/c",
            "spiffe://mesh.local/ns/a/sa/",
            "spiffe://Mesh/ns/a/sa/b",
            "spiffe://mesh.local/ns/../sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}

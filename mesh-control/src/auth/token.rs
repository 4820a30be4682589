//! The text of tokens and the record that is kept of one.
//!
//! API token: `nma.<id>.<secret>`. Join token: `nm1.<id>.<secret>.<SHA-256 of the authority's DER>`, all hex.
//! A secret is 256 random bits, so a plain SHA-256 of it is as good at rest as any slow hash.

use std::fmt;
use std::str::FromStr;

use mesh_api::name::{is_label, is_subdomain};
use rustls::crypto::GetRandomFailed;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Role;
use crate::ca::hex;

const API: &str = "nma";
const JOIN: &str = "nm1";
/// Random bytes of an id.
const ID_BYTES: usize = 6;
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// What is stored of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// Names the token in lists, audit lines and revocation.
    pub id: String,
    /// What people call it, for history and the audit log; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// SHA-256 of the secret, hex.
    pub hash: String,
    /// What it allows.
    pub role: Role,
    /// For `Role::Node`: the node's name; for `Role::Envoy`: the node type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// For `Role::Node`: what the node may register.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; absent: until revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// For `Role::Node`: good for one join.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_use: bool,
    /// When it was used, if it is for a single use. Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<u64>,
}

impl TokenRecord {
    /// Whether the token has ended at `now_ms`.
    pub fn expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|end| end <= now_ms)
    }

    /// Constant-time comparison with a presented secret.
    pub fn accepts(&self, secret: &str) -> bool {
        hash(secret).as_bytes().ct_eq(self.hash.as_bytes()).into()
    }
}

/// `<namespace>/<service account>`; the service account may be `*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grant {
    namespace: String,
    service_account: String,
}

impl Grant {
    /// Whether a workload with that identity is inside the grant.
    pub fn covers(&self, namespace: &str, service_account: &str) -> bool {
        self.namespace == namespace
            && (self.service_account == "*" || self.service_account == service_account)
    }
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("\"{text}\" is not a grant: write NAMESPACE/SERVICEACCOUNT or NAMESPACE/*");
        let (namespace, service_account) = text.split_once('/').ok_or_else(refused)?;
        if !is_label(namespace) || !(service_account == "*" || is_subdomain(service_account)) {
            return Err(refused());
        }
        Ok(Self { namespace: namespace.to_owned(), service_account: service_account.to_owned() })
    }
}

impl TryFrom<String> for Grant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> Self {
        grant.to_string()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

/// What a presented text claims.
#[derive(Debug, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Which record to compare with.
    pub id: &'a str,
    /// What its owner knows.
    pub secret: &'a str,
}

/// Takes a bearer text apart; `None` for anything that is not a token of ours.
pub fn parse(text: &str) -> Option<Presented<'_>> {
    let mut parts = text.split('.');
    let (kind, id, secret) = (parts.next()?, parts.next()?, parts.next()?);
    let rest = parts.next();
    let shape = match kind {
        API => rest.is_none(),
        JOIN => rest.is_some() && parts.next().is_none(),
        _ => false,
    };
    (shape && id.len() == ID_BYTES * 2 && secret.len() == SECRET_BYTES * 2)
        .then_some(Presented { id, secret })
}

/// A new id, its secret's hash, and the text to hand to the owner: the only time the secret is seen.
pub struct Minted {
    /// For the record.
    pub id: String,
    /// For the record.
    pub hash: String,
    secret: String,
}

impl Minted {
    /// Draws id and secret from the system's random source.
    pub fn new() -> Result<Self, GetRandomFailed> {
        let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        random.fill(&mut id)?;
        random.fill(&mut secret)?;
        let secret = hex(&secret);
        Ok(Self { id: hex(&id), hash: hash(&secret), secret })
    }

    /// Text of a token for people and programs.
    pub fn api_text(&self) -> String {
        format!("{API}.{}.{}", self.id, self.secret)
    }

    /// Text of a token for an agent; pins the authority.
    pub fn join_text(&self, ca_fingerprint: &str) -> String {
        format!("{JOIN}.{}.{}.{ca_fingerprint}", self.id, self.secret)
    }
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_text_parses_back() {
        let minted = Minted::new().unwrap();
        for text in [minted.api_text(), minted.join_text("ab12")] {
            let presented = parse(&text).unwrap();
            assert_eq!(presented.id, minted.id);
            assert_eq!(hash(presented.secret), minted.hash);
        }
    }

    #[test]
    fn foreign_texts_are_no_tokens() {
        let minted = Minted::new().unwrap();
        let api = minted.api_text();
        for text in ["", "nma", "nma..", "Bearer x", &api[..api.len() - 1], &format!("{api}.x"), "nm1.a.b.c"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn grants_cover_an_account_or_a_namespace() {
        let one: Grant = "shop/cart".parse().unwrap();
        assert!(one.covers("shop", "cart") && !one.covers("shop", "pay") && !one.covers("bank", "cart"));
        let all: Grant = "shop/*".parse().unwrap();
        assert!(all.covers("shop", "pay") && !all.covers("bank", "pay"));
        for bad in ["*/cart", "*", "shop", "shop/", "/x", "Shop/x", "a/b/c"] {
            assert!(bad.parse::<Grant>().is_err(), "{bad}");
        }
    }
}

//! What people are shown of this node's certificates: never a key.

use mesh_api::local::IdentityStatus;
use serde_json::{Value, json};

use super::held::Identities;
use super::unix_now;

/// Rows that fit an answer of `agent.sock`.
const ROWS: usize = 96;
/// Longest failure that is shown.
const FAILURE: usize = 200;

/// One identity.
pub struct Shown {
    /// Its name.
    pub identity: String,
    serial: String,
    not_before: u64,
    not_after: Option<u64>,
    failure: String,
    chain: Vec<Vec<u8>>,
}

impl Shown {
    /// Seconds until its certificate ends; `None`: there is none.
    pub fn left(&self) -> Option<i64> {
        self.not_after.map(|end| end as i64 - unix_now() as i64)
    }
}

impl Identities {
    /// All of them by name, the node's own first.
    pub fn show(&self) -> Vec<Shown> {
        let node = self.0.member.credentials().node().map(|node| Shown {
            identity: node.identity.clone(),
            serial: node.serial.clone(),
            not_before: node.not_before,
            not_after: Some(node.not_after),
            failure: String::new(),
            chain: node.certified.cert.iter().map(|der| der.to_vec()).collect(),
        });
        let held = self.0.held.read();
        let mut all: Vec<Shown> = held
            .iter()
            .map(|(id, held)| Shown {
                identity: id.to_string(),
                serial: held.serial.clone(),
                not_before: held.svid.as_ref().map_or(0, |svid| svid.not_before),
                not_after: held.svid.as_ref().map(|svid| svid.not_after),
                failure: held.failure.chars().take(FAILURE).collect(),
                chain: held
                    .svid
                    .iter()
                    .flat_map(|svid| &svid.certified.cert)
                    .map(|der| der.to_vec())
                    .collect(),
            })
            .collect();
        drop(held);
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        node.into_iter().chain(all).collect()
    }

    /// As `status` shows them: the first of them, and how many more there are.
    pub fn status(&self) -> (Vec<IdentityStatus>, usize) {
        let all = self.show();
        let more = all.len().saturating_sub(ROWS);
        let row = |shown: Shown| IdentityStatus {
            ends_in_seconds: shown.left(),
            identity: shown.identity,
            serial: shown.serial,
            failure: shown.failure,
        };
        (all.into_iter().take(ROWS).map(row).collect(), more)
    }

    /// Everything but keys, certificates as PEM.
    pub fn dump(&self) -> Value {
        let pem = |ders: &[Vec<u8>]| -> String {
            ders.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()))).collect()
        };
        let one = |shown: &Shown| {
            json!({
                "identity": shown.identity,
                "serial": shown.serial,
                "notBefore": shown.not_before,
                "notAfter": shown.not_after,
                "failure": shown.failure,
                "chain": pem(&shown.chain),
            })
        };
        let bundle = mesh_identity::Keys::bundle(self);
        let bundle = bundle.map(|bundle| {
            let roots: Vec<Vec<u8>> = bundle.roots.iter().map(|der| der.to_vec()).collect();
            let list = |der: &[u8]| pem::encode(&pem::Pem::new("X509 CRL", der.to_vec()));
            json!({
                "trustDomain": bundle.trust_domain,
                "roots": pem(&roots),
                "revoked": bundle.revoked.iter().map(|der| list(der)).collect::<Vec<_>>(),
            })
        });
        json!({ "bundle": bundle, "identities": self.show().iter().map(one).collect::<Vec<_>>() })
    }
}

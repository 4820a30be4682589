//! Who asks the authority for what, and what becomes of it.
//!
//! agents (Join, Sign), people (`meshctl ca`) ──▶ **office** ──▶ { authority, issued, members, bundle to agents }
//!
//! Invariants: what is handed out is on the list of what was issued before; the bundle that agents are sent, the
//! certificates that are believed here and the certificate that is shown here change together.
//! Not here: keys (`authority`), when keys follow one another (`rotation`). Everything blocks: it writes the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use mesh_api::proto::v1;
use mesh_api::spiffe::{NodeId, SpiffeId};
use mesh_registry::intent::WriteError;
use mesh_registry::store::StoreError;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use v1::SigningRefusal as Why;

use super::authority::Authority;
use super::csr::{self, Names};
use super::issued::{Issued, Ledger, RevokeError, Revoked, Which};
use super::rotation::{self, Facts, Step};
use super::shared::{Shared, SharedError};
use super::verify::Clients;
use super::{CaError, hex, peer};
use crate::auth::Principal;
use crate::engine::Engine;
use crate::engine::members::JoinError;
use crate::tls::ServerCert;
use crate::xds::Type;

mod tell;

use tell::Told;

/// Certificates that one call may ask for.
pub const BATCH_MAX: usize = 256;
/// Refusals that are remembered, so that each is logged once.
const SAID_MAX: usize = 4096;

/// Why the office could not do something.
#[derive(Debug, thiserror::Error)]
pub enum OfficeError {
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// Between replicas.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// A node may not join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The request to join is malformed.
    #[error("{0}")]
    Request(String),
}

/// The office.
pub struct Office {
    engine: Arc<Engine>,
    /// Keys.
    pub authority: Authority,
    /// What there is to do with other replicas'; `None`: nothing, it is alone or its intermediate was given.
    shared: Option<Shared>,
    ledger: Ledger,
    cert: Arc<ServerCert>,
    names: Vec<String>,
    clients: Arc<Clients>,
    told: Mutex<Told>,
    /// Held by who changes keys and tells of it: a root that nobody was told of yet must not be taken for one that
    /// everybody has.
    turn: Mutex<()>,
    said: Mutex<BTreeSet<(String, String)>>,
}

impl Office {
    /// Opens it; `cert` and `clients` are the server's own, and follow the authority from now on.
    pub fn open(
        engine: Arc<Engine>,
        (authority, shared): (Authority, Option<Shared>),
        names: Vec<String>,
        (cert, clients): (Arc<ServerCert>, Arc<Clients>),
        now: u64,
    ) -> Result<Arc<Self>, OfficeError> {
        let ledger = Ledger::open(engine.store().clone(), engine.replicas.name())?;
        let (told, turn, said) = (Mutex::default(), Mutex::default(), Mutex::default());
        let office = Self { engine, authority, shared, ledger, cert, names, clients, told, turn, said };
        office.publish(now)?;
        Ok(Arc::new(office))
    }

    /// A node joins with its token.
    pub fn join(&self, request: &v1::JoinRequest, now: u64) -> Result<v1::JoinResponse, OfficeError> {
        // Before the token: a malformed request must not use it up.
        let key = csr::check(&request.csr, Names::None).map_err(OfficeError::Request)?;
        let id = NodeId::new(&self.engine.trust_domain(), &request.node)
            .map_err(|error| OfficeError::Request(error.to_string()))?;
        let member = self.engine.join(&request.token, &request.node)?;
        let uri = id.to_string();
        let live = self.authority.live();
        let certificate = live.sign(&uri, &key, now, self.authority.lives.node)?;
        self.ledger.note(vec![self.issued(&certificate, uri, &member.node, now)], now)?;
        self.engine.metrics.certificates_issued.inc();
        tracing::info!(node = member.node, token = member.token, serial = certificate.serial, "node joined");
        Ok(v1::JoinResponse { certificate: Some(certificate), bundle: self.told.lock().bundle.clone() })
    }

    /// Certificates for a member; the results are in the order of the requests.
    pub fn sign(
        &self,
        who: &Principal,
        requests: &[v1::SigningRequest],
        now: u64,
    ) -> Result<Vec<v1::Signed>, OfficeError> {
        let hosted = self.engine.hosted(&who.node);
        let domain = self.engine.trust_domain();
        let live = self.authority.live();
        let mut notes = Vec::new();
        let one = |request: &v1::SigningRequest| {
            let identity = &request.identity;
            let of_node = may_have(who, &hosted, &domain, identity)?;
            let key =
                csr::check(&request.csr, Names::Only(identity)).map_err(|text| (Why::BadRequest, text))?;
            let life = if of_node { self.authority.lives.node } else { self.authority.lives.svid };
            let certificate = live
                .sign(identity, &key, now, life)
                .map_err(|error| (Why::Unavailable, error.to_string()))?;
            if of_node {
                self.engine.members.renewed(&who.node, certificate.not_after);
            }
            Ok(certificate)
        };
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            results.push(match one(request) {
                Ok(certificate) => {
                    notes.push(self.issued(&certificate, request.identity.clone(), &who.node, now));
                    v1::Signed { result: Some(v1::signed::Result::Certificate(certificate)) }
                }
                Err((why, text)) => self.refused(who, &request.identity, why, text),
            });
        }
        self.engine.metrics.certificates_issued.add(notes.len() as u64);
        self.ledger.note(notes, now)?;
        Ok(results)
    }

    fn refused(&self, who: &Principal, identity: &str, why: Why, text: String) -> v1::Signed {
        self.engine.metrics.certificates_refused.inc(why);
        let identity: String = identity.chars().take(300).collect();
        let mut said = self.said.lock();
        if said.len() >= SAID_MAX {
            said.clear();
        }
        if said.insert((who.node.clone(), format!("{} {identity}", why.as_str_name()))) {
            tracing::warn!(node = who.node, identity, why = why.as_str_name(), text, "certificate refused");
        }
        v1::Signed { result: Some(v1::signed::Result::Refused(v1::NotSigned { reason: why.into(), text })) }
    }

    fn issued(&self, certificate: &v1::Certificate, identity: String, node: &str, now: u64) -> Issued {
        Issued {
            serial: certificate.serial.clone(),
            identity,
            node: node.to_owned(),
            at: now,
            not_after: certificate.not_after,
            generation: certificate.generation,
            by: self.engine.replicas.name().to_owned(),
        }
    }

    /// Whether this replica says what agents are told.
    fn leads(&self) -> bool {
        self.engine.replicas.leads(Instant::now())
    }

    /// Does what is due, and tells agents what has changed.
    pub fn tick(&self, now: u64) -> Result<(), OfficeError> {
        let _turn = self.turn.lock();
        // One step at a time: each may have to be told before the next.
        if let Some(step) = rotation::next(&self.facts(), now) {
            tracing::info!(?step, "the authority's keys change");
            match step {
                Step::Switch => self.authority.switch_root(now)?,
                Step::DropFormer => self.authority.drop_former(now)?,
                Step::Renew => self.authority.renew_intermediate(now)?,
                Step::Forget => self.authority.forget_retired(now)?,
            }
        }
        self.ledger.follow()?;
        if let Some(shared) = &self.shared {
            shared.tick(&self.authority, now)?;
        }
        if self.leads() {
            self.ledger.prune(now)?;
        }
        self.publish(now)?;
        self.describe();
        Ok(())
    }

    /// Says to the other replicas how far this one is.
    fn describe(&self) {
        let (live, told) = (self.authority.live(), self.told.lock().revision);
        let taken = self.engine.nodes.all_have(Type::TrustBundle, told);
        self.engine.replicas.describe(|about| {
            (about.holds_root, about.intermediate_ends) = (live.holds_root(), live.end);
            if taken {
                about.bundle_taken = told;
            }
        });
    }

    fn facts(&self) -> Facts {
        let live = self.authority.live();
        let told = self.told.lock();
        Facts {
            announced: live.announced().then_some(told.at),
            taken: told.of(&live.roots)
                && self.engine.nodes.all_have(Type::TrustBundle, told.revision)
                && self.engine.replicas.others_have(told.revision),
            // Whoever holds the root says of former ones that they go.
            former_until: live.former_until().filter(|_| live.holds_root()),
            signer: (peer::begin(&live.intermediate), live.end),
            retired_until: live.retired_until(),
            own: live.holds_root(),
        }
    }

    /// A new intermediate now, or (`root`) a new root, which begins to sign when every connected agent believes it.
    pub fn rotate(&self, root: bool, now: u64) -> Result<(), OfficeError> {
        let _turn = self.turn.lock();
        if root {
            self.authority.announce_root(now)?;
        } else {
            self.authority.renew_intermediate(now)?;
        }
        self.publish(now)
    }

    /// Revokes certificates; which.
    pub fn revoke(&self, which: &Which, now: u64) -> Result<Vec<Revoked>, WriteError> {
        let revoked = self.ledger.revoke(which, now).map_err(|error| match error {
            RevokeError::Store(error) => error,
            full @ RevokeError::Full => StoreError::TooLarge { what: full.to_string() },
        })?;
        self.publish(now).map_err(|error| match error {
            OfficeError::Store(error) => error,
            other => StoreError::Failed { operation: "publish revocations", cause: other.to_string() },
        })?;
        Ok(revoked)
    }

    /// For people.
    pub fn status(&self, now: u64) -> Value {
        let (live, told) = (self.authority.live(), self.told.lock());
        let (held, valid, forgotten) = self.ledger.counts(now);
        let stage = match (live.announced(), live.former_until()) {
            (true, _) => "announced",
            (false, Some(_)) => "overlap",
            (false, None) => "steady",
        };
        json!({
            "trustDomain": told.bundle.as_ref().map(|bundle| &*bundle.trust_domain),
            "own": live.is_own(),
            "stage": stage,
            "taken": self.engine.nodes.all_have(Type::TrustBundle, told.revision),
            "roots": live.roots.iter().map(|der| described(der, now)).collect::<Vec<_>>(),
            "formerUntil": live.former_until(),
            "intermediate": described(&live.intermediate, now),
            "generation": live.generation,
            "svidTtlSeconds": self.authority.lives.svid,
            "nodeTtlSeconds": self.authority.lives.node,
            "issued": { "held": held, "valid": valid, "forgotten": forgotten },
            "revoked": self.ledger.revoked(),
            "holdsRoot": live.holds_root(),
            "replicas": self.engine.replicas.show(),
        })
    }

    /// Certificates that are valid, and that are revoked.
    pub fn certificates(&self, now: u64) -> (usize, usize) {
        (self.ledger.counts(now).1, self.ledger.revoked().len())
    }

    /// What was issued, and how much of it.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

/// An authority's certificate, for people.
fn described(der: &CertificateDer<'_>, now: u64) -> Value {
    let end = peer::end(der);
    json!({
        "name": peer::common_name(der),
        "sha256": hex(&Sha256::digest(der)),
        "notAfter": end,
        "endsInSeconds": end.saturating_sub(now),
    })
}

/// May this member have a certificate for that identity? `true`: it is the node's own.
fn may_have(
    who: &Principal,
    hosted: &BTreeSet<(String, String)>,
    domain: &str,
    identity: &str,
) -> Result<bool, (Why, String)> {
    let node = &who.node;
    if let Ok(id) = identity.parse::<NodeId>() {
        if id.name() == node && id.trust_domain() == domain {
            return Ok(true);
        }
        let text = format!("node {node} may not have the identity of another node, {identity}");
        return Err((Why::ForeignIdentity, text));
    }
    let id: SpiffeId = identity.parse().map_err(|error| (Why::BadRequest, format!("{error}")))?;
    if id.trust_domain() != domain {
        let text = format!("{identity} is not of this mesh: its trust domain is {domain}");
        return Err((Why::ForeignIdentity, text));
    }
    let (namespace, account) = (id.namespace(), id.service_account());
    if !who.may_register(namespace, account) {
        return Err((
            Why::NotGranted,
            format!(
                "node {node} may not host {namespace}/{account}: make a token that allows it with `meshctl token create \
             --node {node} --allow {namespace}/{account}`"
            ),
        ));
    }
    if !hosted.contains(&(namespace.to_owned(), account.to_owned())) {
        let text = format!("no workload of node {node} has the service account {namespace}/{account} now");
        return Err((Why::NotHosted, text));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;

    #[test]
    fn a_node_has_what_it_may_host_and_hosts() {
        let grants = vec!["shop/*".parse().unwrap()];
        let who =
            Principal { token: "t".into(), name: String::new(), role: Role::Node, node: "n1".into(), grants };
        let hosted = [("shop", "cart"), ("bank", "pay")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        let ask = |identity: &str| may_have(&who, &hosted, "m", identity).map_err(|(why, _)| why);
        assert_eq!(ask("spiffe://m/ns/shop/sa/cart"), Ok(false));
        assert_eq!(ask("spiffe://m/node/n1"), Ok(true));
        for (identity, why) in [
            ("spiffe://m/ns/bank/sa/pay", Why::NotGranted),
            ("spiffe://m/ns/shop/sa/pay", Why::NotHosted),
            ("spiffe://other/ns/shop/sa/cart", Why::ForeignIdentity),
            ("spiffe://m/node/n2", Why::ForeignIdentity),
            ("spiffe://other/node/n1", Why::ForeignIdentity),
            ("spiffe://m/ns/shop/sa/cart/x", Why::BadRequest),
            ("", Why::BadRequest),
        ] {
            assert_eq!(ask(identity), Err(why), "{identity}");
        }
    }
}

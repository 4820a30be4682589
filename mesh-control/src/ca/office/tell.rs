//! What agents are told of the authority, and by whom: this replica where it leads, else what the leader has put into
//! the store.
//!
//! Invariant: the bundle that agents are sent, the certificates that are believed here and the certificate that is shown
//! here change together.

use mesh_api::proto::v1;
use mesh_api::resource::Key;
use mesh_registry::registry::WireResource;
use mesh_registry::store::{StoreError, Txn};
use prost::Message;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest, Sha256};

use super::{Office, OfficeError};
use crate::ca::authority::Live;
use crate::ca::hex;
use crate::ca::shared::Shared;
use crate::xds::Type;

/// What agents were told last, in the store: its revision orders bundles among all that they are sent.
const BUNDLE: &str = "/ca/bundle";
/// How often the server's certificate is made anew, seconds: long before it ends.
const SERVER_RENEW: u64 = 86_400;

/// What was told last.
#[derive(Default)]
pub(super) struct Told {
    pub(super) bundle: Option<v1::TrustBundle>,
    pub(super) revision: u64,
    /// When, Unix seconds.
    pub(super) at: u64,
    /// Of what the lists were made: (generation, serial numbers).
    pub(super) listed: (u64, Vec<String>),
    pub(super) lists: Vec<CertificateRevocationListDer<'static>>,
    /// When the server's certificate was made, and by which generation.
    pub(super) server: (u64, u64),
}

impl Told {
    /// Is it these roots that were told?
    pub(super) fn of(&self, roots: &[CertificateDer<'_>]) -> bool {
        let told = self.bundle.as_ref().map(|bundle| bundle.roots.as_slice()).unwrap_or_default();
        told.len() == roots.len() && told.iter().zip(roots).all(|(told, root)| told == root.as_ref())
    }
}

impl Office {
    /// Makes everybody believe, show and refuse what the authority says now.
    pub(super) fn publish(&self, now: u64) -> Result<(), OfficeError> {
        let (live, revoked) = (self.authority.live(), self.ledger.revoked());
        let mut told = self.told.lock();
        let serials: Vec<String> = revoked.iter().map(|one| one.serial.clone()).collect();
        let listed = (live.generation, serials);
        if told.listed != listed {
            let me = self.engine.replicas.name();
            let own =
                revoked.into_iter().filter(|one| one.by == me || (one.by.is_empty() && live.holds_root()));
            told.lists = live.revocations(&own.collect::<Vec<_>>(), now, now)?;
            self.engine.members.revoke(listed.1.iter().cloned().collect());
            if let Some(shared) = &self.shared {
                shared.list(&told.lists.iter().map(|list| list.to_vec()).collect::<Vec<_>>())?;
            }
            told.listed = listed;
        }
        let stored = if self.leads() { None } else { self.stored()? };
        let changed = match stored {
            Some((revision, bundle)) => self.adopt(&mut told, revision, bundle, now)?,
            None => self.say(&mut told, &live, now)?,
        };
        // Its chain leads to the roots: another intermediate or other roots are another certificate.
        if told.server.1 != live.generation || changed || told.server.0 + SERVER_RENEW <= now {
            self.cert.replace(live.server_certificate(&self.names, now)?);
            told.server = (now, live.generation);
        }
        Ok(())
    }

    /// Tells everybody what this replica says; whether that is new.
    fn say(&self, told: &mut Told, live: &Live, now: u64) -> Result<bool, OfficeError> {
        let own = || Ok(told.lists.iter().map(|list| list.to_vec()).collect());
        let revoked = self.shared.as_ref().map_or_else(own, Shared::lists)?;
        let bundle = v1::TrustBundle {
            trust_domain: self.engine.trust_domain(),
            roots: live.roots.iter().map(|root| root.to_vec()).collect(),
            revoked,
            generation: self.shared.as_ref().and_then(Shared::generation).unwrap_or(live.generation),
        };
        if told.bundle.as_ref() == Some(&bundle) {
            return Ok(false);
        }
        self.follow_clients(&bundle)?;
        told.revision = self.tell(&bundle)?;
        (told.bundle, told.at) = (Some(bundle), now);
        Ok(true)
    }

    /// What the leader has said, in the store.
    fn stored(&self) -> Result<Option<(u64, v1::TrustBundle)>, OfficeError> {
        let Some(entry) = self.engine.store().get(BUNDLE)? else { return Ok(None) };
        let bundle = v1::TrustBundle::decode(&*entry.value)
            .map_err(|cause| StoreError::Corrupt { path: entry.key, cause: cause.to_string() })?;
        Ok(Some((entry.modified, bundle)))
    }

    /// Tells this replica's agents what the leader has said; whether that is new.
    fn adopt(
        &self,
        told: &mut Told,
        revision: u64,
        bundle: v1::TrustBundle,
        now: u64,
    ) -> Result<bool, OfficeError> {
        if told.bundle.as_ref() == Some(&bundle) {
            return Ok(false);
        }
        self.follow_clients(&bundle)?;
        // What this replica sent since the leader wrote it was still the one before.
        self.engine.nodes.unacked(Type::TrustBundle);
        self.hand_on(revision, bundle.encode_to_vec());
        (told.bundle, told.revision, told.at) = (Some(bundle), revision, now);
        Ok(true)
    }

    /// Agents are judged by what agents are told.
    fn follow_clients(&self, bundle: &v1::TrustBundle) -> Result<(), rustls::Error> {
        let roots: Vec<_> = bundle.roots.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let lists = bundle.revoked.iter().map(|der| CertificateRevocationListDer::from(der.clone()));
        self.clients.replace(&roots, lists.collect())
    }

    /// To all agents; the revision since which it is so.
    fn tell(&self, bundle: &v1::TrustBundle) -> Result<u64, StoreError> {
        let (store, body) = (self.engine.store(), bundle.encode_to_vec());
        let same = store.get(BUNDLE)?.filter(|entry| entry.value == body);
        // The same number on every replica.
        let revision = match same {
            Some(entry) => entry.modified,
            None => store.transact(Txn::default().put(BUNDLE, body.clone()))?,
        };
        self.hand_on(revision, body);
        Ok(revision)
    }

    fn hand_on(&self, revision: u64, body: Vec<u8>) {
        let version = hex(&Sha256::digest(&body)[..16]);
        // Its xDS name is that of the one mesh.
        let (key, name) = (Key::mesh(), Key::mesh().wire_name());
        self.engine.hub.own(
            Type::TrustBundle,
            revision,
            &name,
            Some(WireResource { key, version, revision, body }),
        );
    }
}

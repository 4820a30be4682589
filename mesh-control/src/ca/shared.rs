//! The authority of a mesh with several replicas: one holds the root, each has an intermediate of its own.
//!
//! | key in the store | who writes it | value, sealed by the replicas' [`Secret`] |
//! |---|---|---|
//! | `/ca/holder` | who comes first | its name |
//! | `/ca/roots` | who holds the root | who is believed, and the generation of intermediates |
//! | `/ca/asked/<replica>` | that replica | the public key of an intermediate that it wants |
//! | `/ca/given/<replica>` | who holds the root | the certificate of it |
//! | `/ca/lists/<replica>` | that replica | its revocation lists (signed by its intermediates, not sealed) |
//!
//! A replica's key is made where it stays. The holder of the root may be away for as long as intermediates live; a replica
//! asks anew at half of that, and whenever the holder says that there is a later generation.
//!
//! Not here: what certificates look like (`profile`), what is told to agents (`office`).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_registry::store::{Store, StoreError, Txn};
use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Lives};
use super::files::{self, CaError, Former, Found, Pair, Saved};
use super::profile::P256;
use super::secret::Secret;
use super::{hex, peer, unhex};

const HOLDER: &str = "/ca/holder";
const ROOTS: &str = "/ca/roots";
const ASKED: &str = "/ca/asked/";
const GIVEN: &str = "/ca/given/";
const LISTS: &str = "/ca/lists/";
/// How long a replica that starts waits for the holder of the root.
const START_TIME: Duration = Duration::from_secs(30);
/// How often it looks meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Who is believed, without keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roots {
    /// Of intermediates: what is older is replaced.
    pub generation: u64,
    /// Signs, PEM.
    pub root: String,
    /// Believed already, PEM.
    pub next: Option<String>,
    /// Believed still.
    pub former: Vec<Former>,
}

#[derive(Serialize, Deserialize)]
struct Asked {
    /// The point, hex.
    key: String,
}

#[derive(Serialize, Deserialize)]
struct Given {
    key: String,
    cert: String,
    generation: u64,
}

/// What a replica has to do with the others' authority.
pub struct Shared {
    store: Arc<dyn Store>,
    secret: Secret,
    me: String,
    /// Of an intermediate that was asked for.
    pending: Mutex<Option<KeyPair>>,
    told: Mutex<Option<Roots>>,
}

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Shared {
    /// Opens the authority of this replica: makes the root where the mesh has none, asks for an intermediate where another
    /// replica holds it. Blocks, for [`START_TIME`] at most.
    pub fn open(
        dir: &Path,
        named: Option<&Path>,
        store: Arc<dyn Store>,
        me: &str,
        lives: Lives,
        now: u64,
    ) -> Result<(Authority, Self), SharedError> {
        let own = !matches!(files::find(dir)?, Found::Nothing);
        let holder = hold(&*store, me)?;
        let secret = Secret::open(dir, named, holder == me, store.id())?;
        let (pending, told) = (Mutex::default(), Mutex::default());
        let shared = Self { store, secret, me: me.to_owned(), pending, told };
        match (own, holder == me) {
            (false, false) => shared.begin(dir, &holder)?,
            // The root was here, and is gone.
            (false, true) if shared.roots()?.is_some() => return Err(CaError::OtherRoot(holder).into()),
            _ => {}
        }
        let authority = Authority::open(dir, None, lives, now)?;
        if authority.live().holds_root() {
            let known = shared.roots()?.is_none_or(|roots| authority.live().knows(&roots.root));
            if !known || holder != me {
                return Err(CaError::OtherRoot(holder).into());
            }
            shared.tick(&authority, now)?;
        }
        Ok((authority, shared))
    }

    fn roots(&self) -> Result<Option<Roots>, SharedError> {
        let Some(entry) = self.store.get(ROOTS)? else { return Ok(None) };
        Ok(Some(self.secret.unseal(ROOTS, &entry.value)?))
    }

    /// The first intermediate.
    fn begin(&self, dir: &Path, holder: &str) -> Result<(), SharedError> {
        self.ask()?;
        let until = Instant::now() + START_TIME;
        loop {
            if let (Some(roots), Some((signer, generation))) = (self.roots()?, self.given()?) {
                let root = Pair { cert: roots.root, key: String::new() };
                let mut saved = Saved::new(root, signer);
                saved.generation = generation;
                saved.next = roots.next.map(|cert| Pair { cert, key: String::new() });
                saved.former = roots.former;
                return Ok(saved.write(dir)?);
            }
            if Instant::now() > until {
                return Err(CaError::NoHolder(holder.to_owned()).into());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Asks for an intermediate, for a key that is made here.
    fn ask(&self) -> Result<(), SharedError> {
        let mut pending = self.pending.lock();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::from)?;
        let path = format!("{ASKED}{}", self.me);
        let asked = Asked { key: hex(key.der_bytes()) };
        self.store.transact(Txn::default().put(path.clone(), self.secret.seal(&path, &asked)))?;
        *pending = Some(key);
        Ok(())
    }

    /// What was asked for, if it has come.
    fn given(&self) -> Result<Option<(Pair, u64)>, SharedError> {
        let mut pending = self.pending.lock();
        let path = format!("{GIVEN}{}", self.me);
        let (Some(key), Some(entry)) = (&*pending, self.store.get(&path)?) else { return Ok(None) };
        let given: Given = self.secret.unseal(&path, &entry.value)?;
        if given.key != hex(key.der_bytes()) {
            return Ok(None);
        }
        let pair = Pair { cert: given.cert, key: key.serialize_pem() };
        // Before it is kept: a certificate of another key would be found out too late.
        files::signer(&pair)?;
        *pending = None;
        Ok(Some((pair, given.generation)))
    }

    /// Does what is due between replicas.
    pub fn tick(&self, authority: &Authority, now: u64) -> Result<(), SharedError> {
        if authority.live().holds_root() { self.serve(authority, now) } else { self.follow(authority, now) }
    }

    /// Of who holds the root: tells whom to believe, and signs what others ask for.
    fn serve(&self, authority: &Authority, now: u64) -> Result<(), SharedError> {
        let live = authority.live();
        let Some(roots) = live.public() else { return Ok(()) };
        if self.told.lock().as_ref() != Some(&roots) {
            if self.roots()?.as_ref() != Some(&roots) {
                self.store.transact(Txn::default().put(ROOTS, self.secret.seal(ROOTS, &roots)))?;
            }
            *self.told.lock() = Some(roots);
        }
        for entry in self.store.range(ASKED, None)?.entries {
            let replica = &entry.key[ASKED.len()..];
            let path = format!("{GIVEN}{replica}");
            if self.store.get(&path)?.is_some_and(|given| given.modified > entry.modified) {
                continue;
            }
            let asked: Asked = match self.secret.unseal(&entry.key, &entry.value) {
                Ok(asked) => asked,
                Err(error) => {
                    tracing::error!(replica, %error, "an intermediate is refused");
                    self.store.transact(
                        Txn::default().if_at(entry.key.clone(), entry.modified).delete(entry.key),
                    )?;
                    continue;
                }
            };
            let cert = authority.intermediate_for(&P256(unhex(&asked.key)), now)?;
            let given = Given { key: asked.key, cert, generation: live.generation };
            let seen = Txn::default().if_at(entry.key.clone(), entry.modified);
            self.store.transact(seen.put(path.clone(), self.secret.seal(&path, &given)))?;
            tracing::info!(replica, generation = live.generation, "an intermediate was given to a replica");
        }
        Ok(())
    }

    /// Of everybody else: believes whom the holder says, and has its intermediate renewed.
    fn follow(&self, authority: &Authority, now: u64) -> Result<(), SharedError> {
        let Some(roots) = self.roots()? else { return Ok(()) };
        let live = authority.live();
        if live.public().is_some_and(|known| Roots { generation: roots.generation, ..known } != roots) {
            authority.believe(&roots)?;
        }
        if let Some((pair, generation)) = self.given()? {
            tracing::info!(generation, "a new intermediate signs on this replica");
            authority.take_intermediate(pair, generation, now)?;
            return Ok(());
        }
        let (from, to) = (peer::begin(&live.intermediate), live.end);
        let due = live.generation < roots.generation || now >= from + to.saturating_sub(from) / 2;
        if due && self.pending.lock().is_none() {
            self.ask()?;
        }
        *self.told.lock() = Some(roots);
        Ok(())
    }

    /// The generation of intermediates that is to sign.
    pub fn generation(&self) -> Option<u64> {
        self.told.lock().as_ref().map(|roots| roots.generation)
    }

    /// Puts this replica's revocation lists where the leader finds them.
    pub fn list(&self, lists: &[Vec<u8>]) -> Result<(), StoreError> {
        let path = format!("{LISTS}{}", self.me);
        let value =
            serde_json::to_vec(&lists.iter().map(|der| hex(der)).collect::<Vec<_>>()).unwrap_or_default();
        let there = self.store.get(&path)?;
        if there.as_ref().is_some_and(|entry| entry.value == value) || (there.is_none() && lists.is_empty()) {
            return Ok(());
        }
        self.store.transact(Txn::default().put(path, value)).map(drop)
    }

    /// All replicas' lists, this one's too.
    pub fn lists(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut all = Vec::new();
        for entry in self.store.range(LISTS, None)?.entries {
            let of: Vec<String> = serde_json::from_slice(&entry.value)
                .map_err(|cause| StoreError::Corrupt { path: entry.key, cause: cause.to_string() })?;
            all.extend(of.iter().map(|list| unhex(list)));
        }
        Ok(all)
    }

    /// This replica's name.
    pub fn me(&self) -> &str {
        &self.me
    }
}

/// Who holds the root: who came first.
fn hold(store: &dyn Store, me: &str) -> Result<String, SharedError> {
    loop {
        if let Some(entry) = store.get(HOLDER)? {
            return Ok(String::from_utf8_lossy(&entry.value).into_owned());
        }
        match store.transact(Txn::default().if_at(HOLDER, 0).put(HOLDER, me)) {
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;

//! The authority's keys: who is believed, who signs now, and who signed before.
//!
//! files ──▶ **authority** ──▶ { SVIDs, revocation lists, the server's certificate, roots }
//!
//! One root, one intermediate; a rotation adds to both for a while (`rotation`). Or a given intermediate and the
//! roots above it, which people replace by hand.
//!
//! Invariants: a change is on disk before it signs anything; nothing is signed by a root but intermediates and the
//! root after it; everybody who reads sees one state.
//! Not here: who may have a certificate (`office`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_api::proto::v1;
use parking_lot::{Mutex, RwLock};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use super::files::{self, Former, Found, Pair, Retired, Saved, signer};
use super::issued::Revoked;
use super::profile::{self, P256, Signer};
use super::shared::Roots;
use super::{CaError, hex, peer};

/// Former roots and retired intermediates that are kept, at most: so many rotations may follow one another within
/// the life of a certificate.
const KEPT_MAX: usize = 8;

/// How long certificates are good for, seconds.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// Of workloads.
    pub svid: u64,
    /// Of nodes.
    pub node: u64,
}

impl Lives {
    fn longest(self) -> u64 {
        self.svid.max(self.node)
    }
}

/// Files of an intermediate that is not the mesh's own.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The roots above it; the first is the one that join tokens name.
    pub bundle: PathBuf,
}

/// What is in force.
pub struct Live {
    /// `None`: the intermediate was given.
    saved: Option<Saved>,
    /// Who is believed; who signs, first.
    pub roots: Vec<CertificateDer<'static>>,
    crosses: Vec<CertificateDer<'static>>,
    signer: Signer,
    /// The intermediate's certificate.
    pub intermediate: CertificateDer<'static>,
    /// When it ends, Unix seconds.
    pub end: u64,
    /// Which of the intermediates it is.
    pub generation: u64,
    retired: Vec<(u64, Signer)>,
}

/// Keys and what they sign.
pub struct Authority {
    dir: PathBuf,
    /// How long certificates are good for.
    pub lives: Lives,
    live: RwLock<Arc<Live>>,
    changing: Mutex<()>,
}

impl Authority {
    /// Reads the authority from `dir`, or makes it there.
    pub fn open(dir: &Path, given: Option<&Given>, lives: Lives, now: u64) -> Result<Self, CaError> {
        let live = match given {
            Some(given) => Live::given(dir, given)?,
            None => Live::own(own(dir, now)?).map_err(|error| match error {
                CaError::Refused(cause) => CaError::Corrupt { path: dir.join(files::STATE), cause },
                other => other,
            })?,
        };
        Ok(Self { dir: dir.to_owned(), lives, live: RwLock::new(Arc::new(live)), changing: Mutex::default() })
    }

    /// What is in force now.
    pub fn live(&self) -> Arc<Live> {
        self.live.read().clone()
    }

    /// Changes the state: on disk, then in force.
    fn change(&self, change: impl FnOnce(&mut Saved) -> Result<(), CaError>) -> Result<(), CaError> {
        let _one_at_a_time = self.changing.lock();
        let Some(mut saved) = self.live().saved.clone() else {
            let text = "the intermediate was given (--ca-cert): replace the files, then restart mesh-control";
            return Err(CaError::Refused(text.to_owned()));
        };
        change(&mut saved)?;
        if saved.former.len() > KEPT_MAX || saved.retired.len() > KEPT_MAX {
            let text = format!(
                "{KEPT_MAX} keys before this one are still believed: wait until the certificates that they signed \
                 have ended"
            );
            return Err(CaError::Refused(text));
        }
        let live = Live::own(saved)?;
        if let Some(saved) = &live.saved {
            saved.write(&self.dir)?;
        }
        *self.live.write() = Arc::new(live);
        Ok(())
    }

    /// Refuses where another replica holds the root.
    fn require_root(&self) -> Result<(), CaError> {
        let live = self.live();
        if live.is_own() && !live.holds_root() {
            let text = "another replica holds the root: ask that one (`meshctl ca status` names it, --server says whom to ask)";
            return Err(CaError::Refused(text.to_owned()));
        }
        Ok(())
    }

    /// A new intermediate signs from now on.
    pub fn renew_intermediate(&self, now: u64) -> Result<(), CaError> {
        self.require_root()?;
        let lives = self.lives;
        self.change(|saved| retire(saved, lives, now))
    }

    /// Makes a root and believes it; it signs nothing before [`Self::switch_root`].
    pub fn announce_root(&self, now: u64) -> Result<(), CaError> {
        self.require_root()?;
        self.change(|saved| {
            if saved.next.is_some() {
                return Err(CaError::Refused(
                    "a rotation of the root is under way: see `meshctl ca status`".into(),
                ));
            }
            saved.next = Some(profile::root(now)?.into());
            Ok(())
        })
    }

    /// The announced root signs from now on.
    pub fn switch_root(&self, now: u64) -> Result<(), CaError> {
        let lives = self.lives;
        self.change(|saved| {
            let Some(next) = saved.next.take() else { return Ok(()) };
            let old = files::certificate("the root", &saved.root.cert)?;
            let made = profile::Made { cert: next.cert.clone(), key: next.key.clone() };
            let cross = profile::cross(&made, &signer(&saved.root)?, now, peer::end(&old))?;
            let former = std::mem::replace(&mut saved.root, next);
            let until = now + lives.longest() + 1;
            saved.former.insert(0, Former { cert: former.cert, cross, until });
            retire(saved, lives, now)
        })
    }

    /// A certificate of an intermediate for another replica's key, PEM.
    pub fn intermediate_for(&self, key: &P256, now: u64) -> Result<String, CaError> {
        let live = self.live();
        let Some(saved) = live.saved.as_ref().filter(|_| live.holds_root()) else {
            return Err(CaError::Refused("the root is not here".to_owned()));
        };
        let root = files::certificate("the root", &saved.root.cert)?;
        Ok(profile::intermediate_of(key, &signer(&saved.root)?, now, peer::end(&root))?)
    }

    /// These are believed: who holds the root says so.
    pub fn believe(&self, roots: &Roots) -> Result<(), CaError> {
        self.change(|saved| {
            let mut all = [Some(&roots.root), roots.next.as_ref()]
                .map(|cert| cert.map(|cert| Pair { cert: cert.clone(), key: String::new() }));
            if let Some(root) = all[0].take() {
                saved.root = root;
            }
            saved.next = all[1].take();
            saved.former.clone_from(&roots.former);
            Ok(())
        })
    }

    /// An intermediate that was asked for signs from now on.
    pub fn take_intermediate(&self, pair: Pair, generation: u64, now: u64) -> Result<(), CaError> {
        let lives = self.lives;
        self.change(|saved| {
            replace(saved, pair, generation, lives, now);
            Ok(())
        })
    }

    /// Former roots whose time is over are believed no longer.
    pub fn drop_former(&self, now: u64) -> Result<(), CaError> {
        self.change(|saved| {
            saved.former.retain(|former| former.until > now);
            Ok(())
        })
    }

    /// Retired intermediates whose time is over are forgotten.
    pub fn forget_retired(&self, now: u64) -> Result<(), CaError> {
        self.change(|saved| {
            saved.retired.retain(|retired| retired.until > now);
            Ok(())
        })
    }
}

/// Puts another intermediate in the place of the one that signs.
fn retire(saved: &mut Saved, lives: Lives, now: u64) -> Result<(), CaError> {
    let root = files::certificate("the root", &saved.root.cert)?;
    let fresh = profile::intermediate(&signer(&saved.root)?, now, peer::end(&root))?;
    let generation = saved.generation + 1;
    replace(saved, fresh.into(), generation, lives, now);
    Ok(())
}

fn replace(saved: &mut Saved, fresh: Pair, generation: u64, lives: Lives, now: u64) {
    let pair = std::mem::replace(&mut saved.signer, fresh);
    // Whose clock is behind must still see what of it is revoked.
    let until = now + lives.longest() + profile::SKEW;
    saved.retired.insert(0, Retired { pair, generation: saved.generation, until });
    saved.generation = generation;
}

/// The mesh's own state, made where there is none.
fn own(dir: &Path, now: u64) -> Result<Saved, CaError> {
    let root = match files::find(dir)? {
        Found::Saved(saved) => {
            saved.show(dir)?;
            return Ok(*saved);
        }
        Found::Root(pair) => pair,
        Found::Nothing => profile::root(now)?.into(),
    };
    let der = files::certificate("the root", &root.cert)?;
    let intermediate: Pair = profile::intermediate(&signer(&root)?, now, peer::end(&der))?.into();
    let saved = Saved::new(root, intermediate);
    saved.write(dir)?;
    files::forget_key(dir)?;
    Ok(saved)
}

impl Live {
    fn own(saved: Saved) -> Result<Self, CaError> {
        let of = |pem: &str| files::certificate("a certificate of the authority", pem);
        let roots = saved.roots().into_iter().map(of).collect::<Result<_, _>>()?;
        let crosses = saved.former.iter().map(|former| of(&former.cross)).collect::<Result<_, _>>()?;
        let retired = saved.retired.iter().map(|one| Ok((one.generation, signer(&one.pair)?)));
        let intermediate = of(&saved.signer.cert)?;
        Ok(Self {
            roots,
            crosses,
            end: peer::end(&intermediate),
            intermediate,
            signer: signer(&saved.signer)?,
            generation: saved.generation,
            retired: retired.collect::<Result<_, CaError>>()?,
            saved: Some(saved),
        })
    }

    fn given(dir: &Path, given: &Given) -> Result<Self, CaError> {
        let pair = Pair { cert: files::read(&given.cert)?, key: files::read(&given.key)? };
        let refused = |error: CaError| match error {
            CaError::Refused(cause) => CaError::Given(cause),
            CaError::Pair(cause) => CaError::Given(cause.to_string()),
            other => other,
        };
        let signer = signer(&pair).map_err(refused)?;
        let intermediate = files::certificate("--ca-cert", &pair.cert).map_err(refused)?;
        let bundle = files::read(&given.bundle)?;
        let roots = CertificateDer::pem_slice_iter(bundle.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| CaError::Given(format!("--ca-bundle: {cause}")))?;
        if roots.is_empty() {
            return Err(CaError::Given("--ca-bundle holds no certificate".to_owned()));
        }
        files::show(dir, &bundle)?;
        let end = peer::end(&intermediate);
        // Given anew, it is another generation: agents renew what the one before signed.
        let generation = peer::begin(&intermediate).max(1);
        let (saved, crosses, retired) = (None, Vec::new(), Vec::new());
        Ok(Self { saved, roots, crosses, signer, intermediate, end, generation, retired })
    }

    /// Is the intermediate the mesh's own?
    pub fn is_own(&self) -> bool {
        self.saved.is_some()
    }

    /// Is the root's key here?
    pub fn holds_root(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| !saved.root.key.is_empty())
    }

    /// Whether this root, PEM, is one of those that are believed.
    pub fn knows(&self, root: &str) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.roots().contains(&root))
    }

    /// What other replicas are told; `None`: the intermediate was given.
    pub fn public(&self) -> Option<Roots> {
        let saved = self.saved.as_ref()?;
        Some(Roots {
            generation: saved.generation,
            root: saved.root.cert.clone(),
            next: saved.next.as_ref().map(|next| next.cert.clone()),
            former: saved.former.clone(),
        })
    }

    /// Is there a root that is believed and signs nothing yet?
    pub fn announced(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.next.is_some())
    }

    /// When the first of the former roots may go.
    pub fn former_until(&self) -> Option<u64> {
        self.saved.as_ref()?.former.iter().map(|former| former.until).min()
    }

    /// When the first of the retired intermediates may be forgotten.
    pub fn retired_until(&self) -> Option<u64> {
        self.saved.as_ref()?.retired.iter().map(|retired| retired.until).min()
    }

    /// Seconds until the first of the roots, and the intermediate, end.
    pub fn ends(&self, now: u64) -> Vec<(&'static str, u64)> {
        let root = self.roots.iter().map(peer::end).min().unwrap_or(0);
        vec![("root", root.saturating_sub(now)), ("intermediate", self.end.saturating_sub(now))]
    }

    /// SHA-256 of the signing root's DER, hex: what join tokens pin.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.roots[0]))
    }

    /// A certificate for an identity, as agents are sent it.
    pub fn sign(&self, uri: &str, key: &P256, now: u64, life: u64) -> Result<v1::Certificate, CaError> {
        let leaf = profile::svid(uri, key, &self.signer, now, life, self.end)?;
        Ok(v1::Certificate {
            chain: vec![leaf.der.to_vec(), self.intermediate.to_vec()],
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: leaf.serial,
            generation: self.generation,
        })
    }

    /// A fresh certificate for the server. Its chain leads to every root that somebody may know.
    pub fn server_certificate(&self, names: &[String], now: u64) -> Result<Arc<CertifiedKey>, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = profile::server(names, &key, &self.signer, now, self.end)?;
        let chain = [leaf, self.intermediate.clone()].into_iter();
        let chain = chain.chain(self.crosses.iter().cloned()).chain(self.roots.iter().cloned()).collect();
        Ok(Arc::new(certified(chain, &key)?))
    }

    /// The lists of what is revoked, one of each intermediate that has signed any of it.
    pub fn revocations(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: u64,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, CaError> {
        let current = [(self.generation, &self.signer)].into_iter();
        let signers = current.chain(self.retired.iter().map(|(generation, signer)| (*generation, signer)));
        let mut lists = Vec::new();
        for (generation, signer) in signers {
            let of = revoked.iter().filter(|one| one.generation == generation);
            let serials: Vec<_> = of.clone().map(|one| (one.serial.clone(), one.since)).collect();
            let end = of.map(|one| one.not_after).max();
            if let Some(end) = end {
                lists.push(profile::revocations(signer, &serials, number, now, end)?);
            }
        }
        Ok(lists)
    }
}

/// Fails where the key and the first certificate do not belong together.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> Result<CertifiedKey, rustls::Error> {
    let provider: CryptoProvider = rustls::crypto::aws_lc_rs::default_provider();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(chain, der, &provider)
}

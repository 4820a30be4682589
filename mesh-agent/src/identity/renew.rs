//! Asks for certificates when they are due, and puts them where they are found.
//!
//! One task. Keys are made off the runtime's threads, requests go in calls of [`BATCH`]; the plan decides when.
//!
//! Invariants: one call at a time, with a deadline; what is held stays until something newer is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mesh_api::proto::v1;
use mesh_api::proto::v1::identity_client::IdentityClient;
use mesh_api::proto::v1::signed::Result as Outcome;
use mesh_api::spiffe::{NodeId, SpiffeId};
use mesh_identity::Svid;
use mesh_identity::verify::{Peer, Roots};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::held::{Held, Identities};
use super::make::{self, Key};
use super::member::certificates;
use super::plan::Plan;
use super::{unhex, unix_now};
use crate::config::conditions::Conditions;
use crate::config::connect::ControlPlane;
use crate::config::xds::explain;

/// Certificates that are asked for in one call.
const BATCH: usize = 256;
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// Failures in a row before people are told: a workload that has just been enrolled may be asked for too early.
const TOLD: u32 = 3;

/// Namespace and service account.
pub type Accounts = BTreeSet<(String, String)>;

/// Whose certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Node(NodeId),
    Workload(SpiffeId),
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Workload(id) => id.fmt(f),
        }
    }
}

/// The task's state.
pub struct Renewal {
    /// Where certificates come from.
    pub control: ControlPlane,
    /// This node's name.
    pub node: String,
    /// Where they go.
    pub identities: Identities,
    /// Whom to believe, and which generation of keys signs.
    pub trust: watch::Receiver<Arc<v1::TrustBundle>>,
    /// Accounts of the workloads of this node.
    pub accounts: watch::Receiver<Accounts>,
    /// Where people are told.
    pub conditions: Arc<Conditions>,
}

impl Renewal {
    /// Runs until who tells of accounts is gone.
    pub async fn run(mut self) {
        let mut plan = Plan::default();
        let mut channel = None;
        self.trusted(&mut plan);
        loop {
            self.wanted(&mut plan);
            let due = plan.due(Instant::now(), BATCH);
            if !due.is_empty() {
                self.ask(&mut plan, due, &mut channel).await;
                continue;
            }
            let next = plan.next();
            tokio::select! {
                changed = self.accounts.changed() => if changed.is_err() { return },
                changed = self.trust.changed() => {
                    if changed.is_err() { return }
                    self.trusted(&mut plan);
                }
                () = sleep_until(next) => {}
            }
        }
    }

    fn trusted(&mut self, plan: &mut Plan<Whose>) {
        let told = self.trust.borrow_and_update().clone();
        if told.roots.is_empty() {
            return;
        }
        self.identities.believe(&told);
        let now = Instant::now();
        plan.hasten(told.generation, now, fastrand::f64);
        for (id, held) in &*self.identities.0.held.read() {
            if listed(&told.revoked, &held.serial) {
                plan.at_once(&Whose::Workload(id.clone()), now);
            }
        }
    }

    /// Plans for exactly the identities that are there.
    fn wanted(&mut self, plan: &mut Plan<Whose>) {
        // Of the bundle that is believed: what is taken up below is held against it.
        let bundle = self.identities.0.bundle.load_full();
        let domain = bundle.map_or_else(String::new, |bundle| bundle.trust_domain.clone());
        let accounts = self.accounts.borrow_and_update().clone();
        let mut wanted: BTreeSet<Whose> =
            NodeId::new(&domain, &self.node).map(Whose::Node).into_iter().collect();
        let mut held = self.identities.0.held.write();
        let mut new = Vec::new();
        for (namespace, account) in &accounts {
            if let Ok(id) = SpiffeId::new(&domain, namespace, account) {
                if !held.contains_key(&id) {
                    held.insert(id.clone(), Held::default());
                    new.push(id.clone());
                }
                wanted.insert(Whose::Workload(id));
            }
        }
        let now = Instant::now();
        let gone = plan.want(&wanted, now);
        for id in gone {
            self.conditions.clear(&condition(&id));
            if let Whose::Workload(id) = id {
                held.remove(&id);
                self.identities.0.keep.forget(&id.to_string());
            }
        }
        drop(held);
        self.joined(plan, now);
        self.adopt(plan, &new, now);
    }

    /// Takes up what an earlier agent has left for these.
    fn adopt(&self, plan: &mut Plan<Whose>, new: &[SpiffeId], now: Instant) {
        let (inner, told) = (&*self.identities.0, self.trust.borrow().clone());
        let roots = inner.bundle.load_full().and_then(|bundle| Roots::new(&bundle).ok());
        let Some(roots) = roots.filter(|_| !new.is_empty()) else { return };
        let mut taken = 0;
        for id in new {
            let Some((key, certificate)) = inner.keep.get(&id.to_string()) else { continue };
            let svid = match usable(id, &key, &certificate, &roots) {
                Ok(svid) => svid,
                Err(why) => {
                    tracing::debug!(identity = %id, why, "the certificate that an earlier agent left is not used");
                    inner.keep.forget(&id.to_string());
                    continue;
                }
            };
            let due = first_half(certificate.not_before, certificate.not_after);
            plan.adopt(&Whose::Workload(id.clone()), now, due, certificate.generation, fastrand::f64());
            if let Some(held) = inner.held.write().get_mut(id) {
                *held = Held { svid: Some(svid), serial: certificate.serial, failure: String::new() };
            }
            inner.keep.adopted();
            taken += 1;
        }
        plan.hasten(told.generation, now, fastrand::f64);
        if taken > 0 {
            tracing::info!(certificates = taken, "took up what an earlier agent has left");
        }
    }

    /// The node's certificate may be there already: joined with, or from before.
    fn joined(&self, plan: &mut Plan<Whose>, now: Instant) {
        let Some(cert) = self.identities.0.member.credentials().node() else { return };
        let Ok(id) = cert.identity.parse() else { return };
        let due = first_half(cert.not_before, cert.not_after);
        plan.adopt(&Whose::Node(id), now, due, cert.generation, fastrand::f64());
    }

    async fn ask(&mut self, plan: &mut Plan<Whose>, due: Vec<Whose>, channel: &mut Option<Channel>) {
        let answer = self.call(&due, channel).await;
        let now = Instant::now();
        match answer {
            Err(why) => {
                *channel = None;
                for id in &due {
                    self.failed(plan, id, now, &why);
                }
            }
            Ok(answers) => {
                for (id, key, outcome) in answers {
                    let taken = match outcome {
                        Some(Outcome::Certificate(certificate)) => {
                            self.take(&id, &key, &certificate).await.map(|()| certificate)
                        }
                        Some(Outcome::Refused(refused)) => Err(refused.text),
                        None => Err("it gave no answer for this one".to_owned()),
                    };
                    match taken {
                        Ok(certificate) => self.renewed(plan, &id, now, &certificate),
                        Err(why) => self.failed(plan, &id, now, &why),
                    }
                }
            }
        }
    }

    fn renewed(&self, plan: &mut Plan<Whose>, id: &Whose, now: Instant, certificate: &v1::Certificate) {
        let life = Duration::from_secs(certificate.not_after.saturating_sub(unix_now()).max(1));
        plan.renewed(id, now, life, certificate.generation, fastrand::f64());
        self.identities.0.renewed.fetch_add(1, Relaxed);
        self.conditions.clear(&condition(id));
        tracing::debug!(identity = %id, serial = certificate.serial, "certificate taken");
    }

    fn failed(&self, plan: &mut Plan<Whose>, id: &Whose, now: Instant, why: &str) {
        self.identities.0.failed.fetch_add(1, Relaxed);
        let mut ends = None;
        if let Whose::Workload(id) = id
            && let Some(held) = self.identities.0.held.write().get_mut(id)
        {
            why.clone_into(&mut held.failure);
            ends = held.svid.as_ref().map(|svid| svid.not_after);
        }
        tracing::debug!(identity = %id, why, "no certificate");
        if plan.failed(id, now, fastrand::f64()) >= TOLD {
            let until = match ends.map(|end| end.saturating_sub(unix_now())) {
                Some(0) => "; its certificate has ended".to_owned(),
                Some(left) => format!("; its certificate ends in {} min", left / 60),
                None => String::new(),
            };
            self.conditions.set(&condition(id), format!("no new certificate: {why}{until}"));
        }
    }

    /// Keys, requests, answers.
    async fn call(
        &self,
        due: &[Whose],
        channel: &mut Option<Channel>,
    ) -> Result<Vec<(Whose, Key, Option<Outcome>)>, String> {
        let channel = if let Some(channel) = channel {
            channel.clone()
        } else {
            let (opened, _) = self.control.connect().await.map_err(|e| e.to_string())?;
            channel.insert(opened).clone()
        };
        let ids = due.to_vec();
        let made = tokio::task::spawn_blocking(move || {
            let one = |id: Whose| make::key(Some(&id.to_string())).map(|(key, csr)| (id, key, csr));
            ids.into_iter().map(one).collect::<Result<Vec<_>, _>>()
        });
        let made = made.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let request = |(id, _, csr): &(Whose, Key, Vec<u8>)| v1::SigningRequest {
            identity: id.to_string(),
            csr: csr.clone(),
        };
        let request = v1::SignRequest { requests: made.iter().map(request).collect() };
        let call = timeout(CALL, async { IdentityClient::new(channel).sign(request).await });
        let answer = call.await.map_err(|_| "the control plane does not answer".to_owned())?;
        let answer = answer.map_err(|status| {
            self.control.heard(&status);
            explain(&status)
        })?;
        let mut results = answer.into_inner().results.into_iter();
        let with = |(id, key, _)| (id, key, results.next().and_then(|signed| signed.result));
        Ok(made.into_iter().map(with).collect())
    }

    /// Puts a certificate in force.
    async fn take(&self, id: &Whose, key: &Key, certificate: &v1::Certificate) -> Result<(), String> {
        let id = match id {
            Whose::Node(id) => {
                let (id, member) = (id.to_string(), &self.identities.0.member);
                return member.renewed(&id, key, certificate).await.map_err(|e| e.to_string());
            }
            Whose::Workload(id) => id,
        };
        let svid = svid(id, key, certificate)?;
        if let Some(held) = self.identities.0.held.write().get_mut(id) {
            held.svid = Some(svid);
            held.serial.clone_from(&certificate.serial);
            held.failure.clear();
        }
        self.identities.0.keep.put(&id.to_string(), key, certificate);
        Ok(())
    }
}

fn svid(id: &SpiffeId, key: &Key, certificate: &v1::Certificate) -> Result<Arc<Svid>, String> {
    let certified = key.certified(certificates(&certificate.chain)).map_err(|e| e.to_string())?;
    let (not_before, not_after) = (certificate.not_before, certificate.not_after);
    Ok(Arc::new(Svid { id: id.clone(), certified, not_before, not_after }))
}

/// A certificate that an earlier agent left, if peers would take it now.
fn usable(
    id: &SpiffeId,
    key: &Key,
    certificate: &v1::Certificate,
    roots: &Roots,
) -> Result<Arc<Svid>, String> {
    let svid = svid(id, key, certificate)?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(unix_now()));
    let own = [id.clone()];
    roots.verify(Peer::Server(&own), &svid.certified.cert, now).map_err(|why| why.reason().to_owned())?;
    Ok(svid)
}

/// What is left of its whole life decides: past half of it, it is due, which is `None`.
fn first_half(not_before: u64, not_after: u64) -> Option<Duration> {
    let left = not_after.saturating_sub(unix_now());
    let life = not_after.saturating_sub(not_before).max(1);
    (left * 2 > life).then(|| Duration::from_secs(left))
}

/// Does a list name this serial number? Looked for as it is encoded: an INTEGER of 16 bytes.
fn listed(lists: &[Vec<u8>], serial: &str) -> bool {
    let Some(serial) = unhex(serial).filter(|bytes| bytes.len() == 16) else { return false };
    let encoded = [&[0x02, 0x10][..], &serial].concat();
    lists.iter().any(|list| list.windows(encoded.len()).any(|window| window == encoded))
}

fn condition(id: &Whose) -> String {
    format!("identity {id}")
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

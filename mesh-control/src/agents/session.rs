//! `Node.Session`: what a node hosts, and signs of life.
//!
//! Hello → Welcome; then upserts and removals, each answered when it is durable, in order; heartbeats renew
//! the lease of all of them; status is shown. What the node registered before and does not repeat until its
//! first heartbeat is withdrawn then (`Leases`).
//!
//! Invariants: one session a node, the newest; a session that ends changes nothing: workloads stay until
//! their lease ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use mesh_api::proto::v1::{
    Accepted, Hello, Refused, SessionDown, SessionUp, Welcome, WorkloadRemove, WorkloadUpsert, session_down,
    session_up,
};
use mesh_api::resource::{Key, Kind};
use mesh_registry::intent::WriteError;
use mesh_registry::source::Owner;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::workload::admit;
use crate::auth::Principal;
use crate::ca::peer::Peer;
use crate::clock::unix_s;
use crate::engine::Engine;
use crate::stop::stopped;

/// How long a node may take to say hello.
const HELLO_TIME: Duration = Duration::from_secs(10);
/// How long an answer may stay unread.
const SEND_TIME: Duration = Duration::from_secs(30);
/// How often the end of the certificate and a takeover are looked at.
const CHECK: Duration = Duration::from_secs(5);
/// Workloads that one node may register.
const WORKLOADS_MAX: usize = 4096;

/// Where answers go.
pub type Outbound = mpsc::Sender<Result<SessionDown, Status>>;

/// A session of a node.
pub(super) struct Session {
    pub(super) engine: Arc<Engine>,
    peer: Arc<Peer>,
    pub(super) who: Principal,
    pub(super) owner: Owner,
    number: u64,
    pub(super) registered: BTreeSet<Key>,
    out: Outbound,
}

/// Serves a session until the node leaves, its membership ends, a later session begins or the server stops.
pub async fn serve(
    engine: Arc<Engine>,
    peer: Arc<Peer>,
    mut messages: impl Stream<Item = Result<SessionUp, Status>> + Send + Unpin,
    out: Outbound,
    stop: watch::Receiver<bool>,
) {
    let (node, nodes) = (peer.node.name().to_owned(), engine.nodes.clone());
    let admitted = engine.members.admit(&peer, unix_s()).map_err(Status::from);
    let greeted = match admitted {
        Ok(who) => greet(&engine, &who, &mut messages).await.map(|number| (who, number)),
        Err(status) => Err(status),
    };
    let ended = match greeted {
        Err(status) => Err(status),
        Ok((who, number)) => {
            tracing::info!(%node, "session began");
            let owner = Owner::node(&node);
            let mut session =
                Session { engine, peer, who, owner, number, registered: BTreeSet::new(), out: out.clone() };
            let ended = session.run(messages, stop).await;
            nodes.session_ends(&node, number);
            tracing::info!(%node, "session ended");
            ended
        }
    };
    if let Err(status) = ended {
        tracing::warn!(%node, %status, "session refused");
        let _ = out.try_send(Err(status));
    }
}

/// Waits for the hello and checks it; the session's number.
async fn greet(
    engine: &Engine,
    who: &Principal,
    messages: &mut (impl Stream<Item = Result<SessionUp, Status>> + Unpin),
) -> Result<u64, Status> {
    let first = tokio::time::timeout(HELLO_TIME, messages.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello in time"))?;
    let hello = match first {
        Some(Ok(SessionUp { message: Some(session_up::Message::Hello(hello)) })) => hello,
        Some(Ok(_)) => return Err(Status::invalid_argument("a session begins with hello")),
        Some(Err(status)) => return Err(status),
        None => return Err(Status::cancelled("the node left before its hello")),
    };
    check_name(who, &hello)?;
    let number = engine
        .nodes
        .session_begins(&who.node, &hello)
        .ok_or_else(|| Status::resource_exhausted("too many nodes are connected"))?;
    engine.node_hello(&who.node);
    Ok(number)
}

fn check_name(who: &Principal, hello: &Hello) -> Result<(), Status> {
    if hello.node == who.node {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "the agent calls itself {:?} but its certificate is of node {:?}: give it --node {} or another join token",
        hello.node, who.node, who.node
    )))
}

impl Session {
    async fn run(
        &mut self,
        mut messages: impl Stream<Item = Result<SessionUp, Status>> + Unpin,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let times = self.engine.times;
        self.send(session_down::Message::Welcome(Welcome {
            heartbeat_seconds: times.heartbeat.as_secs() as u32,
            lease_seconds: times.lease.as_secs() as u32,
        }))
        .await?;
        let mut members = self.engine.members.changes();
        let mut check = tokio::time::interval(CHECK);
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                _ = check.tick() => { self.require()?; continue }
                _ = members.changed() => { self.require()?; continue }
                () = stopped(&mut stop) => return Err(Status::unavailable("the control plane stops")),
            };
            match message {
                None => return Ok(()),
                Some(Err(status)) => {
                    tracing::debug!(node = %self.who.node, %status, "session broke");
                    return Ok(());
                }
                Some(Ok(SessionUp { message })) => {
                    self.require()?;
                    if let Some(message) = message {
                        self.hear(message).await?;
                    }
                }
            }
        }
    }

    /// What the node may do is what its membership says now.
    fn require(&mut self) -> Result<(), Status> {
        let admitted = self.engine.members.admit(&self.peer, unix_s());
        self.who = admitted.map_err(Status::from)?;
        if !self.engine.nodes.is_current(&self.who.node, self.number) {
            return Err(Status::aborted("a later session of this node has begun"));
        }
        Ok(())
    }

    async fn hear(&mut self, message: session_up::Message) -> Result<(), Status> {
        match message {
            session_up::Message::Hello(_) => Err(Status::invalid_argument("hello was said already")),
            session_up::Message::Upsert(upsert) => self.upsert(upsert).await,
            session_up::Message::Remove(remove) => self.remove(remove).await,
            session_up::Message::Heartbeat(_) => self.heartbeat().await,
            session_up::Message::Status(status) => {
                self.engine.nodes.status(&self.who.node, &status);
                Ok(())
            }
            session_up::Message::Health(report) => self.report(report).await,
            session_up::Message::Recovery(event) => {
                self.recovery(event);
                Ok(())
            }
        }
    }

    async fn upsert(&mut self, upsert: WorkloadUpsert) -> Result<(), Status> {
        let request = upsert.request;
        let workload = match admit(&self.who, &upsert) {
            Ok(workload) => workload,
            Err(reason) => return self.refuse(request, reason).await,
        };
        let key = workload.key();
        if self.registered.len() >= WORKLOADS_MAX && !self.registered.contains(&key) {
            let reason = format!("a node may register {WORKLOADS_MAX} workloads; remove some first");
            return self.refuse(request, reason).await;
        }
        let lease = self.engine.node_lease(&self.who.node);
        match self.engine.register(self.owner.clone(), workload, lease).await {
            Ok(written) => {
                let problems = self.engine.problems(&key, written.revision).await;
                self.engine.node_confirms(&self.who.node, &key);
                tracing::info!(node = %self.who.node, workload = %key, revision = written.revision, "registered");
                self.registered.insert(key);
                let conditions = problems.into_iter().map(|condition| condition.message).collect();
                self.send(session_down::Message::Accepted(Accepted { request, conditions })).await
            }
            Err(WriteError::Refused(error)) => self.refuse(request, error.message).await,
            Err(WriteError::Store(error)) => Err(failed(&error)),
        }
    }

    async fn remove(&mut self, remove: WorkloadRemove) -> Result<(), Status> {
        let key = Key::new(Kind::Workload, &remove.namespace, &remove.name);
        self.withdraw(vec![key]).await?;
        let accepted = Accepted { request: remove.request, conditions: Vec::new() };
        self.send(session_down::Message::Accepted(accepted)).await
    }

    async fn heartbeat(&mut self) -> Result<(), Status> {
        match self.engine.node_heartbeat(&self.who.node) {
            Some(gone) if gone.is_empty() => Ok(()),
            Some(gone) => self.withdraw(gone).await,
            None if self.registered.is_empty() => Ok(()),
            None => Err(Status::aborted("the node's lease has ended; begin a session and register again")),
        }
    }

    async fn withdraw(&mut self, keys: Vec<Key>) -> Result<(), Status> {
        tracing::info!(node = %self.who.node, workloads = ?keys, "deregistered");
        for key in &keys {
            self.registered.remove(key);
        }
        let done = self.engine.deregister(self.owner.clone(), keys).await;
        done.map(drop).map_err(|error| failed(&error))
    }

    async fn refuse(&mut self, request: u64, reason: String) -> Result<(), Status> {
        tracing::warn!(node = %self.who.node, reason, "registration refused");
        self.engine.metrics.registrations_refused.inc();
        self.send(session_down::Message::Refused(Refused { request, reason })).await
    }

    async fn send(&self, message: session_down::Message) -> Result<(), Status> {
        let message = SessionDown { message: Some(message) };
        let sent = self.out.send_timeout(Ok(message), SEND_TIME).await;
        sent.map_err(|_| Status::cancelled("the node does not read its answers"))
    }
}

/// The store's fault, not the node's: it comes back and tries again.
pub(super) fn failed(error: &dyn std::error::Error) -> Status {
    tracing::error!(%error, "the store failed");
    Status::unavailable(error.to_string())
}

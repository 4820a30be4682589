//! One agent's configuration stream: requests in, responses out.
//!
//! A task per stream selects over the agent's requests, the hub's wake-up, the gathering pause, its
//! membership's end and the server's stop. All decisions are [`Subscription`]'s and the hub's.
//!
//! Invariant: one response at a time is built and handed over; an agent that does not read for
//! [`SEND_TIME`] loses its stream and comes back with what it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use mesh_api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use prost_types::Any;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::Type;
use super::hub::{Delta, Follower, Hub};
use super::subscription::{Heard, Subscription};
use crate::auth::members::Members;
use crate::ca::peer::Peer;
use crate::clock::unix_s;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::stop::stopped;

/// How long an agent may leave a response unread.
const SEND_TIME: Duration = Duration::from_secs(30);
/// How often the end of the certificate is looked at (revocations are noticed at once).
const CHECK: Duration = Duration::from_secs(5);
/// Most names that an agent may say it has, over all types.
const NAMES_MAX: usize = 1 << 20;

/// What all streams share.
pub struct Shared {
    /// Contents.
    pub hub: Arc<Hub>,
    /// Who is valid.
    pub members: Arc<Members>,
    /// What status shows.
    pub nodes: Arc<Nodes>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Where responses go.
pub type Outbound = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

struct AgentStream {
    node: String,
    shared: Shared,
    follower: Follower,
    subscription: Subscription,
    out: Outbound,
}

/// Serves a stream until the agent leaves, its membership ends or the server stops.
pub async fn serve(
    shared: Shared,
    peer: Arc<Peer>,
    requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Send + Unpin,
    out: Outbound,
    stop: watch::Receiver<bool>,
) {
    let node = peer.node.name().to_owned();
    if !shared.nodes.connected(&node) {
        let _ = out.try_send(Err(Status::resource_exhausted("too many nodes are connected")));
        return;
    }
    tracing::info!(%node, "agent connected");
    let follower = shared.hub.follow();
    let subscription = Subscription::default();
    let mut stream = AgentStream { node, shared, follower, subscription, out };
    if let Err(status) = stream.run(&peer, requests, stop).await {
        let _ = stream.out.try_send(Err(status));
    }
    stream.shared.nodes.disconnected(&stream.node);
    tracing::info!(node = %stream.node, "agent disconnected");
}

impl AgentStream {
    async fn run(
        &mut self,
        peer: &Peer,
        mut requests: impl Stream<Item = Result<DeltaDiscoveryRequest, Status>> + Unpin,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let mut members = self.shared.members.changes();
        let mut check = tokio::time::interval(CHECK);
        let mut gather: Option<Instant> = None;
        loop {
            let pause = gather.unwrap_or_else(Instant::now);
            tokio::select! {
                request = requests.next() => match request {
                    None => return Ok(()),
                    Some(Err(status)) => {
                        tracing::debug!(node = %self.node, %status, "agent stream broke");
                        return Ok(());
                    }
                    Some(Ok(request)) => self.hear(request).await?,
                },
                () = self.follower.woken(), if gather.is_none() => {}
                () = tokio::time::sleep_until(pause.into()), if gather.is_some() => {}
                _ = check.tick() => self.require(peer)?,
                _ = members.changed() => self.require(peer)?,
                () = stopped(&mut stop) => {
                    return Err(Status::unavailable("the control plane stops"));
                }
            }
            gather = self.flush().await?;
        }
    }

    fn require(&self, peer: &Peer) -> Result<(), Status> {
        let admitted = self.shared.members.admit(peer, unix_s());
        admitted.map(drop).map_err(Status::from)
    }

    async fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let Some(kind) = Type::from_type_url(&request.type_url) else {
            let known: Vec<&str> = Type::all().map(Type::type_url).collect();
            let text = format!("type {} is not served; served are {}", request.type_url, known.join(", "));
            return Err(Status::invalid_argument(text));
        };
        if request.initial_resource_versions.len() > NAMES_MAX {
            return Err(Status::resource_exhausted(format!(
                "more than {NAMES_MAX} initial_resource_versions"
            )));
        }
        let error = request.error_detail.map(|detail| detail.message);
        match self.subscription.hear(kind, &request.response_nonce, error) {
            Heard::Subscribed => {
                let (revision, delta) = self.follower.first(kind, &request.initial_resource_versions);
                self.send(kind, revision, delta).await?;
            }
            Heard::Acked(revision) => {
                self.shared.metrics.acks.inc();
                self.shared.nodes.acked(&self.node, kind, revision);
            }
            Heard::Nacked(cause) => {
                tracing::warn!(node = %self.node, kind = kind.name(), %cause, "agent refused configuration");
                self.shared.metrics.nacks.inc();
                self.shared.nodes.nacked(&self.node, kind, cause);
            }
            Heard::Nothing => {}
        }
        Ok(())
    }

    /// Sends what is due; returns until when to gather if something is not due yet.
    async fn flush(&mut self) -> Result<Option<Instant>, Status> {
        if !self.follower.has_any(self.subscription.open()) {
            return Ok(None);
        }
        if let Some(until) = self.subscription.gather_until(Instant::now()) {
            return Ok(Some(until));
        }
        let (revision, deltas) = self.follower.take(self.subscription.open());
        for (kind, delta) in deltas {
            self.send(kind, revision, delta).await?;
        }
        Ok(None)
    }

    async fn send(&mut self, kind: Type, revision: u64, delta: Delta) -> Result<(), Status> {
        self.shared.metrics.pushes.inc();
        self.shared.metrics.pushed_resources.add((delta.changed.len() + delta.removed.len()) as u64);
        self.shared.nodes.sent(&self.node, kind, revision);
        let type_url = kind.type_url();
        let resources = delta.changed.into_iter().map(|(name, entry)| Resource {
            version: entry.version.clone(),
            resource: Some(Any { type_url: type_url.to_owned(), value: entry.body.clone() }),
            name: name.to_string(),
        });
        let response = DeltaDiscoveryResponse {
            system_version_info: self.follower.system_version(revision),
            resources: resources.collect(),
            type_url: type_url.to_owned(),
            nonce: self.subscription.send(kind, revision, Instant::now()),
            removed_resources: delta.removed.iter().map(ToString::to_string).collect(),
        };
        match self.out.send_timeout(Ok(response), SEND_TIME).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Status::cancelled("the agent left")),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                tracing::warn!(node = %self.node, "agent does not read its configuration; its stream is ended");
                Err(Status::resource_exhausted("the agent reads too slowly; reconnect"))
            }
        }
    }
}

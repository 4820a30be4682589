//! One stream of discovery: requests in, responses out.
//!
//! A task per stream selects over the client's requests, the hub's wake-up, pauses, the proof's end and the server's
//! stop. All decisions are mesh-envoy's `Session`'s.
//!
//! Invariant: one response at a time is built and handed over; a client that does not read for [`SEND_TIME`] loses its
//! stream and comes back with what it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use mesh_api::proto::discovery as proto;
use mesh_envoy::codec::{Resource, Type};
use mesh_envoy::session::{Ask, Push, Session, Variant};
use prost_types::Any;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::guest::Guest;
use super::hub::Follower;
use super::proxies::Seat;
use crate::engine::Engine;
use crate::stop::stopped;

/// How long a client may leave a response unread.
const SEND_TIME: Duration = Duration::from_secs(30);
/// How often the proof is looked at.
const CHECK: Duration = Duration::from_secs(5);
/// How long changes are gathered after a response.
const QUIET: Duration = Duration::from_millis(20);

/// The messages of a variant.
pub trait Messages: Send + Sync + 'static {
    /// What clients send.
    type Request: prost::Message + Default + Send + 'static;
    /// What they are sent.
    type Response: prost::Message + Default + Send + 'static;
    /// Which variant it is.
    const VARIANT: Variant;

    /// A request taken apart: type URL, node, the rest.
    fn ask(request: Self::Request) -> (String, Option<proto::Node>, Ask);
    /// A response put together.
    fn response(push: &Push) -> Self::Response;
}

/// State of the world.
pub struct World;
/// Incremental.
pub struct Incremental;

fn any(resource: &Resource) -> Any {
    Any { type_url: resource.of.url().to_owned(), value: resource.body.clone() }
}

impl Messages for World {
    type Request = proto::DiscoveryRequest;
    type Response = proto::DiscoveryResponse;
    const VARIANT: Variant = Variant::World;

    fn ask(request: Self::Request) -> (String, Option<proto::Node>, Ask) {
        let ask = Ask {
            names: request.resource_names,
            version: request.version_info,
            nonce: request.response_nonce,
            error: request.error_detail.map(|detail| detail.message),
            ..Ask::default()
        };
        (request.type_url, request.node, ask)
    }

    fn response(push: &Push) -> Self::Response {
        proto::DiscoveryResponse {
            version_info: push.version.to_string(),
            resources: push.resources.iter().map(|resource| any(resource)).collect(),
            type_url: push.of.url().to_owned(),
            nonce: push.nonce.clone(),
        }
    }
}

impl Messages for Incremental {
    type Request = proto::DeltaDiscoveryRequest;
    type Response = proto::DeltaDiscoveryResponse;
    const VARIANT: Variant = Variant::Delta;

    fn ask(request: Self::Request) -> (String, Option<proto::Node>, Ask) {
        let ask = Ask {
            names: request.resource_names_subscribe,
            not: request.resource_names_unsubscribe,
            has: request.initial_resource_versions,
            version: String::new(),
            nonce: request.response_nonce,
            error: request.error_detail.map(|detail| detail.message),
        };
        (request.type_url, request.node, ask)
    }

    fn response(push: &Push) -> Self::Response {
        let resources = push.resources.iter().map(|resource| proto::Resource {
            version: resource.version.to_string(),
            resource: Some(any(resource)),
            name: resource.name.to_string(),
        });
        proto::DeltaDiscoveryResponse {
            system_version_info: push.version.to_string(),
            resources: resources.collect(),
            type_url: push.of.url().to_owned(),
            nonce: push.nonce.clone(),
            removed_resources: push.removed.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Where responses go.
pub type Outbound<M> = mpsc::Sender<Result<<M as Messages>::Response, Status>>;

struct Served<M: Messages> {
    engine: Arc<Engine>,
    guest: Guest,
    /// The one type of this stream; `None`: all.
    only: Option<Type>,
    session: Session,
    follower: Follower,
    seat: Option<Seat>,
    last: Option<Instant>,
    out: Outbound<M>,
}

/// Serves a stream until the client leaves, its proof ends or the server stops.
pub async fn serve<M: Messages>(
    engine: Arc<Engine>,
    guest: Guest,
    only: Option<Type>,
    requests: impl Stream<Item = Result<M::Request, Status>> + Send + Unpin,
    out: Outbound<M>,
    stop: watch::Receiver<bool>,
) {
    let follower = engine.envoys.follow();
    let session = Session::new(M::VARIANT);
    let (seat, last) = (None, None);
    let mut stream = Served::<M> { engine, guest, only, session, follower, seat, last, out };
    if let Err(status) = stream.run(requests, stop).await {
        tracing::info!(node_type = stream.guest.node_type, %status, "a discovery stream is ended");
        let _ = stream.out.try_send(Err(status));
    }
    if let Some(seat) = &stream.seat {
        stream.engine.envoys.proxies.ends(seat);
    }
}

impl<M: Messages> Served<M> {
    async fn run(
        &mut self,
        mut requests: impl Stream<Item = Result<M::Request, Status>> + Unpin,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let mut check = tokio::time::interval(CHECK);
        // Until when nothing is looked at, and until when something is held back.
        let (mut gather, mut held): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let pause = gather.or(held).unwrap_or_else(Instant::now);
            tokio::select! {
                request = requests.next() => match request {
                    None | Some(Err(_)) => return Ok(()),
                    Some(Ok(request)) => {
                        self.hear(request)?;
                        gather = None;
                    }
                },
                () = self.follower.woken(), if gather.is_none() => {
                    let until = self.last.map(|last| last + QUIET).filter(|until| *until > Instant::now());
                    if until.is_some() {
                        gather = until;
                        continue;
                    }
                    self.look(None);
                }
                () = tokio::time::sleep_until(pause.into()), if gather.is_some() || held.is_some() => {
                    if gather.take().is_some() {
                        self.look(None);
                    }
                }
                _ = check.tick() => self.guest.require(&self.engine)?,
                () = stopped(&mut stop) => return Err(Status::unavailable("the control plane stops")),
            }
            held = self.flush().await?;
        }
    }

    /// Takes in what there is now.
    fn look(&mut self, of: Option<Type>) {
        let Self { engine, guest, session, follower, .. } = self;
        engine.read(|registry| follower.look(registry, &guest.node_type, session, of));
    }

    fn hear(&mut self, request: M::Request) -> Result<(), Status> {
        let (url, node, ask) = M::ask(request);
        let of = match (Type::from_url(&url), self.only) {
            (Some(of), None) => of,
            (Some(of), Some(only)) if of == only => of,
            (None, Some(only)) if url.is_empty() => only,
            _ => {
                let served =
                    self.only.map_or_else(|| Type::ALL.map(Type::url).join(", "), |of| of.url().to_owned());
                return Err(Status::invalid_argument(format!(
                    "type {url} is not served here; served: {served}"
                )));
            }
        };
        if self.seat.is_none() {
            self.seat = Some(self.sit(node)?);
        }
        let heard = self.session.hear(of, ask);
        if heard.too_many {
            return Err(Status::resource_exhausted(format!(
                "more than {} names of {}",
                mesh_envoy::session::NAMES_MAX,
                of.plural()
            )));
        }
        let (proxies, metrics) = (&self.engine.envoys.proxies, &self.engine.metrics);
        if let (Some(answer), Some(seat)) = (heard.answer, &self.seat) {
            match &answer {
                Ok(()) => metrics.envoy_acks.inc(),
                Err(cause) => {
                    metrics.envoy_nacks.inc();
                    tracing::warn!(?seat, of = of.plural(), cause, "an Envoy refused what it was sent");
                }
            }
            proxies.answered(seat, of, answer);
        }
        if heard.wants {
            self.look(Some(of));
        }
        Ok(())
    }

    /// The first request says who is there.
    fn sit(&self, node: Option<proto::Node>) -> Result<Seat, Status> {
        let node = node.unwrap_or_default();
        self.guest.is(&node.id)?;
        let client = format!("{} {}", node.user_agent_name, node.user_agent_version);
        let seat =
            self.engine.envoys.proxies.begins(&node.id, &self.guest.node_type, client.trim(), M::VARIANT);
        seat.ok_or_else(|| Status::resource_exhausted("too many Envoys are connected"))
    }

    /// Sends what may go; returns until when something is held back.
    async fn flush(&mut self) -> Result<Option<Instant>, Status> {
        while let Some(push) = self.session.next(Instant::now()) {
            self.send(&push).await?;
        }
        if let Some(seat) = &self.seat {
            for (of, version) in self.session.resumed() {
                self.engine.envoys.proxies.has(seat, of, &version);
            }
        }
        Ok(self.session.wait(Instant::now()))
    }

    async fn send(&mut self, push: &Push) -> Result<(), Status> {
        let metrics = &self.engine.metrics;
        metrics.envoy_pushes.inc();
        metrics.envoy_pushed_resources.add((push.resources.len() + push.removed.len()) as u64);
        if let Some(seat) = &self.seat {
            self.engine.envoys.proxies.sent(seat, push.of, &push.version, push.resources.len());
        }
        self.last = Some(Instant::now());
        match self.out.send_timeout(Ok(M::response(push)), SEND_TIME).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Status::cancelled("the client left")),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err(Status::resource_exhausted("the client reads too slowly; reconnect"))
            }
        }
    }
}

//! The port for agents, :15012: delta xDS and `Node.Session` over mutual TLS; and certificates (`Identity`), for which
//! a join token opens the door.
//!
//! Invariant: a call without the certificate of a member sees nothing but `Identity.Join`; who calls is known from
//! the certificate, never from what the call says.
//!
//! Not here: what configuration is sent (`xds`), what a session does ([`session`]).

mod health;
mod identity;
mod session;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::proto::v1::identity_server::IdentityServer;
use mesh_api::proto::v1::node_server::{Node, NodeServer};
use mesh_api::proto::v1::{SessionDown, SessionUp};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::ca::peer::Peer;
use crate::clock::unix_s;
use crate::engine::Engine;
use crate::stop::stopped;
use crate::tls::{Connection, Origin};
use crate::xds::stream;

/// Responses that wait between a stream's task and its connection.
const OUTBOUND: usize = 4;
/// HTTP/2 pings find agents that vanished.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME: Duration = Duration::from_secs(10);
/// Calls at once on one connection: an agent makes two.
const STREAMS: u32 = 16;
/// Largest message from an agent: its first request names all that it has.
const MESSAGE_MAX: usize = 64 << 20;

struct Agents {
    engine: Arc<Engine>,
    office: identity::Office,
    stop: watch::Receiver<bool>,
}

/// Serves connections until the channel ends or `stop` turns true.
pub async fn serve(
    engine: Arc<Engine>,
    office: identity::Office,
    connections: mpsc::Receiver<Connection>,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let guard = {
        let engine = engine.clone();
        move |request: Request<()>| authenticate(&engine, request)
    };
    let agents = Arc::new(Agents { engine, office, stop: stop.clone() });
    let discovery =
        AggregatedDiscoveryServiceServer::from_arc(agents.clone()).max_decoding_message_size(MESSAGE_MAX);
    let identity = IdentityServer::from_arc(agents.clone());
    let node = NodeServer::from_arc(agents);
    let mut stop = stop;
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIME))
        .max_concurrent_streams(STREAMS)
        .add_service(tonic::service::interceptor::InterceptedService::new(discovery, guard.clone()))
        .add_service(tonic::service::interceptor::InterceptedService::new(node, guard))
        .add_service(identity)
        .serve_with_incoming_shutdown(
            ReceiverStream::new(connections).map(Ok::<_, std::io::Error>),
            async move {
                stopped(&mut stop).await;
            },
        )
        .await
}

/// Lets members through.
fn authenticate(engine: &Engine, request: Request<()>) -> Result<Request<()>, Status> {
    let peer = peer_of(&request)?;
    match engine.members.admit(&peer, unix_s()) {
        Ok(_) => Ok(request),
        Err(no) => Err(no.into()),
    }
}

/// The node whose certificate was shown.
fn peer_of<T>(request: &Request<T>) -> Result<Arc<Peer>, Status> {
    let peer = request.extensions().get::<Origin>().and_then(|origin| origin.peer.clone());
    peer.ok_or_else(|| {
        Status::unauthenticated(
            "no certificate of a node: join first, with a token of `meshctl token create --node NAME --allow NS/SA`",
        )
    })
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Agents {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = peer_of(&request)?;
        let engine = &self.engine;
        let shared = stream::Shared {
            hub: engine.hub.clone(),
            members: engine.members.clone(),
            nodes: engine.nodes.clone(),
            metrics: engine.metrics.clone(),
        };
        let (out, responses) = mpsc::channel(OUTBOUND);
        let (requests, stop) = (request.into_inner(), self.stop.clone());
        tokio::spawn(stream::serve(shared, peer, requests, out, stop));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

#[tonic::async_trait]
impl Node for Agents {
    type SessionStream = ReceiverStream<Result<SessionDown, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionUp>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = peer_of(&request)?;
        let (out, answers) = mpsc::channel(OUTBOUND);
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        tokio::spawn(session::serve(engine, peer, request.into_inner(), out, stop));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

//! The port for agents, :15012: delta xDS and `Node.Session` over TLS, with a join token on every call.
//!
//! Invariant: a call without a valid token of role `node` sees nothing; who calls is known from the token,
//! never from what the call says.
//!
//! Not here: what configuration is sent (`xds`), what a session does ([`session`]).

mod session;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::proto::v1::node_server::{Node, NodeServer};
use mesh_api::proto::v1::{SessionDown, SessionUp};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::{Principal, Role};
use crate::clock::unix_ms;
use crate::engine::Engine;
use crate::stop::stopped;
use crate::tls::Connection;
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
    stop: watch::Receiver<bool>,
}

/// Serves connections until the channel ends or `stop` turns true.
pub async fn serve(
    engine: Arc<Engine>,
    connections: mpsc::Receiver<Connection>,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let guard = {
        let engine = engine.clone();
        move |request: Request<()>| authenticate(&engine, request)
    };
    let agents = Arc::new(Agents { engine, stop: stop.clone() });
    let discovery =
        AggregatedDiscoveryServiceServer::from_arc(agents.clone()).max_decoding_message_size(MESSAGE_MAX);
    let node = NodeServer::from_arc(agents);
    let mut stop = stop;
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIME))
        .max_concurrent_streams(STREAMS)
        .add_service(tonic::service::interceptor::InterceptedService::new(discovery, guard.clone()))
        .add_service(tonic::service::interceptor::InterceptedService::new(node, guard))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(connections).map(Ok::<_, std::io::Error>),
            async move {
                stopped(&mut stop).await;
            },
        )
        .await
}

fn authenticate(engine: &Engine, mut request: Request<()>) -> Result<Request<()>, Status> {
    let bearer = request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let principal = bearer.and_then(|text| engine.tokens.authenticate(text.trim(), unix_ms()));
    match principal {
        Some(principal) if principal.role == Role::Node => {
            request.extensions_mut().insert(principal);
            Ok(request)
        }
        Some(principal) => Err(Status::permission_denied(format!(
            "a token of role {} is not a join token; make one with `meshctl token create --node NAME --allow NS/SA`",
            principal.role.name()
        ))),
        None => Err(Status::unauthenticated(
            "no valid join token; make one with `meshctl token create --node NAME --allow NS/SA`",
        )),
    }
}

fn caller<T>(request: &Request<T>) -> Result<Principal, Status> {
    request.extensions().get::<Principal>().cloned().ok_or_else(|| Status::unauthenticated("no join token"))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Agents {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let who = caller(&request)?;
        let engine = &self.engine;
        let shared = stream::Shared {
            hub: engine.hub.clone(),
            tokens: engine.tokens.clone(),
            nodes: engine.nodes.clone(),
            metrics: engine.metrics.clone(),
        };
        let (out, responses) = mpsc::channel(OUTBOUND);
        let (requests, stop) = (request.into_inner(), self.stop.clone());
        tokio::spawn(stream::serve(shared, who.node, who.token, requests, out, stop));
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
        let who = caller(&request)?;
        let (out, answers) = mpsc::channel(OUTBOUND);
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        tokio::spawn(session::serve(engine, who, request.into_inner(), out, stop));
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

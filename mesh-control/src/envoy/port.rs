//! The port for Envoys, :15010: TLS, gRPC, and which call is which.
//!
//! Every method of every discovery service streams the same messages both ways, so paths are looked up in a table
//! ([`call`]) and not generated one by one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::response::{IntoResponse, Response as HttpResponse};
use mesh_envoy::codec::Type;
use mesh_envoy::session::Variant;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::{Grpc, StreamingService};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::guest::Guest;
use super::stream::{self, Incremental, Messages, World};
use crate::engine::Engine;
use crate::stop::stopped;
use crate::tls::{Connection, Origin};

/// Responses that wait between a stream's task and its connection.
const OUTBOUND: usize = 4;
/// HTTP/2 pings find clients that vanished.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIME: Duration = Duration::from_secs(10);
/// Streams at once on one connection: a client makes one, or one a type.
const STREAMS: u32 = 16;
/// Largest message from a client: its first request names all that it has.
const MESSAGE_MAX: usize = 16 << 20;

#[derive(Clone)]
struct Site {
    engine: Arc<Engine>,
    stop: watch::Receiver<bool>,
}

/// Serves connections until the channel ends or `stop` turns true.
pub async fn serve(
    engine: Arc<Engine>,
    connections: mpsc::Receiver<Connection>,
    stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let site = Site { engine, stop: stop.clone() };
    let router = Router::new().fallback(move |request: HttpRequest| answer(site.clone(), request));
    let mut stop = stop;
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIME))
        .max_concurrent_streams(STREAMS)
        .add_routes(router.into())
        .serve_with_incoming_shutdown(
            ReceiverStream::new(connections).map(Ok::<_, std::io::Error>),
            async move {
                stopped(&mut stop).await;
            },
        )
        .await
}

/// The type of a method's resources (`None`: all) and its variant.
fn call(path: &str) -> Option<(Option<Type>, Variant)> {
    let (service, method) = path.strip_prefix("/envoy.service.")?.split_once('/')?;
    let (of, what) = match service {
        "discovery.v3.AggregatedDiscoveryService" => (None, "AggregatedResources"),
        "cluster.v3.ClusterDiscoveryService" => (Some(Type::Cluster), "Clusters"),
        "endpoint.v3.EndpointDiscoveryService" => (Some(Type::Endpoints), "Endpoints"),
        "listener.v3.ListenerDiscoveryService" => (Some(Type::Listener), "Listeners"),
        "route.v3.RouteDiscoveryService" => (Some(Type::Route), "Routes"),
        "secret.v3.SecretDiscoveryService" => (Some(Type::Secret), "Secrets"),
        _ => return None,
    };
    match method.strip_suffix(what)? {
        "Stream" => Some((of, Variant::World)),
        "Delta" => Some((of, Variant::Delta)),
        _ => None,
    }
}

async fn answer(site: Site, request: HttpRequest) -> HttpResponse {
    let Some((only, variant)) = call(request.uri().path()) else {
        let text =
            format!("{} is not served; served are the streams of Envoy's xDS v3", request.uri().path());
        return Status::unimplemented(text).into_http::<axum::body::Body>().into_response();
    };
    match variant {
        Variant::World => streams::<World>(site, only, request).await,
        Variant::Delta => streams::<Incremental>(site, only, request).await,
    }
}

async fn streams<M: Messages>(site: Site, only: Option<Type>, request: HttpRequest) -> HttpResponse {
    let codec = ProstCodec::<M::Response, M::Request>::default();
    let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MESSAGE_MAX), None);
    let service = Call::<M> { site, only, messages: std::marker::PhantomData };
    grpc.streaming(service, request).await.into_response()
}

struct Call<M> {
    site: Site,
    only: Option<Type>,
    messages: std::marker::PhantomData<M>,
}

type Answers<R> = ReceiverStream<Result<R, Status>>;

impl<M: Messages> StreamingService<M::Request> for Call<M> {
    type Response = M::Response;
    type ResponseStream = Answers<M::Response>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<M::Request>>) -> Self::Future {
        let (site, only) = (self.site.clone(), self.only);
        Box::pin(async move {
            let origin = request.extensions().get::<Origin>();
            let guest = Guest::of(&site.engine, origin, request.metadata())?;
            let (out, answers) = mpsc::channel(OUTBOUND);
            let requests = request.into_inner();
            tokio::spawn(stream::serve::<M>(site.engine, guest, only, requests, out, site.stop));
            Ok(Response::new(ReceiverStream::new(answers)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_both_methods() {
        for (path, is) in [
            (
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
                Some((None, Variant::World)),
            ),
            (
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                Some((None, Variant::Delta)),
            ),
            (
                "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
                Some((Some(Type::Cluster), Variant::World)),
            ),
            (
                "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
                Some((Some(Type::Endpoints), Variant::Delta)),
            ),
            (
                "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
                Some((Some(Type::Secret), Variant::World)),
            ),
            ("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", None),
            ("/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime", None),
            ("/", None),
        ] {
            assert_eq!(call(path), is, "{path}");
        }
    }
}

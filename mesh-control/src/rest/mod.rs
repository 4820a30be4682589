//! The REST API on :15080.
//!
//! Every request passes [`guard`] (who is asking; the audit log). A handler's arguments say what it needs: [`caller`]
//! the right, [`body`] the text, [`extract`] parts of path and query. Every refusal has one shape ([`error`]).
//! [`openapi`] describes all of it: what is served without being described fails a test.
//!
//! Invariants: nothing but `/healthz`, `/readyz` and `/openapi.json` answers without a token; a connection that sends nothing
//! ends after [`HEAD_TIME`]; a stop lets requests under way finish for at most [`DRAIN_TIME`].

mod authority;
mod authz;
mod body;
mod caller;
mod discover;
mod envoy;
mod error;
mod extract;
mod guard;
mod health;
mod keep;
mod lists;
mod objects;
mod openapi;
mod slots;
mod tokens;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRef, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_api::error::{ApiError, Reason};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinSet;
use tonic::transport::server::Connected;

use crate::audit::Audit;
use crate::auth::attempts::Attempts;
use crate::ca::office::Office;
use crate::clock::unix_s;
use crate::engine::Engine;
use crate::metrics::Gauges;
use crate::stop::stopped;
use crate::store::Timings;
use crate::tls::Connection;
use caller::Reader;
use error::Refused;
use guard::Client;
use mesh_api::resource::Kind;
use slots::Slots;

/// How long a client may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 64 << 10;
/// How long a stop waits for requests under way.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What handlers share.
pub struct Site {
    /// State of the mesh.
    pub engine: Arc<Engine>,
    /// The authority.
    pub office: Arc<Office>,
    /// How long commits took, for metrics.
    pub timings: Box<dyn Fn() -> Timings + Send + Sync>,
    /// Where writes and refusals are noted.
    pub audit: Audit,
    /// Addresses that came with wrong tokens.
    pub attempts: Mutex<Attempts>,
    /// Places of answers that wait.
    pub slots: Arc<Slots>,
    /// Turns true when the server stops.
    pub stop: watch_channel::Receiver<bool>,
}

#[derive(Clone)]
struct App(Arc<Site>);

impl FromRef<App> for Arc<Site> {
    fn from_ref(app: &App) -> Self {
        app.0.clone()
    }
}

impl FromRef<App> for Arc<Engine> {
    fn from_ref(app: &App) -> Self {
        app.0.engine.clone()
    }
}

/// Everything that is served, with the paths noted.
struct Api {
    router: Router<App>,
    paths: Vec<&'static str>,
}

impl Api {
    fn route(mut self, path: &'static str, methods: MethodRouter<App>) -> Self {
        self.paths.push(path);
        self.router = self.router.route(path, methods);
        self
    }
}

fn api() -> Api {
    envoy::routes(Api { router: Router::new(), paths: Vec::new() })
        .route("/openapi.json", get(openapi::page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/apply", post(objects::apply))
        .route("/v1/authz/check", get(authz::check))
        .route("/v1/health/{namespace}/{service}", get(health::get))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", axum::routing::delete(tokens::revoke))
        .route("/v1/ca", get(authority::status))
        .route("/v1/ca/issued", get(authority::issued))
        .route("/v1/ca/rotate", post(authority::rotate))
        .route("/v1/ca/revoke", post(authority::revoke))
        .route("/v1/nodes", get(authority::nodes))
        .route("/v1/nodes/{node}/revoke", post(authority::revoke_node))
        .route("/v1/audit", get(keep::audit))
        .route("/v1/backup", get(keep::backup))
        .route("/v1/restore", post(keep::restore))
        .route("/v1/discover/{namespace}/{service}", get(discover::discover))
        .route("/v1/mesh", get(lists::mesh).put(objects::put_mesh))
        .route("/v1/mesh/history", get(objects::history_of_mesh))
        .route("/v1/mesh/rollback", post(objects::roll_mesh_back))
        .route("/v1/{plural}", get(lists::all))
        .route("/v1/{plural}/{namespace}", get(lists::of_namespace))
        .route("/v1/{plural}/{namespace}/{name}", put(objects::put).get(lists::one).delete(objects::delete))
        .route("/v1/{plural}/{namespace}/{name}/heartbeat", post(objects::heartbeat))
        .route("/v1/{plural}/{namespace}/{name}/history", get(objects::history))
        .route("/v1/{plural}/{namespace}/{name}/rollback", post(objects::roll_back))
}

fn router(site: Arc<Site>) -> Router {
    let app = App(site);
    api()
        .router
        .fallback(async |request: Request| Refused::not_found(request.uri().path()))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .layer(from_fn_with_state(app.clone(), counted))
        .with_state(app)
}

async fn counted(State(engine): State<Arc<Engine>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let metrics = &engine.metrics;
    let counter = match response.status().as_u16() {
        ..400 => &metrics.requests_ok,
        400..500 => &metrics.requests_refused,
        500.. => &metrics.requests_failed,
    };
    counter.inc();
    response
}

async fn method_not_allowed(request: Request) -> Refused {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let error = ApiError::new(Reason::NotFound, "", method.into(), "another method");
    Refused::from(error.saying(format!("{path} does not take {method}")))
        .with_status(StatusCode::METHOD_NOT_ALLOWED)
}

async fn readyz(State(engine): State<Arc<Engine>>) -> Response {
    if engine.ready() {
        match engine.store().trouble() {
            None => "ready\n".into_response(),
            // Agents are served all the same: who routes by this page must not take them away.
            Some(cause) => format!("ready, but takes no writes: {cause}\n").into_response(),
        }
    } else {
        Refused::unavailable("the store is still being read").into_response()
    }
}

async fn status(_: Reader, State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(engine.status())
}

async fn metrics(_: Reader, State(site): State<Arc<Site>>) -> Response {
    let (engine, timings) = (&site.engine, (site.timings)());
    let gauges = Gauges {
        fsync: [0.5, 0.9, 0.99].map(|share| (share, timings.quantile(share))),
        fsync_total: timings.total,
        commits: timings.commits,
        connected_nodes: engine.nodes.connected_count(),
        connected_envoys: engine.envoys.proxies.connected(),
        revision: engine.hub.revision(),
        authority_ends: site.office.authority.live().ends(unix_s()),
        certificates: site.office.certificates(unix_s()),
        jwks: jwks(engine, unix_s()),
        resources: Kind::ALL.map(Kind::name).into_iter().zip(engine.hub.counts()).collect(),
    };
    let mut page = engine.metrics.render(&gauges) + &engine.hooks.page();
    page.push_str(&engine.replicas.metrics(Instant::now(), engine.store().trouble().is_none()));
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

fn jwks(engine: &Engine, now: u64) -> Vec<(String, usize, Option<u64>)> {
    let age = |good: u64| (good > 0).then(|| now.saturating_sub(good));
    engine.jwks.all().into_iter().map(|(provider, state)| (provider, state.keys, age(state.good))).collect()
}

/// Serves connections until the channel ends, then lets requests under way finish.
pub async fn serve(
    site: Arc<Site>,
    mut connections: mpsc::Receiver<Connection>,
    stop: watch_channel::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router(site));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            connection = connections.recv() => {
                let Some(connection) = connection else { break };
                tasks.spawn(converse(connection, service.clone(), stop.clone()));
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("requests under way were cut off");
    }
}

async fn converse(
    connection: Connection,
    service: TowerToHyperService<Router>,
    mut stop: watch_channel::Receiver<bool>,
) {
    let address = connection.connect_info().tcp.remote_addr().map(|address| address.ip());
    let service = service_fn(move |mut request: axum::http::Request<Incoming>| {
        if let Some(address) = address {
            request.extensions_mut().insert(Client(address));
        }
        service.call(request)
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(connection), service);
    let mut conversation = std::pin::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        () = stopped(&mut stop) => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a REST connection broke");
    }
}

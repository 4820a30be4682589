//! `/metrics`, `/healthz` and `/readyz` on :15090.
//!
//! Ready: there is something to serve (a first sync, or a snapshot from disk), and the agent is not ending.
//! Before the kernel is loaded and the listeners of earlier workloads are up, nobody answers at all.
//!
//! Invariant: connections are bounded, and each has a deadline for its head.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Telemetry;
use crate::config::Handle as Config;

const CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(10);
/// A connection lives at most so long: scrapers come back.
const LIFE: Duration = Duration::from_mins(10);

/// Is the agent ready? Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    config: Config,
    ending: Arc<AtomicBool>,
}

impl Readiness {
    pub(super) fn new(config: Config) -> Self {
        Self { config, ending: Arc::default() }
    }

    /// The agent is ending: not ready from now on.
    pub fn end(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Why it is not ready.
    pub fn missing(&self) -> Option<&'static str> {
        if self.ending.load(Relaxed) {
            Some("the agent is ending")
        } else if !self.config.served() {
            Some("there is no snapshot: nothing on disk, and the control plane has not answered yet")
        } else {
            None
        }
    }
}

/// Serves until the process ends.
pub(super) async fn serve(listener: TcpListener, telemetry: Telemetry, readiness: Readiness) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (telemetry, readiness) = (telemetry.clone(), readiness.clone());
                tokio::spawn(async move {
                    connection(stream, telemetry, readiness).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, telemetry: Telemetry, readiness: Readiness) {
    let service = service_fn(move |request| {
        let (telemetry, readiness) = (telemetry.clone(), readiness.clone());
        async move { Ok::<_, Infallible>(respond(&request, telemetry, &readiness).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(LIFE, served).await {
        tracing::debug!(%error, "metrics: a connection ended");
    }
}

async fn respond(
    request: &Request<Incoming>,
    telemetry: Telemetry,
    readiness: &Readiness,
) -> Response<String> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".into());
    }
    match request.uri().path() {
        "/metrics" => {
            let endpoints = request.uri().query().is_some_and(|query| query.starts_with("endpoints"));
            let scraped = tokio::task::spawn_blocking(move || telemetry.scrape(endpoints)).await;
            match scraped {
                Ok(Ok(text)) => plain(StatusCode::OK, text),
                Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        "/healthz" => plain(StatusCode::OK, "ok\n".into()),
        "/readyz" => match readiness.missing() {
            None => plain(StatusCode::OK, "ready\n".into()),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        _ => plain(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz\n".into()),
    }
}

fn plain(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    // The text format of Prometheus is also good plain text.
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

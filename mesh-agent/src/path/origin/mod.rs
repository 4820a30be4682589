//! TLS with endpoints outside of the mesh, on behalf of workloads that speak plainly: they call a port of an
//! `ExternalService` with `tls: {mode: originate}`.
//!
//! transport ──Target──▶ **origin**: TCP from the workload's namespace, handshake ──[`Originated`]──▶ http1, tcp
//!
//! Invariants: no byte of the workload's is sent before the other end has proved to be who is expected; whatever goes
//! wrong is a refusal, never plaintext; opening takes no longer than [`Limits`](super::Limits) say for TCP, and as
//! long as for a tunnel for TLS. [`roots`]: whom to believe. [`stream`]: bytes.
//! Not here: what a certificate must be (mesh-identity's outside).

mod roots;
mod stream;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;

use mesh_core::error::ProxyError;
use mesh_core::outside::Origination;
use mesh_core::snapshot::Snapshot;
use mesh_identity::outside::{self, Expected};
use rustls::{CertificateError, ClientConfig, ClientConnection, Error, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::clock::{Call, Watch};
use super::hbone;
use super::member::Member;
use super::stats::{Counters, one};
use super::transport::{Stream, Target, Transport as _};
use super::worker::Worker;
use crate::authorise::Quota;
use roots::Roots;
pub use stream::Originated;

/// Handshakes that failed and are logged.
static LOGGED: Quota = Quota::new();

/// What a worker keeps of each service that it has spoken TLS with.
#[derive(Default)]
pub struct Origins {
    held: RefCell<HashMap<u32, Held>>,
}

struct Held {
    number: u32,
    roots: Roots,
    /// Of a service to which nobody shows who he is: the same for all.
    config: Option<Arc<ClientConfig>>,
}

/// Why there is no connection.
enum Failed {
    /// The handshake.
    Handshake(io::Error),
    /// Before it, and why.
    Before(String),
    /// What others have named.
    Named(ProxyError),
    Late,
}

/// Opens a connection to an endpoint outside of the mesh.
pub async fn open(
    worker: &Rc<Worker>,
    target: &Target,
    origination: &Origination,
    watch: &Watch,
) -> Result<Stream, ProxyError> {
    let stream = worker.transport.open(target, watch).await?;
    let tcp = stream.into_tcp().ok_or(ProxyError::Internal)?;
    worker.clock.arm(watch, worker.limits.tunnel);
    let mut shake = pin!(shake(worker, target, origination, tcp));
    let done = std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = shake.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        watch.poll_call(cx).map(|call| {
            Err(match call {
                Call::Late => Failed::Late,
                Call::Cut => Failed::Named(ProxyError::Draining),
            })
        })
    })
    .await;
    watch.disarm();
    match done {
        Ok((tcp, tls)) => {
            one(&worker.shared.counters.origin_ok);
            Ok(Stream::originated(Originated::new(tcp, tls)))
        }
        Err(failed) => Err(refused(worker, target, &failed)),
    }
}

async fn shake(
    worker: &Rc<Worker>,
    target: &Target,
    origination: &Origination,
    tcp: TcpStream,
) -> Result<(TcpStream, ClientConnection), Failed> {
    let config = worker.origins.config(worker, &target.source, target.service, origination).await?;
    let asked = if origination.sni.is_empty() { origination.names.first() } else { Some(&origination.sni) };
    let name = asked.and_then(|name| name_of(name)).ok_or_else(|| Failed::Before("no name".to_owned()))?;
    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(Failed::Handshake)?;
    Ok(tls.into_inner())
}

fn name_of(text: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(text.to_owned()).ok()
}

impl Origins {
    /// How TLS is spoken with a service, for a workload.
    async fn config(
        &self,
        worker: &Rc<Worker>,
        member: &Member,
        service: u32,
        origination: &Origination,
    ) -> Result<Arc<ClientConfig>, Failed> {
        let current = |held: &Held| held.number == origination.number && held.roots.fresh();
        let kept = {
            let held = self.held.borrow();
            held.get(&service).filter(|held| current(held)).map(|h| (h.roots.store(), h.config.clone()))
        };
        let (store, config) = match kept {
            Some(kept) => kept,
            None => (self.learn(service, origination).await?, None),
        };
        if let Some(config) = config {
            return Ok(config);
        }
        let svid = if origination.client_certificate {
            Some(hbone::shown(worker, member).await.map_err(Failed::Named)?.svid)
        } else {
            None
        };
        let expected = Expected {
            roots: store,
            names: origination.names.iter().filter_map(|name| name_of(name)).collect(),
            alpn: origination.alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
            sni: !origination.sni.is_empty(),
        };
        let config = outside::client(expected, svid.as_deref());
        let config = Arc::new(config.map_err(|error| Failed::Before(error.to_string()))?);
        if svid.is_none()
            && let Some(held) = self.held.borrow_mut().get_mut(&service)
            && held.number == origination.number
        {
            held.config = Some(config.clone());
        }
        Ok(config)
    }

    /// Reads whom to believe. What was read before counts on where the node's files can't be read any more.
    async fn learn(&self, service: u32, origination: &Origination) -> Result<Arc<RootCertStore>, Failed> {
        let read = Roots::read(&origination.believed).await;
        let mut all = self.held.borrow_mut();
        let before = all.remove(&service).filter(|held| held.number == origination.number);
        let roots = match (read, before) {
            (Ok(roots), _) => roots,
            (Err(error), Some(before)) => {
                tracing::warn!(error, "whom to believe of an external service cannot be read: as before");
                before.roots.again()
            }
            (Err(error), None) => return Err(Failed::Before(error)),
        };
        let store = roots.store();
        all.insert(service, Held { number: origination.number, roots, config: None });
        Ok(store)
    }

    /// Forgets services that are gone.
    pub fn retain(&self, snapshot: &Snapshot) {
        self.held.borrow_mut().retain(|service, _| snapshot.originations.contains_key(service));
    }
}

/// Counts and logs a failure; as what it is answered.
fn refused(worker: &Worker, target: &Target, failed: &Failed) -> ProxyError {
    let counters = &worker.shared.counters;
    let (counter, error, cause) = match failed {
        Failed::Named(error) => return *error,
        Failed::Late => {
            (&counters.origin_timeout, ProxyError::TlsOriginationFailed, "it took too long".to_owned())
        }
        Failed::Before(why) => (&counters.origin_failed, ProxyError::TlsOriginationFailed, why.clone()),
        Failed::Handshake(io) => {
            let tls = io.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
            let (counter, error) = judge(counters, tls);
            (counter, error, io.to_string())
        }
    };
    one(counter);
    if LOGGED.take() {
        let (source, service) = worker.with_snapshot(|snapshot| {
            let source = snapshot.workloads.get(&target.source.workload).map(|w| w.full_name.clone());
            let service = snapshot.services.get(&target.service);
            (source.unwrap_or_default(), service.map(|s| format!("{}/{}:{}", s.namespace, s.name, s.port)))
        });
        let service = service.unwrap_or_default();
        tracing::warn!(
            %source, service, address = %target.address, reason = error.reason(), cause,
            "no TLS with an external service"
        );
    }
    error
}

/// What a handshake failed of.
fn judge<'a>(counters: &'a Counters, error: Option<&Error>) -> (&'a AtomicU64, ProxyError) {
    use CertificateError as Wrong;
    let counter = match error {
        Some(Error::InvalidCertificate(wrong)) => match wrong {
            Wrong::UnknownIssuer => &counters.origin_unknown_ca,
            Wrong::Expired
            | Wrong::ExpiredContext { .. }
            | Wrong::NotValidYet
            | Wrong::NotValidYetContext { .. } => &counters.origin_expired,
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => &counters.origin_wrong_name,
            _ => &counters.origin_bad_certificate,
        },
        Some(Error::NoCertificatesPresented) => &counters.origin_bad_certificate,
        _ => return (&counters.origin_failed, ProxyError::TlsOriginationFailed),
    };
    (counter, ProxyError::TlsPeerUntrusted)
}

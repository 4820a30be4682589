//! The connection to the control plane: mutual TLS with the node's certificate, HTTP/2 with keep-alive.
//!
//! membership (identity) ──▶ **connect** ──Channel──▶ { xds, session, identity }
//!
//! Invariant: no certificate of the machine's own store is trusted; the roots are those of the mesh's bundle, and the
//! certificate in the presented chain whose SHA-256 equals the join token's; the chain is verified against them,
//! server name and validity included. Not here: joining (identity), when to connect again (xds, session), to which replica
//! (replicas).

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::replicas::{Replica, Replicas};
use crate::identity::Credentials;
use crate::identity::make::MakeError;
use crate::identity::member::Member;

/// How long TCP and TLS together may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long each may take where there are other replicas.
const CONNECT_ONE: Duration = Duration::from_secs(1);
/// A dead peer is noticed after the sum of these.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WAIT: Duration = Duration::from_secs(5);
/// Both, where there are other replicas to go to.
const PING_OFTEN: Duration = Duration::from_millis(800);

/// What a node joins with: `nm1.<id>.<secret>.<sha256 of the CA's DER, hex>`.
#[derive(Clone)]
pub struct JoinToken {
    text: String,
    pin: [u8; 32],
}

// The secret must not reach a log.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id())
    }
}

/// A join token or control plane address that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file cannot be read.
    #[error("cannot read the join token {path}: {source}; make one with `meshctl token create --node NAME`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The text is not a join token.
    #[error(
        "the join token is not of the form nm1.<id>.<secret>.<64 hex digits>: {0}; make one with `meshctl token create --node NAME`"
    )]
    Token(&'static str),
    /// The control plane's address is not usable.
    #[error("--control {0:?} is not of the form https://HOST:PORT[@ZONE], several with commas between them")]
    Address(String),
    /// The node is no member, and cannot become one.
    #[error("this node cannot join: {0}")]
    Join(String),
    /// The certificate that came is not usable.
    #[error(transparent)]
    Certificate(#[from] MakeError),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] TlsError),
    /// No connection.
    #[error("cannot reach the control plane at {at}: {cause}")]
    Unreachable {
        /// Host and port.
        at: String,
        /// Why.
        cause: String,
    },
}

impl JoinToken {
    /// Parses a token's text.
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let text = text.trim();
        let mut parts = text.split('.');
        if parts.next() != Some("nm1") {
            return Err(ConnectError::Token("it does not begin with nm1."));
        }
        let (Some(id), Some(secret), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ConnectError::Token("it does not have four parts"));
        };
        if id.is_empty() || secret.is_empty() {
            return Err(ConnectError::Token("its id or its secret is empty"));
        }
        if !text.is_ascii() || text.bytes().any(|b| b.is_ascii_control()) {
            return Err(ConnectError::Token("it holds characters that are not printable ASCII"));
        }
        let pin = unhex(hash).ok_or(ConnectError::Token("its last part is not 64 hex digits"))?;
        Ok(Self { text: text.to_owned(), pin })
    }

    /// Reads and parses a token file.
    pub fn read(path: &Path) -> Result<Self, ConnectError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConnectError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// As it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its public name.
    pub fn id(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or_default()
    }

    /// SHA-256 of the root that it names.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// Trusts the roots of the mesh, and the certificate with the pinned hash, which the server shows in its chain.
#[derive(Debug)]
struct Pinned {
    credentials: Arc<Credentials>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let (pin, believed) = self.credentials.believed();
        let is_pinned = |cert: &&CertificateDer<'_>| {
            pin.is_some_and(|pin| Sha256::digest(cert.as_ref()).as_slice() == pin)
        };
        let pinned = std::iter::once(leaf).chain(rest).find(is_pinned).map(|cert| cert.clone().into_owned());
        let mut roots = RootCertStore::empty();
        for root in believed.into_iter().chain(pinned) {
            roots.add(root)?;
        }
        if roots.is_empty() {
            return Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| TlsError::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, rest, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Where the control plane is and how to speak to it. Cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    replicas: Arc<Mutex<Replicas>>,
    /// There is more than one.
    several: bool,
    /// Shows the node's certificate.
    mutual: Arc<rustls::ClientConfig>,
    /// Shows none: to join.
    plain: Arc<rustls::ClientConfig>,
    member: Option<Arc<Member>>,
}

impl ControlPlane {
    /// From `https://HOST:PORT[@ZONE]`, for a node; several with commas between them.
    pub fn new(addresses: &str, zone: &str, member: Arc<Member>) -> Result<Self, ConnectError> {
        let this = Self::to(addresses, zone, member.credentials())?;
        Ok(Self { member: Some(member), ..this })
    }

    fn to(addresses: &str, zone: &str, credentials: &Arc<Credentials>) -> Result<Self, ConnectError> {
        let all =
            addresses.split(',').map(|address| replica(address.trim())).collect::<Result<Vec<_>, _>>()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pinned = Pinned { credentials: credentials.clone(), provider: provider.clone() };
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_client_cert_resolver(credentials.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // A session that was begun with the certificate of before shows that one.
        tls.resumption = rustls::client::Resumption::disabled();
        let mut plain = tls.clone();
        plain.client_auth_cert_resolver = Arc::new(Credentials::default());
        let several = all.len() > 1;
        let replicas = Arc::new(Mutex::new(Replicas::new(all, zone)));
        Ok(Self { replicas, several, mutual: Arc::new(tls), plain: Arc::new(plain), member: None })
    }

    /// A new connection as a member: joins first where the node is none. With it, the number of the replica that it
    /// leads to, for [`Self::leave`].
    pub async fn connect(&self) -> Result<(Channel, usize), ConnectError> {
        if let Some(member) = &self.member {
            member.ensure(self).await?;
        }
        let opened = self.open(true).await;
        if let (Err(_), Some(member)) = (&opened, &self.member) {
            member.look_for_token();
        }
        opened
    }

    /// What was said to this replica ended, or it is of no use: the next connection goes to another, if there is one.
    pub fn leave(&self, replica: usize) {
        self.replicas.lock().left(replica, Instant::now());
    }

    /// Notes what a call ended with: a certificate that is not taken is doubted.
    pub fn heard(&self, status: &tonic::Status) {
        let refused = status.code() == tonic::Code::Unauthenticated
            || std::error::Error::source(status).is_some_and(|cause| chain(cause).contains("fatal alert"));
        if let Some(member) = self.member.as_ref().filter(|_| refused) {
            member.doubt();
        }
    }

    /// A new connection, without a certificate: to join.
    pub async fn channel(&self) -> Result<Channel, ConnectError> {
        self.open(false).await.map(|(channel, _)| channel)
    }

    /// To the first replica that answers.
    async fn open(&self, mutual: bool) -> Result<(Channel, usize), ConnectError> {
        let mut failed: Option<ConnectError> = None;
        let order = self.replicas.lock().order(Instant::now(), fastrand::f64);
        for number in order {
            let Some(replica) = self.replicas.lock().get(number).cloned() else { continue };
            match self.open_to(&replica, mutual).await {
                Ok(channel) => {
                    self.replicas.lock().took(number);
                    return Ok((channel, number));
                }
                Err(error) => {
                    self.replicas.lock().left(number, Instant::now());
                    failed = Some(and(failed, error));
                }
            }
        }
        Err(failed.unwrap_or_else(|| ConnectError::Address(String::new())))
    }

    async fn open_to(&self, replica: &Replica, mutual: bool) -> Result<Channel, ConnectError> {
        let at = replica.at();
        let unreachable =
            |error: &dyn std::error::Error| ConnectError::Unreachable { at: at.clone(), cause: chain(error) };
        // tonic refuses "https" where TLS is not its own: the scheme that requests carry is set by origin().
        let dial = format!("http://{at}");
        let origin: Uri = format!("https://{at}").parse().map_err(|e| unreachable(&e))?;
        let (every, wait) = if self.several { (PING_OFTEN, PING_OFTEN) } else { (PING_EVERY, PING_WAIT) };
        let endpoint = Endpoint::from_shared(dial)
            .map_err(|e| unreachable(&e))?
            .origin(origin)
            .connect_timeout(self.patience())
            .http2_keep_alive_interval(every)
            .keep_alive_timeout(wait)
            .keep_alive_while_idle(true)
            // A full sync is one large message; small windows would cost it a round trip per 64 KiB.
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        let dialler = Dialler { control: self.clone(), replica: replica.clone(), mutual };
        endpoint.connect_with_connector(dialler).await.map_err(|e| unreachable(&e))
    }

    /// How long TCP and TLS may take each: where there are others, they are not kept waiting.
    fn patience(&self) -> Duration {
        if self.several { CONNECT_ONE } else { CONNECT }
    }

    async fn dial(self, replica: Replica, mutual: bool) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let patience = self.patience();
        let stream = tokio::time::timeout(patience, TcpStream::connect((&*replica.host, replica.port)))
            .await
            .map_err(|_| timed_out("no answer to TCP", patience))??;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(replica.host).map_err(io::Error::other)?;
        let config = if mutual { self.mutual } else { self.plain };
        let tls = tokio::time::timeout(patience, TlsConnector::from(config).connect(name, stream))
            .await
            .map_err(|_| timed_out("no answer to the TLS handshake", patience))??;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server does not speak HTTP/2: is --control the agents' port?"));
        }
        Ok(TokioIo::new(tls))
    }
}

/// From `https://HOST:PORT[@ZONE]`.
fn replica(address: &str) -> Result<Replica, ConnectError> {
    let bad = || ConnectError::Address(address.to_owned());
    let (url, zone) = address.rsplit_once('@').unwrap_or((address, ""));
    let uri: Uri = url.parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        return Err(bad());
    }
    let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
    Ok(Replica { host: host.to_owned(), port: uri.port_u16().unwrap_or(15012), zone: zone.to_owned() })
}

/// One failure after another, as one.
fn and(before: Option<ConnectError>, error: ConnectError) -> ConnectError {
    match (before, error) {
        (
            Some(ConnectError::Unreachable { at, cause }),
            ConnectError::Unreachable { at: next, cause: why },
        ) => ConnectError::Unreachable { at, cause: format!("{cause}; nor at {next}: {why}") },
        (_, error) => error,
    }
}

fn timed_out(what: &str, patience: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {patience:?}"))
}

/// An error with all its causes: tonic's own text is only "transport error".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Opens connections of one kind.
struct Dialler {
    control: ControlPlane,
    replica: Replica,
    mutual: bool,
}

impl tower::Service<Uri> for Dialler {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.control.clone().dial(self.replica.clone(), self.mutual))
    }
}

#[cfg(test)]
mod tests;

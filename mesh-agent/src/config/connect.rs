//! The connection to the control plane: TLS against the one CA that the join token names, HTTP/2 with
//! keep-alive, the token on every call.
//!
//! join token ──▶ **connect** ──Channel──▶ { xds, session }
//!
//! Invariant: no certificate of the machine's own store is trusted; the root is the certificate in the
//! presented chain whose SHA-256 equals the token's, and the chain is verified against it, server name and
//! validity included. Not here: when to connect again (xds, session).

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long TCP and TLS together may take.
const CONNECT: Duration = Duration::from_secs(5);
/// A dead peer is noticed after the sum of these.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WAIT: Duration = Duration::from_secs(5);

/// What a node joins with: `nm1.<id>.<secret>.<sha256 of the CA's DER, hex>`.
#[derive(Clone)]
pub struct JoinToken {
    text: String,
    pin: [u8; 32],
}

// The secret must not reach a log.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.text.split('.').nth(1).unwrap_or_default();
        write!(f, "JoinToken({id})")
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
    #[error("--control {0:?} is not of the form https://HOST:PORT")]
    Address(String),
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

    fn bearer(&self) -> Result<MetadataValue<Ascii>, ConnectError> {
        format!("Bearer {}", self.text)
            .parse()
            .map_err(|_| ConnectError::Token("it holds characters that are not printable ASCII"))
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

/// Trusts exactly one root: the certificate with this hash, which the server shows in its chain.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
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
        let root = std::iter::once(leaf)
            .chain(rest)
            .find(|cert| Sha256::digest(cert.as_ref()).as_slice() == self.pin)
            .ok_or(TlsError::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
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
    host: Arc<str>,
    port: u16,
    bearer: MetadataValue<Ascii>,
    tls: Arc<rustls::ClientConfig>,
}

impl ControlPlane {
    /// From `https://HOST:PORT` and a join token.
    pub fn new(address: &str, token: &JoinToken) -> Result<Self, ConnectError> {
        let bad = || ConnectError::Address(address.to_owned());
        let uri: Uri = address.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
            return Err(bad());
        }
        let host = uri.host().ok_or_else(bad)?;
        let host: Arc<str> = host.trim_start_matches('[').trim_end_matches(']').into();
        ServerName::try_from(host.to_string()).map_err(|_| bad())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pinned = Pinned { pin: token.pin, provider: provider.clone() };
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let port = uri.port_u16().unwrap_or(15012);
        Ok(Self { host, port, bearer: token.bearer()?, tls: Arc::new(tls) })
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let authority =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        let at = format!("{authority}:{}", self.port);
        let unreachable =
            |error: &dyn std::error::Error| ConnectError::Unreachable { at: at.clone(), cause: chain(error) };
        // tonic refuses "https" where TLS is not its own: the scheme that requests carry is set by origin().
        let dial = format!("http://{at}");
        let origin: Uri = format!("https://{at}").parse().map_err(|e| unreachable(&e))?;
        let endpoint = Endpoint::from_shared(dial)
            .map_err(|e| unreachable(&e))?
            .origin(origin)
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT)
            .keep_alive_while_idle(true)
            // A full sync is one large message; small windows would cost it a round trip per 64 KiB.
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20);
        endpoint.connect_with_connector(self.clone()).await.map_err(|e| unreachable(&e))
    }

    /// Puts the token on every call.
    pub fn authorize(&self) -> Authorize {
        Authorize { bearer: self.bearer.clone() }
    }

    async fn dial(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect((&*self.host, self.port)))
            .await
            .map_err(|_| timed_out("no answer to TCP"))??;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.to_string()).map_err(io::Error::other)?;
        let tls = tokio::time::timeout(CONNECT, TlsConnector::from(self.tls).connect(name, stream))
            .await
            .map_err(|_| timed_out("no answer to the TLS handshake"))??;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the server does not speak HTTP/2: is --control the agents' port?"));
        }
        Ok(TokioIo::new(tls))
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {CONNECT:?}"))
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

impl tower::Service<Uri> for ControlPlane {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}

/// Adds `authorization: Bearer …`.
#[derive(Clone)]
pub struct Authorize {
    bearer: MetadataValue<Ascii>,
}

impl Interceptor for Authorize {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.bearer.clone());
        Ok(request)
    }
}

#[cfg(test)]
mod tests;

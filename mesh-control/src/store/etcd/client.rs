//! Speaks to one member of etcd at a time, and to the next where that fails.
//!
//! Invariants: every call ends by its deadline; what may have been done already is not asked for twice; nothing is asked
//! of a member that has no leader (it answers so at once, not after its own time-outs).
//! Not here: what is asked ([`super::plan`]), what follows ([`super::follow`]).

use std::fmt::Display;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::Options;
use super::pb::auth_client::AuthClient;
use super::pb::kv_client::KvClient;
use super::pb::lease_client::LeaseClient;
use super::pb::watch_client::WatchClient;
use super::pb::{self, AuthenticateRequest};

/// How long a connection may take to come up, and one try of a call.
const CONNECT: Duration = Duration::from_secs(1);
const TRY: Duration = Duration::from_secs(2);
/// Pause after all members were asked in vain.
const AGAIN: Duration = Duration::from_millis(100);
/// A member that is gone without a word is noticed after the sum of these.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_WAIT: Duration = Duration::from_secs(1);
/// Largest answer: a page of the largest values, or what a watch has to catch up with.
const MESSAGE_MAX: usize = 512 << 20;

/// Why a call came to nothing.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// For people.
    pub cause: String,
    /// It was not done, for certain.
    pub undone: bool,
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)
    }
}

struct Member {
    url: String,
    channel: Channel,
}

/// All members, and which is spoken to.
pub(super) struct Client {
    members: Vec<Member>,
    at: AtomicUsize,
    user: Option<(String, String)>,
    token: RwLock<Option<MetadataValue<Ascii>>>,
}

impl Client {
    /// Nothing is connected yet; `Err`: what is wrong with the flags.
    pub(super) fn new(options: &Options) -> Result<Self, String> {
        let tls = tls(options)?;
        let member = |url: &String| {
            let bad = |why: &dyn Display| {
                format!("--etcd-endpoints {url}: {why}; give https://HOST:2379 of each member")
            };
            let mut endpoint = Endpoint::from_shared(url.clone()).map_err(|error| bad(&error))?;
            match (endpoint.uri().scheme_str(), &tls) {
                (Some("https"), Some(tls)) => {
                    endpoint = endpoint.tls_config(tls.clone()).map_err(|error| bad(&error))?;
                }
                (Some("https"), None) => return Err(bad(&"https needs --etcd-ca, whom to believe")),
                (Some("http"), None) => {}
                (Some("http"), Some(_)) => return Err(bad(&"--etcd-ca is given, but this is not https")),
                _ => return Err(bad(&"not a URL")),
            }
            let channel = endpoint
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_WAIT)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .connect_lazy();
            Ok(Member { url: url.clone(), channel })
        };
        let members: Vec<Member> = options.endpoints.iter().map(member).collect::<Result<_, _>>()?;
        if members.is_empty() {
            return Err("--store etcd needs --etcd-endpoints: https://HOST:2379 of each member".to_owned());
        }
        // Replicas begin at different members.
        let at = AtomicUsize::new(std::process::id() as usize % members.len());
        Ok(Self { members, at, user: options.user.clone(), token: RwLock::default() })
    }

    /// The member that is spoken to.
    fn member(&self) -> (usize, &Member) {
        let at = self.at.load(Relaxed) % self.members.len();
        (at, &self.members[at])
    }

    /// Speaks to the next one, unless somebody has gone on already.
    fn leave(&self, from: usize) {
        let next = (from + 1) % self.members.len();
        let _ = self.at.compare_exchange(from, next, Relaxed, Relaxed);
    }

    /// Gives up the member that is spoken to.
    pub(super) fn turn(&self) {
        self.leave(self.member().0);
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &*self.token.read() {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Calls until it is done, or may have been, or it is too late.
    async fn call<T, F>(&self, until: Instant, call: impl Fn(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut last = None;
        for turn in 0_usize.. {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // All were asked: a leader is being elected, perhaps.
            if turn > 0 && turn.is_multiple_of(self.members.len()) {
                tokio::time::sleep(left.min(AGAIN)).await;
            }
            let (at, member) = self.member();
            let failure = match tokio::time::timeout(left.min(TRY), call(member.channel.clone())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if self.no_token(&status) => {
                    self.authenticate(&member.channel).await?;
                    continue;
                }
                Ok(Err(status)) if is_final(&status) => return Err(failure(&member.url, &status)),
                Ok(Err(status)) => failure(&member.url, &status),
                Err(_) => Failure { cause: format!("etcd at {} does not answer", member.url), undone: false },
            };
            self.leave(at);
            if !failure.undone {
                return Err(failure);
            }
            last = Some(failure);
        }
        let none = || Failure { cause: "etcd does not answer".to_owned(), undone: true };
        Err(last.unwrap_or_else(none))
    }

    fn no_token(&self, status: &Status) -> bool {
        let asked = status.code() == Code::Unauthenticated
            || status.message().contains("user name is empty")
            || status.message().contains("invalid auth token");
        self.user.is_some() && asked
    }

    async fn authenticate(&self, channel: &Channel) -> Result<(), Failure> {
        let Some((name, password)) = self.user.clone() else { return Ok(()) };
        let refused = |cause: String| Failure {
            cause: format!(
                "etcd does not take --etcd-user {name}: {cause}; check the user and --etcd-password-file"
            ),
            undone: true,
        };
        let request = AuthenticateRequest { name: name.clone(), password };
        let asked = tokio::time::timeout(TRY, AuthClient::new(channel.clone()).authenticate(request)).await;
        let answer = asked.map_err(|_| refused("no answer".to_owned()))?;
        let token = answer.map_err(|status| refused(status.message().to_owned()))?.into_inner().token;
        *self.token.write() = Some(token.parse().map_err(|_| refused("its token is no text".to_owned()))?);
        Ok(())
    }

    /// A transaction.
    pub(super) async fn txn(
        &self,
        request: pb::TxnRequest,
        until: Instant,
    ) -> Result<pb::TxnResponse, Failure> {
        self.call(until, |channel| {
            let request = self.request(request.clone());
            async move { KvClient::new(channel).max_decoding_message_size(MESSAGE_MAX).txn(request).await }
        })
        .await
    }

    /// A page of keys. Asked for again where it fails.
    pub(super) async fn range(
        &self,
        range: pb::RangeRequest,
        until: Instant,
    ) -> Result<pb::RangeResponse, Failure> {
        loop {
            let asked = self
                .call(until, |channel| {
                    let request = self.request(range.clone());
                    async move {
                        KvClient::new(channel).max_decoding_message_size(MESSAGE_MAX).range(request).await
                    }
                })
                .await;
            match asked {
                Err(failure) if !failure.undone && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                done => return done,
            }
        }
    }

    /// Forgets history of all of etcd.
    pub(super) async fn compact(&self, revision: i64, until: Instant) -> Result<(), Failure> {
        let asked = self.call(until, |channel| {
            let request = self.request(pb::CompactionRequest { revision });
            async move { KvClient::new(channel).compact(request).await }
        });
        asked.await.map(drop)
    }

    /// A lease of etcd, for `seconds`.
    pub(super) async fn grant(&self, seconds: i64, until: Instant) -> Result<i64, Failure> {
        let asked = self.call(until, |channel| {
            let request = self.request(pb::LeaseGrantRequest { ttl: seconds });
            async move { LeaseClient::new(channel).lease_grant(request).await }
        });
        asked.await.map(|answer| answer.id)
    }

    /// Ends one.
    pub(super) async fn revoke(&self, id: i64, until: Instant) -> Result<(), Failure> {
        let asked = self.call(until, |channel| {
            let request = self.request(pb::LeaseRevokeRequest { id });
            async move { LeaseClient::new(channel).lease_revoke(request).await }
        });
        asked.await.map(drop)
    }

    /// Renews one; false: it has ended.
    pub(super) async fn keep(&self, id: i64, until: Instant) -> Result<bool, Failure> {
        loop {
            let asked = self.call(until, |channel| {
                let request = self.request(tokio_stream::once(pb::LeaseKeepAliveRequest { id }));
                async move {
                    let mut answers = LeaseClient::new(channel).lease_keep_alive(request).await?.into_inner();
                    let answer = answers.message().await?;
                    answer.map(tonic::Response::new).ok_or_else(|| Status::unavailable("it ended the stream"))
                }
            });
            match asked.await {
                Ok(answer) => return Ok(answer.ttl > 0),
                // Renewing twice does no harm.
                Err(failure) if failure.undone || Instant::now() >= until => return Err(failure),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A watch of everything from a revision on.
    pub(super) async fn watch(
        &self,
        create: pb::WatchCreateRequest,
    ) -> Result<tonic::Streaming<pb::WatchResponse>, Failure> {
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        let first = pb::WatchRequest { request_union: Some(create) };
        self.call(Instant::now() + TRY * 2, |channel| {
            // The stream of requests stays open: its end would be the watch's.
            let requests = futures_util::StreamExt::chain(tokio_stream::once(first.clone()), tokio_stream::pending());
            let request = self.request(requests);
            async move { WatchClient::new(channel).max_decoding_message_size(MESSAGE_MAX).watch(request).await }
        })
        .await
    }
}

fn tls(options: &Options) -> Result<Option<ClientTlsConfig>, String> {
    let read = |flag: &str, path: &std::path::Path| {
        std::fs::read(path).map_err(|error| format!("cannot read {flag} {}: {error}", path.display()))
    };
    let Some(ca) = &options.ca else { return Ok(None) };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--etcd-ca", ca)?));
    if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
        tls = tls.identity(Identity::from_pem(read("--etcd-cert", cert)?, read("--etcd-key", key)?));
    }
    Ok(Some(tls))
}

/// No member will say anything else.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange
            | Code::ResourceExhausted
    )
}

/// What a status says of what was asked.
fn failure(url: &str, status: &Status) -> Failure {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    // Of a member that never had it, or that has refused to propose it.
    let undone = text.contains("connect error")
        || text.contains("error trying to connect")
        || text.contains("no leader")
        || text.contains("not capable")
        || is_final(status);
    Failure { cause: format!("etcd at {url}: {text}"), undone }
}

//! What the proxy refuses, and how it says so.
//!
//! One enum for the whole request path: a variant is a status, a reason and a sentence. The reason is the same
//! text in the `x-mesh-reason` header, in the log and as the metric's label, so it is stable: renaming one
//! breaks somebody's alert.
//!
//! Invariant: reasons are unique and lower-case (tested). `Copy`, without allocation: refusing is cheap.
//! Not here: what a malformed message looks like ([`Malformed`]), the reply's bytes (`http1::write_error`).

use std::io::ErrorKind;

use crate::http1::{Malformed, Side};
use crate::jwt::JwtError;

/// Why the proxy did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The client's bytes break HTTP.
    #[error("malformed request: {0}")]
    BadRequest(Malformed),
    /// The client's request head is larger than the limit, in bytes or in headers.
    #[error("request head exceeds the limit on its bytes or its number of headers")]
    HeadTooLarge,
    /// The port speaks HTTP and the client's first bytes are something else.
    #[error("the first bytes are not an HTTP/1 request, and this port is declared to speak HTTP")]
    NotHttp,
    /// The port's connections are told apart by the name in TLS, and the client's first bytes are something else.
    #[error("the first bytes are no TLS, and this port is routed by the name that TLS asks for")]
    NotTls,
    /// The same, and the client asks for no name.
    #[error("the client of TLS asks for no name (SNI), and this port is routed by it")]
    TlsNoName,
    /// The client did not send its whole request head in time.
    #[error("the request head did not arrive in time")]
    HeaderTimeout,
    /// No rule of the service's HTTP routes matches.
    #[error("no route of this service matches the request's host and path")]
    NoRoute,
    /// The rule that matches has nowhere to send the request.
    #[error("the matching rule has no backend with a weight, or chose one that does not exist")]
    NoBackend,
    /// The service has no endpoint that takes connections.
    #[error("the service has no endpoint that takes connections")]
    NoEndpoints,
    /// An authorisation policy of the workload that is called does not let the caller in.
    #[error("a policy of the workload that is called refuses this caller")]
    DeniedByPolicy,
    /// A policy of the workload that is called asks for a token, and this one is not good, or there is none.
    #[error("{0}")]
    Jwt(JwtError),
    /// Somebody who is asked about requests refuses this one.
    #[error("the request is refused by the service that decides about it")]
    ExtAuthzDenied,
    /// Somebody who is to be asked about this request does not answer.
    #[error("the service that decides about this request does not answer")]
    ExtAuthzFailed,
    /// The workload that is called has policies on paths, and servers may read this one differently.
    #[error("the request's path can be read in more than one way")]
    UnclearPath,
    /// The endpoint refused the connection.
    #[error("the endpoint refused the connection")]
    ConnectRefused,
    /// The endpoint did not answer the connection in time.
    #[error("connecting to the endpoint took too long")]
    ConnectTimeout,
    /// The connection to the endpoint could not be made for another reason.
    #[error("connecting to the endpoint failed: {0}")]
    ConnectFailed(ErrorKind),
    /// The agent has no certificate for the workload, or does not know yet whom to believe.
    #[error("there is no certificate for this workload yet")]
    NoCertificate,
    /// What is at the endpoint's address cannot prove that it belongs to the mesh; outside of that, that it is who was
    /// to be there.
    #[error("the endpoint's certificate is not one that is trusted here")]
    TlsPeerUntrusted,
    /// TLS with an endpoint outside of the mesh did not come up.
    #[error("TLS with the endpoint outside of the mesh did not come up")]
    TlsOriginationFailed,
    /// Somebody else is at the endpoint's address.
    #[error("somebody else than the endpoint's workload is at its address")]
    TlsWrongIdentity,
    /// The endpoint does not believe this workload's certificate.
    #[error("the endpoint does not accept this workload's certificate")]
    TlsRefusedByPeer,
    /// A tunnel to the endpoint did not come up in time.
    #[error("opening a tunnel to the endpoint took too long")]
    TunnelTimeout,
    /// A tunnel to the endpoint broke before it could be used.
    #[error("no tunnel to the endpoint could be opened")]
    TunnelFailed,
    /// The other end of the tunnel did not open the connection.
    #[error("the endpoint's node refused the connection")]
    TunnelRefused,
    /// As many tunnels are open as there may be.
    #[error("all tunnels to the endpoint are full, and no more may be opened")]
    TunnelLimit,
    /// The workload has as many connections through the proxy as its budget allows.
    #[error("the workload's budget of proxied connections is used up")]
    BudgetConnections,
    /// The workload has as many bytes in the proxy's buffers as its budget allows.
    #[error("the workload's budget of buffered bytes is used up")]
    BudgetBytes,
    /// A captured connection came without the record of where it was going.
    #[error("the connection's original destination is not known any more")]
    RecordLost,
    /// The endpoint reset the connection before its response was complete.
    #[error("the endpoint reset the connection")]
    UpstreamReset,
    /// The endpoint closed the connection before its response was complete.
    #[error("the endpoint closed the connection before the response was complete")]
    UpstreamClosed,
    /// The endpoint's bytes break HTTP.
    #[error("malformed response: {0}")]
    UpstreamProtocol(Malformed),
    /// The endpoint did not answer in time.
    #[error("the endpoint did not answer in time")]
    UpstreamTimeout,
    /// All tries of a request together took longer than its route allows.
    #[error("the request took longer than its route allows")]
    RequestTimeout,
    /// One try took longer than the route allows, and it was the last.
    #[error("the endpoint took longer than the route allows one try")]
    TryTimeout,
    /// As many requests to the service, or to each of its endpoints, are in flight as may be.
    #[error("as many requests to the service are in flight from this node as its policy allows")]
    LimitRequests,
    /// And as many wait as may.
    #[error("as many requests to the service wait on this node as its policy allows")]
    QueueFull,
    /// It waited as long as it may.
    #[error("the request waited for its turn as long as the service's policy allows")]
    QueueTimeout,
    /// Too many requests have failed: none is sent for a while.
    #[error("too many requests to the service have failed: none is sent for a while")]
    BreakerOpen,
    /// The workload that is called takes no more requests for so many seconds.
    #[error("the service's policy allows no more requests for now")]
    RateLimited(u32),
    /// A policy wants this request to fail, with this status.
    #[error("a policy of the service wants this request to fail")]
    FaultAbort(u16),
    /// The agent is short of descriptors or memory.
    #[error("the agent is short of descriptors or memory, and takes no new connections")]
    Overloaded,
    /// The agent is stopping.
    #[error("the agent is shutting down")]
    Draining,
    /// A bug or an exhausted resource of the agent itself.
    #[error("internal error of the agent")]
    Internal,
}

impl ProxyError {
    /// One value of each variant, for tables that have a row a reason.
    pub const ALL: [Self; 53] = [
        Self::BadRequest(Malformed::Version),
        Self::HeadTooLarge,
        Self::NotHttp,
        Self::NotTls,
        Self::TlsNoName,
        Self::HeaderTimeout,
        Self::NoRoute,
        Self::NoBackend,
        Self::NoEndpoints,
        Self::DeniedByPolicy,
        Self::Jwt(JwtError::Missing),
        Self::Jwt(JwtError::Malformed),
        Self::Jwt(JwtError::Algorithm),
        Self::Jwt(JwtError::Issuer),
        Self::Jwt(JwtError::Audience),
        Self::Jwt(JwtError::Expired),
        Self::Jwt(JwtError::NotYet),
        Self::Jwt(JwtError::UnknownKey),
        Self::Jwt(JwtError::Signature),
        Self::Jwt(JwtError::NoKeys),
        Self::ExtAuthzDenied,
        Self::ExtAuthzFailed,
        Self::UnclearPath,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed(ErrorKind::Other),
        Self::NoCertificate,
        Self::TlsPeerUntrusted,
        Self::TlsOriginationFailed,
        Self::TlsWrongIdentity,
        Self::TlsRefusedByPeer,
        Self::TunnelTimeout,
        Self::TunnelFailed,
        Self::TunnelRefused,
        Self::TunnelLimit,
        Self::BudgetConnections,
        Self::BudgetBytes,
        Self::RecordLost,
        Self::UpstreamReset,
        Self::UpstreamClosed,
        Self::UpstreamProtocol(Malformed::Version),
        Self::UpstreamTimeout,
        Self::RequestTimeout,
        Self::TryTimeout,
        Self::LimitRequests,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::BreakerOpen,
        Self::RateLimited(1),
        Self::FaultAbort(503),
        Self::Overloaded,
        Self::Draining,
        Self::Internal,
    ];

    /// The error for a malformed message, by who sent it.
    pub fn malformed(side: Side, cause: Malformed) -> Self {
        match (side, cause) {
            (Side::Client, Malformed::HeadTooLarge | Malformed::TooManyHeaders) => Self::HeadTooLarge,
            (Side::Client, Malformed::NotHttp) => Self::NotHttp,
            (Side::Client, cause) => Self::BadRequest(cause),
            (Side::Upstream, cause) => Self::UpstreamProtocol(cause),
        }
    }

    /// The error for a failed `connect()`.
    pub fn connect(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionRefused => Self::ConnectRefused,
            ErrorKind::TimedOut => Self::ConnectTimeout,
            other => Self::ConnectFailed(other),
        }
    }

    /// The error for a failed read or write on an established upstream connection.
    pub fn upstream(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::UnexpectedEof | ErrorKind::WriteZero => Self::UpstreamClosed,
            _ => Self::UpstreamReset,
        }
    }

    /// Text of the `x-mesh-reason` header, the log field and the metric label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::NotHttp => "not_http",
            Self::NotTls => "not_tls",
            Self::TlsNoName => "tls_no_name",
            Self::HeaderTimeout => "header_timeout",
            Self::NoRoute => "no_route",
            Self::NoBackend => "no_backend",
            Self::NoEndpoints => "no_endpoints",
            Self::DeniedByPolicy => "denied_by_policy",
            Self::Jwt(error) => error.reason(),
            Self::ExtAuthzDenied => "ext_authz_denied",
            Self::ExtAuthzFailed => "ext_authz_failed",
            Self::UnclearPath => "unclear_path",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed(_) => "connect_failed",
            Self::NoCertificate => "no_certificate",
            Self::TlsPeerUntrusted => "tls_peer_untrusted",
            Self::TlsOriginationFailed => "tls_origination_failed",
            Self::TlsWrongIdentity => "tls_wrong_identity",
            Self::TlsRefusedByPeer => "tls_refused_by_peer",
            Self::TunnelTimeout => "tunnel_handshake_timeout",
            Self::TunnelFailed => "tunnel_failed",
            Self::TunnelRefused => "tunnel_refused",
            Self::TunnelLimit => "tunnel_limit",
            Self::BudgetConnections => "budget_connections",
            Self::BudgetBytes => "budget_bytes",
            Self::RecordLost => "record_lost",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamProtocol(_) => "upstream_protocol",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::TryTimeout => "try_timeout",
            Self::LimitRequests => "limit_requests",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::BreakerOpen => "breaker_open",
            Self::RateLimited(_) => "rate_limited",
            Self::FaultAbort(_) => "fault_abort",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// Status of the reply, where one can still be sent.
    pub const fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::NotHttp | Self::NotTls | Self::TlsNoName | Self::UnclearPath => 400,
            Self::DeniedByPolicy | Self::ExtAuthzDenied => 403,
            Self::Jwt(error) => error.status(),
            Self::NoRoute => 404,
            Self::HeaderTimeout => 408,
            Self::HeadTooLarge => 431,
            Self::RateLimited(_) => 429,
            Self::FaultAbort(status) => *status,
            Self::NoBackend | Self::Internal => 500,
            Self::UpstreamReset | Self::UpstreamClosed | Self::UpstreamProtocol(_) => 502,
            Self::ConnectTimeout
            | Self::TunnelTimeout
            | Self::UpstreamTimeout
            | Self::RequestTimeout
            | Self::TryTimeout => 504,
            Self::NoEndpoints
            | Self::ExtAuthzFailed
            | Self::ConnectRefused
            | Self::ConnectFailed(_)
            | Self::NoCertificate
            | Self::TlsPeerUntrusted
            | Self::TlsOriginationFailed
            | Self::TlsWrongIdentity
            | Self::TlsRefusedByPeer
            | Self::TunnelFailed
            | Self::TunnelRefused
            | Self::TunnelLimit
            | Self::BudgetConnections
            | Self::BudgetBytes
            | Self::RecordLost
            | Self::LimitRequests
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::BreakerOpen
            | Self::Overloaded
            | Self::Draining => 503,
        }
    }

    /// Seconds after which the client may ask again, where that is known.
    pub const fn retry_after(&self) -> Option<u32> {
        match self {
            Self::RateLimited(seconds) => Some(*seconds),
            _ => None,
        }
    }

    /// The client's connection can stay open after the reply, provided that the request's body was read.
    pub const fn keeps_client(&self) -> bool {
        !matches!(
            self,
            Self::BadRequest(_)
                | Self::HeadTooLarge
                | Self::NotHttp
                | Self::NotTls
                | Self::TlsNoName
                | Self::HeaderTimeout
                | Self::BudgetConnections
                | Self::BudgetBytes
                | Self::RecordLost
                | Self::Overloaded
                | Self::Draining
                | Self::Internal
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reasons_are_unique_labels() {
        let reasons: BTreeSet<_> = ProxyError::ALL.iter().map(ProxyError::reason).collect();
        assert_eq!(reasons.len(), ProxyError::ALL.len());
        for reason in reasons {
            assert!(reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{reason}");
        }
    }

    #[test]
    fn a_malformed_message_names_its_sender() {
        let cause = Malformed::BareLf;
        assert_eq!(ProxyError::malformed(Side::Client, cause), ProxyError::BadRequest(cause));
        assert_eq!(ProxyError::malformed(Side::Upstream, cause), ProxyError::UpstreamProtocol(cause));
        assert_eq!(ProxyError::malformed(Side::Client, Malformed::TooManyHeaders).status(), 431);
        assert_eq!(ProxyError::malformed(Side::Upstream, Malformed::HeadTooLarge).status(), 502);
        assert_eq!(
            ProxyError::BadRequest(Malformed::BareLf).to_string(),
            "malformed request: a line ends in LF without CR"
        );
    }

    #[test]
    fn every_status_is_an_error() {
        for error in ProxyError::ALL {
            assert!((400..=599).contains(&error.status()), "{error}");
        }
    }
}

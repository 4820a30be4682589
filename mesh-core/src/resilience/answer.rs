//! What an answer, or its absence, says of the endpoint.
//!
//! Invariant: what the mesh itself has refused says nothing of anybody.

use crate::error::ProxyError;

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It serves.
    Good,
    /// It fails.
    Bad,
    /// It fails as a gateway does whose own backend is not there: 502, 503, 504.
    Gateway,
    /// Nothing.
    Nothing,
}

impl Answer {
    /// Of a status of HTTP; 0: there was none.
    pub const fn of_status(status: u16) -> Self {
        match status {
            0 => Self::Nothing,
            502..=504 => Self::Gateway,
            500..=599 => Self::Bad,
            _ => Self::Good,
        }
    }

    /// Of a status of gRPC, as its name in HTTP would be told.
    pub const fn of_grpc(status: u8) -> Self {
        match status {
            // Unavailable, deadline exceeded.
            14 | 4 => Self::Gateway,
            // Unknown, resource exhausted, internal, data loss.
            2 | 8 | 13 | 15 => Self::Bad,
            _ => Self::Good,
        }
    }

    /// Of a failure.
    pub const fn of_error(error: &ProxyError) -> Self {
        match error {
            ProxyError::ConnectRefused
            | ProxyError::ConnectTimeout
            | ProxyError::ConnectFailed(_)
            | ProxyError::TlsPeerUntrusted
            | ProxyError::TlsOriginationFailed
            | ProxyError::TlsWrongIdentity
            | ProxyError::TlsRefusedByPeer
            | ProxyError::TunnelTimeout
            | ProxyError::TunnelFailed
            | ProxyError::TunnelRefused
            | ProxyError::UpstreamReset
            | ProxyError::UpstreamClosed
            | ProxyError::UpstreamProtocol(_)
            | ProxyError::UpstreamTimeout
            | ProxyError::RequestTimeout
            | ProxyError::TryTimeout => Self::Gateway,
            _ => Self::Nothing,
        }
    }

    /// Does it count as a failure? `None`: it does not count.
    pub const fn failed(self) -> Option<bool> {
        match self {
            Self::Good => Some(false),
            Self::Bad | Self::Gateway => Some(true),
            Self::Nothing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_is_told_from_who_refuses() {
        let of = |status| Answer::of_status(status);
        assert_eq!([of(200), of(404), of(429), of(101)], [Answer::Good; 4]);
        assert_eq!([of(500), of(599), of(501)], [Answer::Bad; 3]);
        assert_eq!([of(502), of(503), of(504)], [Answer::Gateway; 3]);
        assert_eq!(
            (of(0), Answer::of_grpc(0), Answer::of_grpc(5)),
            (Answer::Nothing, Answer::Good, Answer::Good)
        );
        assert_eq!((Answer::of_grpc(14), Answer::of_grpc(13)), (Answer::Gateway, Answer::Bad));
        assert_eq!(Answer::of_error(&ProxyError::UpstreamReset), Answer::Gateway);
        for ours in
            [ProxyError::BudgetBytes, ProxyError::QueueFull, ProxyError::BreakerOpen, ProxyError::Draining]
        {
            assert_eq!(Answer::of_error(&ours).failed(), None, "{ours}");
        }
    }
}

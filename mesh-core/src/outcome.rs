//! How a request came out, in one word, and whether that is written down.
//!
//! status, grpc-status, reason ──▶ **outcome** ──▶ metrics, access log, tap
//!
//! Whose fault it was is what alerts ask: `server_error` is the endpoint's or the mesh's, `client_error` the caller's.
//! gRPC's codes are parted as OpenTelemetry parts them for servers.

/// How a request came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should.
    Ok,
    /// Its caller asked for what it may not have or does not exist, or has gone.
    ClientError,
    /// The endpoint or the mesh failed.
    ServerError,
}

/// No code of gRPC.
pub const NO_GRPC: u8 = u8::MAX;

/// Codes of gRPC that are the server's: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const SERVERS: [u8; 6] = [2, 4, 12, 13, 14, 15];
/// Reasons that begin so are the client's.
const CLIENTS: &str = "client_";

impl Outcome {
    /// Of a request with this status (0: none was sent), code of gRPC ([`NO_GRPC`]: none) and reason (empty: the proxy
    /// neither refused nor cut it).
    pub fn of(status: u16, grpc: u8, reason: &str) -> Self {
        if reason.starts_with(CLIENTS) {
            return Self::ClientError;
        }
        match (grpc, status) {
            (0, _) if reason.is_empty() => Self::Ok,
            (code, _) if code != 0 && code != NO_GRPC => {
                if SERVERS.contains(&code) {
                    Self::ServerError
                } else {
                    Self::ClientError
                }
            }
            (_, 400..=499) => Self::ClientError,
            (_, 500..) => Self::ServerError,
            // Cut in the middle, or before anything was sent.
            _ if !reason.is_empty() => Self::ServerError,
            _ => Self::Ok,
        }
    }

    /// Label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
        }
    }
}

/// Which requests of a workload are written to the access log. The default: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRule {
    /// Of a hundred requests so many, whatever becomes of them.
    pub percent: u8,
    /// All that do not come out well.
    pub errors: bool,
}

impl LogRule {
    /// Nothing is written?
    pub fn is_off(self) -> bool {
        self == Self::default()
    }

    /// Is this one of the sample? `random` is uniform over all values.
    pub fn samples(self, random: u64) -> bool {
        (u128::from(random) * 100) >> 64 < u128::from(self.percent)
    }

    /// As one number, 0 where nothing is written.
    pub fn packed(self) -> u32 {
        u32::from(self.percent) | u32::from(self.errors) << 8
    }

    /// The rule again.
    pub fn unpacked(number: u32) -> Self {
        Self { percent: (number & 0xff) as u8, errors: number >> 8 != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ProxyError;

    #[test]
    fn whose_fault_it_was() {
        use Outcome::{ClientError, Ok, ServerError};
        let check = |status, grpc, reason, want: Outcome| {
            assert_eq!(Outcome::of(status, grpc, reason), want, "{status} {grpc} {reason}");
        };
        for (status, want) in
            [(200, Ok), (101, Ok), (304, Ok), (404, ClientError), (499, ClientError), (503, ServerError)]
        {
            check(status, NO_GRPC, "", want);
        }
        for (code, want) in [
            (0, Ok),
            (1, ClientError),
            (5, ClientError),
            (9, ClientError),
            (13, ServerError),
            (14, ServerError),
        ] {
            check(200, code, "", want);
        }
        check(403, 7, "denied_by_policy", ClientError);
        check(503, 14, "no_endpoints", ServerError);
        check(0, NO_GRPC, "", Ok);
        check(0, NO_GRPC, "client_reset", ClientError);
        check(200, NO_GRPC, "client_gone", ClientError);
        // Broken off after a good beginning.
        check(200, NO_GRPC, "upstream_reset", ServerError);
        check(200, 0, "upstream_reset", ServerError);
    }

    #[test]
    fn what_the_proxy_refuses_is_never_ok() {
        for error in ProxyError::ALL {
            assert_ne!(Outcome::of(error.status(), NO_GRPC, error.reason()), Outcome::Ok, "{error}");
        }
    }

    #[test]
    fn a_rule_takes_its_share() {
        let share = |percent| {
            let rule = LogRule { percent, errors: false };
            (0..100u64).filter(|n| rule.samples((n << 57) + (n << 50))).count()
        };
        assert_eq!((share(0), share(100)), (0, 100));
        let many = |percent| {
            let rule = LogRule { percent, errors: true };
            (0..10_000u64).filter(|n| rule.samples(n * (u64::MAX / 10_000))).count()
        };
        assert!((2400..2600).contains(&many(25)), "{}", many(25));
        for rule in [
            LogRule::default(),
            LogRule { percent: 100, errors: false },
            LogRule { percent: 1, errors: true },
        ] {
            assert_eq!(LogRule::unpacked(rule.packed()), rule);
            assert_eq!(rule.packed() == 0, rule.is_off());
        }
    }
}

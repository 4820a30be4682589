//! What a CONNECT of a tunnel asks for, and whether it is for the workload that the tunnel came to.
//!
//! tunnel (HTTP/2) ──head──▶ **hbone** ──port──▶ authorise ──▶ the application
//!
//! Liberal in what a peer may write: an address in any form, or the name of a service; everything else of the head
//! (`baggage`, `forwarded`, `traceparent`) decides nothing here. Strict in what it means: the address is one of the
//! workload's own, the port one that its applications may be called on.
//!
//! Invariants: allocates nothing; every refusal has a status and a reason. Not here: who may call (authorise).

use std::net::{IpAddr, SocketAddr};

use mesh_common::record::HBONE_PORT;

/// Ports of meshes' own: what arrives there is for an agent, and dialled by an agent it would come round for ever.
pub const RESERVED: [u16; 3] = [15_001, 15_006, HBONE_PORT];

/// The port of tunnels.
pub const PORT: u16 = HBONE_PORT;

/// Longest name of a host, bytes.
const HOST_MAX: usize = 253;

/// Why a CONNECT is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// Another method.
    #[error("a tunnel carries CONNECT alone")]
    Method,
    /// No authority, or none that is `ADDRESS:PORT` or `NAME:PORT`.
    #[error("the authority is not ADDRESS:PORT or NAME:PORT")]
    Authority,
    /// Somebody else's address.
    #[error("the authority is not an address of this workload")]
    Address,
    /// The name of no service that this workload serves on that port.
    #[error("the authority names no service that this workload serves on that port")]
    Host,
    /// A port of meshes' own.
    #[error("the port is one of the mesh itself")]
    Reserved,
    /// The workload shares its address with others, and the port is not one of its own.
    #[error("the port is not one that this workload serves")]
    Port,
    /// A policy of the workload does not let this caller in.
    #[error("a policy of the workload refuses this caller")]
    Denied,
    /// The workload takes no more connections.
    #[error("the workload's budget of proxied connections is used up")]
    Budget,
    /// The application does not take the connection.
    #[error("the application cannot be reached")]
    Unreachable,
    /// The agent is stopping.
    #[error("the agent is shutting down")]
    Draining,
}

impl Refused {
    /// All, for tables with a row each.
    pub const ALL: [Self; 10] = [
        Self::Method,
        Self::Authority,
        Self::Address,
        Self::Host,
        Self::Reserved,
        Self::Port,
        Self::Denied,
        Self::Budget,
        Self::Unreachable,
        Self::Draining,
    ];

    /// Status of the answer, as other implementations give it.
    pub const fn status(self) -> u16 {
        match self {
            Self::Method | Self::Authority | Self::Address => 400,
            Self::Denied => 401,
            Self::Host | Self::Reserved | Self::Port | Self::Budget | Self::Unreachable | Self::Draining => {
                503
            }
        }
    }

    /// Log field and label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Method => "not_connect",
            Self::Authority => "bad_authority",
            Self::Address => "foreign_address",
            Self::Host => "unknown_host",
            Self::Reserved => "reserved_port",
            Self::Port => "foreign_port",
            Self::Denied => "denied_by_policy",
            Self::Budget => "budget_connections",
            Self::Unreachable => "unreachable",
            Self::Draining => "draining",
        }
    }
}

/// What is known of the workload at the end of a tunnel.
pub trait Called {
    /// Is it one of its own addresses?
    fn is_at(&self, address: IpAddr) -> bool;

    /// May connections to it ask for this port? Every port of a workload with an address of its own.
    fn has(&self, port: u16) -> bool;

    /// The target port behind a service's name and port, where this workload serves it.
    fn serves(&self, host: &str, port: u16) -> Option<u16>;
}

/// The port that a CONNECT asks for.
pub fn port(method: &str, authority: Option<&str>, called: &impl Called) -> Result<u16, Refused> {
    if method != "CONNECT" {
        return Err(Refused::Method);
    }
    let authority = authority.ok_or(Refused::Authority)?;
    let port = match authority.parse::<SocketAddr>() {
        Ok(address) if !called.is_at(address.ip().to_canonical()) => return Err(Refused::Address),
        Ok(address) => address.port(),
        Err(_) => {
            let (host, port) = name(authority).ok_or(Refused::Authority)?;
            called.serves(host, port).ok_or(Refused::Host)?
        }
    };
    match port {
        0 => Err(Refused::Authority),
        port if RESERVED.contains(&port) => Err(Refused::Reserved),
        port if !called.has(port) => Err(Refused::Port),
        port => Ok(port),
    }
}

/// `NAME:PORT`.
fn name(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = if digits { port.parse().ok()? } else { return None };
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    // What looks like an address and is none is no name either.
    let named = host.bytes().any(|b| b.is_ascii_alphabetic());
    let good = named && host.len() <= HOST_MAX && host.bytes().all(letters);
    good.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// At 10.0.0.7 and 2001:db8::7; `shared`: only port 8080 is its own.
    struct Cart {
        shared: bool,
    }

    impl Called for Cart {
        fn is_at(&self, address: IpAddr) -> bool {
            ["10.0.0.7", "2001:db8::7"].iter().any(|own| own.parse() == Ok(address))
        }

        fn has(&self, port: u16) -> bool {
            !self.shared || port == 8080
        }

        fn serves(&self, host: &str, port: u16) -> Option<u16> {
            match (host, port) {
                ("cart.shop.svc.cluster.local", 80) => Some(8080),
                ("loop.shop.svc.cluster.local", 80) => Some(15_006),
                _ => None,
            }
        }
    }

    #[track_caller]
    fn check(authority: &str, want: Result<u16, Refused>) {
        assert_eq!(port("CONNECT", Some(authority), &Cart { shared: false }), want, "{authority}");
    }

    #[test]
    fn what_is_asked_for() {
        check("10.0.0.7:8080", Ok(8080));
        check("10.0.0.7:1", Ok(1));
        check("10.0.0.7:65535", Ok(65_535));
        check("[2001:db8::7]:8080", Ok(8080));
        check("[2001:db8:0:0::7]:8080", Ok(8080));
        // An address is what it means, not how it is written.
        check("[::ffff:10.0.0.7]:8080", Ok(8080));
        check("cart.shop.svc.cluster.local:80", Ok(8080));
        check("cart.shop.svc.cluster.local:81", Err(Refused::Host));
        check("Cart.shop.svc.cluster.local:80", Err(Refused::Host));
        check("10.0.0.8:8080", Err(Refused::Address));
        check("127.0.0.1:8080", Err(Refused::Address));
        check("[::1]:8080", Err(Refused::Address));
        check("10.0.0.7:15001", Err(Refused::Reserved));
        check("10.0.0.7:15006", Err(Refused::Reserved));
        check("10.0.0.7:15008", Err(Refused::Reserved));
        check("loop.shop.svc.cluster.local:80", Err(Refused::Reserved));
    }

    #[test]
    fn what_is_no_authority() {
        for bad in [
            "",
            ":",
            ":80",
            "10.0.0.7",
            "10.0.0.7:",
            "10.0.0.7:0",
            "10.0.0.7:65536",
            "10.0.0.7:-1",
            "10.0.0.7:+80",
            "10.0.0.7:080a",
            "010.0.0.7:80",
            "10.0.7:80",
            "10.0.0.7.:80",
            "2001:db8::7:80",
            "[2001:db8::7]",
            "[2001:db8::7%eth0]:80",
            "cart",
            "cart:",
            "cart:99999",
            "cart shop:80",
            "user@cart:80",
            "http://cart:80",
            "cart/path:80",
            "cart\0:80",
            "[cart]:80",
        ] {
            check(bad, Err(Refused::Authority));
        }
        check(&format!("{}:80", "a".repeat(254)), Err(Refused::Authority));
        assert_eq!(port("CONNECT", None, &Cart { shared: false }), Err(Refused::Authority));
        for method in ["GET", "connect", "CONNECT ", "", "POST"] {
            assert_eq!(port(method, Some("10.0.0.7:80"), &Cart { shared: false }), Err(Refused::Method));
        }
    }

    #[test]
    fn a_workload_that_shares_its_address_has_its_own_ports_alone() {
        let asked = |authority| port("CONNECT", Some(authority), &Cart { shared: true });
        assert_eq!(asked("10.0.0.7:8080"), Ok(8080));
        assert_eq!(asked("10.0.0.7:22"), Err(Refused::Port));
    }

    #[test]
    fn reasons_are_unique() {
        let reasons: BTreeSet<_> = Refused::ALL.iter().map(|refused| refused.reason()).collect();
        assert_eq!(reasons.len(), Refused::ALL.len());
        assert!(Refused::ALL.iter().all(|refused| (400..600).contains(&refused.status())));
    }

    proptest! {
        #[test]
        fn no_authority_leads_elsewhere(authority in "[ -~]{0,40}|[0-9.:\\[\\]a-f]{0,30}|10\\.0\\.0\\.7:[0-9]{0,7}") {
            if let Ok(port) = port("CONNECT", Some(&authority), &Cart { shared: false }) {
                prop_assert!(!RESERVED.contains(&port) && port != 0);
                let own = authority.parse::<SocketAddr>();
                let named = authority == "cart.shop.svc.cluster.local:80";
                let at = own.is_ok_and(|own| Cart { shared: false }.is_at(own.ip().to_canonical()));
                prop_assert!(at || named, "{}", authority);
            }
        }
    }
}

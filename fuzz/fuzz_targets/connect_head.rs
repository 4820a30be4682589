//! The head of a CONNECT: whatever is asked for, what is dialled is a port of the workload that no mesh has to itself.
//!
//! Input: a byte for the method, then the authority as it stands in the head.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use mesh_core::hbone::{self, Called, RESERVED, Refused};

const V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
const SERVED: (&str, u16, u16) = ("cart.shop.svc.cluster.local", 80, 8080);

/// A workload with an address of its own, or one that shares it and has one port.
struct Workload {
    shares: bool,
}

impl Called for Workload {
    fn is_at(&self, address: IpAddr) -> bool {
        address == V4 || address == V6
    }

    fn has(&self, port: u16) -> bool {
        !self.shares || port == SERVED.2
    }

    fn serves(&self, host: &str, port: u16) -> Option<u16> {
        (host == SERVED.0 && port == SERVED.1).then_some(SERVED.2)
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((method, authority)) = input.split_first() else { return };
    let method = if method % 8 == 0 { "GET" } else { "CONNECT" };
    // As it comes out of a head that HTTP/2 has taken.
    let authority = http::uri::Authority::try_from(authority).ok();
    let text = authority.as_ref().map(http::uri::Authority::as_str);
    for shares in [false, true] {
        let asked = hbone::port(method, text, &Workload { shares });
        let Ok(port) = asked else {
            let refused = asked.unwrap_err();
            assert!(matches!(refused.status(), 400 | 503), "{refused:?}");
            assert!(method == "CONNECT" || refused == Refused::Method);
            continue;
        };
        assert!(method == "CONNECT" && port != 0 && !RESERVED.contains(&port));
        assert!(!shares || port == SERVED.2);
        let text = text.unwrap_or_default();
        match text.parse::<std::net::SocketAddr>() {
            Ok(address) => {
                let own = address.ip().to_canonical();
                assert!(own == V4 || own == V6, "{text}");
                assert_eq!(address.port(), port);
            }
            Err(_) => assert_eq!(port, SERVED.2, "{text}"),
        }
    }
});

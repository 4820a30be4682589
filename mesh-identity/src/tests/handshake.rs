//! Whole handshakes, in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::spiffe::SpiffeId;
use rustls::{ClientConnection, Connection, Error, HandshakeKind, ServerConnection};

use crate::maker::{Authority, Leaf};
use crate::verify::Roots;
use crate::{Fault, Refused, Svid, tls};

const CART: &str = "spiffe://mesh.local/ns/shop/sa/cart";
const PAY: &str = "spiffe://mesh.local/ns/shop/sa/pay";

struct Side {
    svid: Svid,
    roots: Arc<Roots>,
}

fn side(authority: &Authority, believes: &Authority, id: &str) -> Side {
    let svid = authority.svid(&Leaf::of(id, SystemTime::now()));
    Side { svid, roots: Arc::new(Roots::new(&believes.bundle("mesh.local")).unwrap()) }
}

/// Moves bytes until both ends are done; how each end fared.
fn shake(client: &mut Connection, server: &mut Connection) -> (Result<(), Error>, Result<(), Error>) {
    fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), Error> {
        let mut bytes = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }
    let (mut ours, mut theirs) = (Ok(()), Ok(()));
    for _ in 0..4 {
        if theirs.is_ok() {
            theirs = carry(client, server);
        }
        if ours.is_ok() {
            ours = carry(server, client);
        }
    }
    (ours, theirs)
}

fn pair(client: &Side, server: &Side, expected: &str) -> (Connection, Connection) {
    let provider = tls::provider();
    let expected: SpiffeId = expected.parse().unwrap();
    let ours = tls::client(&provider, &client.svid, &client.roots, vec![expected]).unwrap();
    let theirs = tls::server(&provider, &server.svid, &server.roots).unwrap();
    (
        ClientConnection::new(Arc::new(ours), tls::server_name("shop/cart-1")).unwrap().into(),
        ServerConnection::new(Arc::new(theirs)).unwrap().into(),
    )
}

#[test]
fn both_ends_prove_who_they_are() {
    let authority = Authority::new("root", SystemTime::now());
    let (pay, cart) = (side(&authority, &authority, PAY), side(&authority, &authority, CART));
    let (mut client, mut server) = pair(&pay, &cart, CART);
    assert_eq!(shake(&mut client, &mut server), (Ok(()), Ok(())));
    for end in [&client, &server] {
        assert_eq!(end.alpn_protocol(), Some(tls::ALPN));
        assert_eq!(end.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(end.handshake_kind(), Some(HandshakeKind::Full));
    }
    let Connection::Server(server) = server else { unreachable!() };
    assert_eq!(server.server_name(), Some("cart-1.shop.workload"));
    let Connection::Client(client) = client else { unreachable!() };
    assert_eq!(client.tls13_tickets_received(), 0);
}

#[test]
fn faults_are_named_on_both_ends() {
    let (authority, other) =
        (Authority::new("root", SystemTime::now()), Authority::new("other", SystemTime::now()));
    let good = |id| side(&authority, &authority, id);
    let fault = |result: Result<(), Error>| result.err().and_then(|error| Fault::of(&error));
    let check = |client: &Side, server: &Side, want: (Option<Fault>, Option<Fault>)| {
        let (mut client, mut server) = pair(client, server, CART);
        let (ours, theirs) = shake(&mut client, &mut server);
        assert_eq!((fault(ours), fault(theirs)), want);
    };
    let both = |theirs, ours| (Some(Fault::Theirs(theirs)), Some(Fault::Ours(ours)));
    // What the client finds of the server.
    check(&good(PAY), &good(PAY), both(Refused::WrongIdentity, Refused::WrongIdentity));
    check(&side(&authority, &other, PAY), &good(CART), both(Refused::UnknownCa, Refused::UnknownCa));
    // What the server finds of the client: the client hears it once it reads.
    let swapped = |ours, theirs| (Some(Fault::Ours(ours)), Some(Fault::Theirs(theirs)));
    check(&side(&other, &authority, PAY), &good(CART), swapped(Refused::UnknownCa, Refused::UnknownCa));
    let mut old = good(PAY);
    let mut leaf = Leaf::of(PAY, SystemTime::now());
    leaf.valid.1 = SystemTime::now() - Duration::from_mins(1);
    old.svid = authority.svid(&leaf);
    check(&old, &good(CART), swapped(Refused::Expired, Refused::Expired));
    let mut foreign = good(PAY);
    foreign.svid = authority.svid(&Leaf::of("spiffe://else/ns/a/sa/b", SystemTime::now()));
    check(&foreign, &good(CART), swapped(Refused::WrongIdentity, Refused::WrongTrustDomain));
}

#[test]
fn who_shows_nothing_is_refused() {
    let authority = Authority::new("root", SystemTime::now());
    let cart = side(&authority, &authority, CART);
    let provider = tls::provider();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root.clone()).unwrap();
    let none = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = tls::server(&provider, &cart.svid, &cart.roots).unwrap();
    let mut client: Connection =
        ClientConnection::new(Arc::new(none), "cart.shop.mesh".try_into().unwrap()).unwrap().into();
    let mut server: Connection = ServerConnection::new(Arc::new(server)).unwrap().into();
    let (_, theirs) = shake(&mut client, &mut server);
    assert!(theirs.is_err() || server.is_handshaking(), "{theirs:?}");
}

#[test]
fn a_workload_without_a_name_for_dns_is_not_named() {
    assert_eq!(tls::server_name("shop/cart").to_str(), "cart.shop.workload");
    assert_eq!(tls::server_name("shop/not a name").to_str(), "0.0.0.0");
    assert_eq!(tls::server_name("").to_str(), "0.0.0.0");
}

//! Connections of TLS that go by the name that is asked for.

use mesh_api::proto::v1::Protocol;
use mesh_core::route::{Backend, RouteSpec, RouteTable, RuleSpec};

use super::rig::*;
use crate::path::{Budget, Limits};

/// A ClientHello in records of at most so many bytes.
fn hello(name: Option<&str>, most: usize) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let sni =
        |name: &str| [&[0, 0][..], &sized(&sized(&[&[0][..], &sized(name.as_bytes())].concat()))].concat();
    let extensions = sized(&name.map(sni).unwrap_or_default());
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    message.chunks(most).flat_map(|part| [&[22, 3, 1][..], &sized(part)].concat()).collect()
}

/// A server that says its name and sends back what it was sent.
fn echo(name: &'static str, length: usize) -> std::net::SocketAddr {
    server(move |mut client| {
        let said = client.take(length);
        client.send(name);
        client.send(said);
        client.rest();
    })
}

fn rig(services: &[&[std::net::SocketAddr]], hosts: &[&str]) -> Rig {
    let specs: Vec<RouteSpec> = (2..)
        .zip(hosts)
        .map(|(id, host)| RouteSpec {
            name: format!("d/{id}").into(),
            created_ms: 0,
            hostnames: vec![(*host).to_owned()],
            rules: vec![RuleSpec {
                backends: vec![Backend { service: Some(id), weight: 1, edits: None }],
                ..RuleSpec::default()
            }],
        })
        .collect();
    let mut all = vec![routed(service(1, Protocol::Tls, &[]), RouteTable::new(&specs))];
    all.extend((2..).zip(services).map(|(id, endpoints)| service(id, Protocol::Tls, endpoints)));
    Rig::new(all, Limits::default(), Budget::default())
}

#[test]
fn the_name_chooses_and_every_byte_goes_on_as_it_came() {
    let (plain, wild) = (hello(Some("a.example"), 1000), hello(Some("x.b.example"), 7));
    let rig =
        rig(&[&[nobody(), echo("a", plain.len())], &[echo("b", wild.len())]], &["a.example", "*.b.example"]);
    for _ in 0..4 {
        let mut client = rig.connect();
        client.send(&plain);
        assert_eq!(client.take(1), b"a");
        assert_eq!(client.take(plain.len()), plain);
    }
    // A byte at a time, over many records.
    let mut client = rig.connect();
    for byte in &wild {
        client.send([*byte]);
    }
    assert_eq!(client.take(1), b"b");
    assert_eq!(client.take(wild.len()), wild);
    drop(client);
    eventually("they are counted", || rig.counted(0, "") == 5);
}

#[test]
fn a_name_that_nobody_has_is_an_alert_and_what_is_no_tls_a_reset() {
    let rig = rig(&[&[named("a")]], &["a.example"]);
    for (name, reason) in [(Some("b.example"), "no_route"), (None, "tls_no_name")] {
        let mut client = rig.connect();
        client.send(hello(name, 1000));
        assert_eq!(client.rest(), [21, 3, 3, 0, 2, 2, 112], "unrecognized_name");
        drop(client);
        eventually("it is counted", || rig.counted(0, reason) == 1);
    }
    let mut client = rig.connect();
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert!(client.is_reset());
    eventually("it is counted", || rig.counted(0, "not_tls") == 1);
    let rig = self::rig(&[&[nobody()]], &["a.example"]);
    let mut client = rig.connect();
    client.send(hello(Some("a.example"), 1000));
    assert!(client.is_reset());
    eventually("it is counted", || rig.counted(0, "connect_refused") == 1);
}

//! What is on the way of every request allocates nothing: finding its route, reading its head, writing it anew.

use allocation_counter::measure;
use mesh_core::http1::{HeadScan, Limits, RequestEdits, Side, parse_request, write_request};
use mesh_core::route::{Backend, Edits, PathMatch, RouteSpec, RouteTable, RuleSpec};

const REQUEST: &[u8] = b"GET /service-7/item/4207?q=1 HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n\
    Connection: keep-alive, x-own\r\nX-Own: 1\r\nCookie: a=b\r\n\r\n";

/// 10 000 rules, half of them exact, half prefixes.
fn table() -> RouteTable {
    let rule = |n: usize| {
        let path = format!("/service-{}/item/{n}", n % 100);
        let path = if n.is_multiple_of(2) { PathMatch::Exact(path) } else { PathMatch::Prefix(path) };
        RuleSpec {
            matches: vec![path.into()],
            backends: vec![Backend { service: Some(1), weight: 1, edits: None }],
            edits: Edits::default(),
            action: None,
        }
    };
    let rules = (0..10_000).map(rule).collect();
    RouteTable::new(&[RouteSpec { name: "d/all".into(), created_ms: 0, hostnames: Vec::new(), rules }])
}

#[test]
fn a_route_among_ten_thousand_is_found_without_an_allocation() {
    let (table, limits) = (table(), Limits::default());
    let head = parse_request(REQUEST, &limits).unwrap();
    let counted = measure(|| assert!(table.find(&head).is_some()));
    assert_eq!(counted.count_total, 0);
    // It counts at all.
    assert!(measure(|| drop(vec![0_u8; 8])).count_total > 0);
}

#[test]
fn a_head_is_read_and_written_without_an_allocation() {
    let limits = Limits::default();
    let mut out = Vec::with_capacity(4096);
    let counted = measure(|| {
        let end = HeadScan::new(Side::Client).end(REQUEST, &limits).unwrap().unwrap();
        let head = parse_request(&REQUEST[..end], &limits).unwrap();
        write_request(&head, &RequestEdits::default(), &mut out);
    });
    assert_eq!(counted.count_total, 0);
    assert!(out.starts_with(b"GET /service-7/item/4207?q=1 HTTP/1.1\r\n"));
}

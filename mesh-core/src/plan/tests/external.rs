//! What the maps say of what is outside of the mesh: nobody is led there plainly who was to go in TLS.

use mesh_api::proto::v1::{self, Protocol};
use mesh_common::record::flags;

use super::{Capacities, Node};
use crate::compile::tests::external::external;
use crate::compile::tests::{of, service};

#[test]
fn every_table_that_leads_to_tls_says_that_it_takes_the_proxy() {
    let mut node = Node::new(Capacities::default());
    let route = v1::TcpRoute {
        namespace: "d".into(),
        name: "r".into(),
        parents: vec![v1::ServiceRef { namespace: "d".into(), service: "db".into(), port: 0 }],
        backends: vec![v1::WeightedBackend {
            backend: Some(v1::ServiceRef { namespace: "d".into(), service: "api".into(), port: 80 }),
            weight: 1,
        }],
        created_ms: 1,
    };
    let db = service("db", &["240.0.0.1"], 80, Protocol::Tcp);
    let mut api = external("api", &["a.example"], &["192.0.2.1"], "a.example");
    node.put(vec![of(db), of(api.clone()), of(route)]);
    let slot = |node: &Node, vip: &str| node.maps.slots[node.entry(vip, 80).table as usize].unwrap().flags;
    assert_eq!(node.entry("240.240.1.1", 80).flags & (flags::PROXY | flags::BYPASS), flags::PROXY);
    assert_eq!((slot(&node, "240.240.1.1"), slot(&node, "240.0.0.1")), (flags::PROXY, flags::PROXY));
    assert_eq!(node.direct("192.0.2.1", 443).flags, 0, "who dials the address speaks for himself");
    assert!(!node.maps.workloads.keys().any(|key| key.port_be == 0), "at its ports alone");
    (api.ports[0].tls, api.ports[0].protocol) = (None, Protocol::Tcp.into());
    node.put(vec![of(api)]);
    assert_eq!((slot(&node, "240.240.1.1"), slot(&node, "240.0.0.1")), (0, 0));
}

//! `EnvoyResources`: bad input.

use super::*;

fn edge(spec: impl Into<Value>) -> Value {
    let spec = spec.into();
    json!({"apiVersion": "nodemesh.io/v1", "kind": "EnvoyResources", "metadata": {"name": "edge"}, "spec": spec})
}

pub(super) fn examples() -> Vec<Value> {
    vec![edge(json!({
        "nodeType": "edge",
        "gateway": {
            "address": "::", "port": 8443, "tls": {"certificateFile": "/etc/c.pem", "keyFile": "/etc/k.pem"},
            "services": [{"namespace": "shop", "name": "web", "port": 80, "hosts": ["shop.example", "*"]}],
        },
        "listeners": [{"name": "l", "address": {}}],
        "clusters": [{"name": "c", "type": "STATIC"}],
        "routes": [{"name": "r"}],
        "endpoints": [{"cluster_name": "c", "endpoints": "{{endpoints shop/web 80}}"}],
        "secrets": [{"name": "s", "tls_certificate": {"private_key": {"filename": "/k"}}}],
    }))]
}

fn gateway(pointer: &str, to: Value) -> Value {
    let mut all = edge(json!({"gateway": {
        "port": 8080, "tls": {"certificateFile": "/c", "keyFile": "/k"},
        "services": [{"name": "web", "port": 80, "hosts": ["a.example"]}, {"name": "api", "port": 80}],
    }}));
    *all.pointer_mut(&format!("/spec/gateway/{pointer}")).unwrap() = to;
    all
}

#[test]
fn a_gateway_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&gateway("port", json!(0)), OutOfRange, "spec.gateway.port");
    refuses(&gateway("services", json!([])), OutOfRange, "spec.gateway.services");
    refuses(&gateway("services/0/name", json!("W")), BadFormat, "spec.gateway.services[0].name");
    refuses(&gateway("services/0/hosts/0", json!("A.b")), BadFormat, "spec.gateway.services[0].hosts[0]");
    let twice = gateway("services/1", json!({"name": "api", "port": 80, "hosts": ["a.example"]}));
    refuses(&twice, Conflict, "spec.gateway.services[1].hosts[0]");
    refuses(&gateway("tls/keyFile", json!("k")), BadFormat, "spec.gateway.tls.keyFile");
    refuses(&gateway("tls", json!({"secret": "x"})), NotBuiltYet, "spec.gateway.tls.secret");
}

#[test]
fn raw_resources_have_names_and_no_keys() {
    use Reason::*;
    refuses(&edge(json!({"clusters": [{}]})), MissingField, "spec.clusters[0].name");
    refuses(&edge(json!({"endpoints": [{"name": "x"}]})), MissingField, "spec.endpoints[0].cluster_name");
    refuses(&edge(json!({"routes": [{"name": "x"}, {"name": "x"}]})), Conflict, "spec.routes[1].name");
    refuses(&edge(json!({"listeners": ["x"]})), WrongType, "spec.listeners[0]");
    refuses(&edge(json!({"runtimes": []})), NotBuiltYet, "spec.runtimes");
    let key = json!({"name": "s", "tls_certificate": {"private_key": {"inline_string": "-----BEGIN"}}});
    let path = "spec.secrets[0].tls_certificate.private_key.inline_string";
    refuses(&edge(json!({"secrets": [key]})), BadFormat, path);
    let mut dashed = edge(json!({}));
    dashed["metadata"]["name"] = json!("front-proxy");
    refuses(&dashed, BadFormat, "metadata.name");
    dashed["spec"]["nodeType"] = json!("FrontProxy");
    assert!(Resource::parse(&dashed).is_ok());
    refuses(&edge(json!({"nodeType": "front-proxy"})), BadFormat, "spec.nodeType");
}

#[test]
fn a_nodes_type_is_what_its_id_begins_with() {
    for (id, of) in [("edge-1", "edge"), ("edge", "edge"), ("a-b-c", "a"), ("-x", ""), ("", "")] {
        assert_eq!(node_type_of(id), of, "{id}");
    }
}

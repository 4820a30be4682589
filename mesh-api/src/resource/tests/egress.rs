//! External services and what may be opened to the outside: bad input.

use super::*;

/// Of [`examples`].
const MANY: usize = 18;
const PLAIN: usize = 19;

#[test]
fn an_external_service_is_refused_where_it_is_wrong() {
    use Reason::*;
    let hosts =
        ["*.example.com", "192.0.2.1", "2001:db8::1", "API.example", "a..b", "web.default.mesh", "localhost"];
    for host in hosts {
        refuses(&changed(MANY, "/spec/hosts/1", json!(host)), BadFormat, "spec.hosts[1]");
    }
    refuses(&changed(MANY, "/spec/hosts/1", json!("api.example.com")), Conflict, "spec.hosts[1]");
    for address in ["192.0.2.0/24", "127.0.0.1", "224.0.0.1", "fe80::1", "api.example.com"] {
        refuses(&changed(MANY, "/spec/addresses/1", json!(address)), BadFormat, "spec.addresses[1]");
    }
    refuses(&changed(MANY, "/spec/addresses/1", json!("192.0.2.1")), Conflict, "spec.addresses[1]");
    refuses(&changed(PLAIN, "/spec/addresses", Value::Null), MissingField, "spec.hosts");
    refuses(&changed(PLAIN, "/spec/ports", json!([])), OutOfRange, "spec.ports");
    refuses(&changed(PLAIN, "/spec/ports/0/port", json!(0)), OutOfRange, "spec.ports[0].port");
    refuses(&changed(PLAIN, "/spec/ports/0/protocol", json!("udp")), NotBuiltYet, "spec.ports[0].protocol");
    refuses(&changed(MANY, "/spec/ports/1/port", json!(80)), Conflict, "spec.ports[1].port");
    refuses(&changed(MANY, "/spec/ports/1/name", json!("http")), Conflict, "spec.ports[1].name");
    refuses(&changed(MANY, "/spec/ports/1/name", Value::Null), MissingField, "spec.ports[1].name");
    refuses(&changed(MANY, "/spec/exportTo", json!(["a"])), NotBuiltYet, "spec.exportTo");
}

#[test]
fn origination_of_tls_is_refused_where_it_is_wrong() {
    use Reason::*;
    let tls = |field: &str, to: Value| changed(MANY, &format!("/spec/ports/0/tls/{field}"), to);
    let at = |field: &str| format!("spec.ports[0].tls.{field}");
    refuses(&tls("mode", json!("simple")), BadFormat, &at("mode"));
    refuses(&tls("mode", Value::Null), MissingField, &at("mode"));
    refuses(&tls("sni", json!("192.0.2.1")), BadFormat, &at("sni"));
    refuses(&tls("caFile", json!("ca.pem")), BadFormat, &at("caFile"));
    refuses(&tls("caFile", json!("/etc/../ca.pem")), BadFormat, &at("caFile"));
    refuses(&tls("caBundle", json!("no PEM")), BadFormat, &at("caBundle"));
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    refuses(&tls("caBundle", json!(key)), BadFormat, &at("caBundle"));
    refuses(&tls("caBundle", json!(key.replace("PRIVATE KEY", "CERTIFICATE"))), Conflict, &at("caFile"));
    refuses(&tls("subjectAltNames", json!(["spiffe://a/b"])), BadFormat, &at("subjectAltNames[0]"));
    refuses(&tls("alpn", json!(["h2"])), NotBuiltYet, &at("alpn[0]"));
    refuses(&tls("clientCertificate", json!("own")), BadFormat, &at("clientCertificate"));
    refuses(&tls("keyFile", json!("/k")), NotBuiltYet, &at("keyFile"));
    refuses(&tls("ciphers", json!("all")), UnknownField, &at("ciphers"));
    let twice = changed(MANY, "/spec/ports/1/tls", json!({"mode": "originate"}));
    refuses(&twice, Conflict, "spec.ports[1].tls");
    let nameless = changed(PLAIN, "/spec/ports/0/tls", json!({"mode": "originate"}));
    refuses(&nameless, MissingField, "spec.ports[0].tls.sni");
    refuses(&changed(17, "/spec/egress", json!("allowList")), WrongType, "spec.egress");
    refuses(&changed(17, "/spec/egress/mode", json!("deny")), BadFormat, "spec.egress.mode");
    refuses(&changed(16, "/spec/egress", json!({})), MissingField, "spec.egress.mode");

    let many = Resource::parse(&examples()[MANY]).unwrap();
    let Wire::ExternalService(many) = wire(&many, vec![]) else { panic!("an external service") };
    let tls = |i: usize| many.ports[i].tls.clone();
    assert_eq!(tls(2).unwrap().sni, "api.example.com", "the first host");
    assert!(tls(1).is_none() && tls(0).unwrap().client_certificate);
    let Wire::Mesh(mesh) = wire(&Resource::parse(&examples()[17]).unwrap(), vec![]) else { panic!("a mesh") };
    assert_eq!(mesh.egress(), v1::EgressMode::AllowList);
}

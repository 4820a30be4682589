//! Providers of tokens, and what policies ask of tokens.

use super::*;

const KEYS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}"#;

/// With everything that a provider and a policy can say.
pub(super) fn examples() -> Vec<Value> {
    let shop = json!({
        "name": "shop", "issuer": "https://id.example", "audiences": ["shop", "cart"],
        "jwks": {"url": "https://id.example/keys", "ca": "-----BEGIN CERTIFICATE-----\n"},
        "fromHeaders": [{"name": "X-Token"}, {"name": "authorization", "prefix": "Bearer "}],
        "forward": false, "clockSkew": "5s",
        "claimsToHeaders": [{"claim": "realm.roles", "header": "x-roles"}],
    });
    vec![
        object(
            "Mesh",
            &json!({"jwtProviders": [
                shop,
                {"name": "ops", "issuer": "ops", "jwks": {"file": "ops.json"}},
                {"name": "here", "issuer": "here", "jwks": {"inline": KEYS}},
            ]}),
        ),
        object(
            "AuthorizationPolicy",
            &json!({"rules": [{"from": [{"jwt": {
                "provider": "shop", "subjects": ["alice"], "claims": [{"name": "realm.roles", "values": ["admin"]}],
            }}]}]}),
        ),
    ]
}

fn provider(pointer: &str, to: Value) -> Value {
    let mut mesh = examples()[0].clone();
    set(&mut mesh, &format!("/spec/jwtProviders/0{pointer}"), to);
    mesh
}

fn set(value: &mut Value, pointer: &str, to: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = value.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"));
    match parent {
        Value::Array(list) => list[field.parse::<usize>().unwrap()] = to,
        parent => parent[field] = to,
    }
}

#[test]
fn a_provider_is_refused_where_it_is_wrong() {
    use Reason::*;
    let at = |field: &str| format!("spec.jwtProviders[0].{field}");
    refuses(&provider("/fromParams", json!(["token"])), NotBuiltYet, &at("fromParams"));
    refuses(&provider("/name", json!("ops")), Conflict, "spec.jwtProviders[1].name");
    refuses(&provider("/name", json!("A b")), BadFormat, &at("name"));
    refuses(&provider("/issuer", json!("")), BadFormat, &at("issuer"));
    refuses(&provider("/issuer", Value::Null), MissingField, &at("issuer"));
    refuses(&provider("/audiences", json!("shop")), WrongType, &at("audiences"));
    refuses(&provider("/clockSkew", json!("1h")), OutOfRange, &at("clockSkew"));
    for header in ["host", "Content-Length", "a b", "", "x-mesh-reason", "proxy-authorization"] {
        refuses(&provider("/fromHeaders/0/name", json!(header)), BadFormat, &at("fromHeaders[0].name"));
        let to = provider("/claimsToHeaders/0/header", json!(header));
        refuses(&to, BadFormat, &at("claimsToHeaders[0].header"));
    }
    refuses(&provider("/jwks", json!({})), MissingField, &at("jwks"));
    refuses(&provider("/jwks", json!({"file": "a", "url": "https://a"})), Conflict, &at("jwks"));
    refuses(&provider("/jwks", json!({"file": "a", "ca": "b"})), Conflict, &at("jwks.ca"));
    for file in ["/etc/shadow", "../a", ".hidden", "a/b", ""] {
        refuses(&provider("/jwks", json!({"file": file})), BadFormat, &at("jwks.file"));
    }
    for url in ["ftp://a", "https://", "https://u:p@a/b", "https://a/#b", "a", "file:///etc/shadow"] {
        refuses(&provider("/jwks", json!({"url": url})), BadFormat, &at("jwks.url"));
    }
    for set in ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#] {
        refuses(&provider("/jwks", json!({"inline": set})), BadFormat, &at("jwks.inline"));
    }
    // A secret is not repeated.
    let private = KEYS.replace(r#""kid""#, r#""d": "c2VjcmV0", "kid""#);
    let both = format!("{},{}", &private[..private.len() - 2], &KEYS[KEYS.find("[{").unwrap() + 1..]);
    let error = Resource::parse(&provider("/jwks", json!({"inline": both}))).unwrap_err();
    assert!(error.message.contains("secret") && !error.message.contains("c2VjcmV0"), "{error}");
}

#[test]
fn terms_are_refused_where_they_are_wrong() {
    use Reason::*;
    let terms = |to: Value| {
        let mut policy = examples()[1].clone();
        set(&mut policy, "/spec/rules/0/from/0/jwt", to);
        policy
    };
    let at = |field: &str| format!("spec.rules[0].from[0].jwt.{field}");
    refuses(&terms(json!({})), MissingField, &at("provider"));
    refuses(&terms(json!({"provider": "a", "subjects": []})), OutOfRange, &at("subjects"));
    refuses(&terms(json!({"provider": "a", "notSubjects": ["a"]})), NotBuiltYet, &at("notSubjects"));
    refuses(
        &terms(json!({"provider": "a", "claims": [{"name": "a"}]})),
        MissingField,
        &at("claims[0].values"),
    );
    refuses(
        &terms(json!({"provider": "a", "claims": [{"values": ["a"]}]})),
        MissingField,
        &at("claims[0].name"),
    );
}

#[test]
fn they_become_wire_messages() {
    let parse = |i: usize| Resource::parse(&examples()[i]).unwrap();
    let Wire::Mesh(mesh) = wire(&parse(0), vec![]) else { panic!("the mesh") };
    let shop = &mesh.jwt_providers[0];
    assert_eq!((&*shop.headers[0].name, &*shop.headers[1].prefix), ("x-token", "Bearer "));
    assert_eq!((shop.clock_skew_ms, shop.forward), (5000, false));
    assert_eq!(
        (&*shop.claims_to_headers[0].claim, &*shop.claims_to_headers[0].header),
        ("realm.roles", "x-roles")
    );
    let ops = &mesh.jwt_providers[1];
    assert_eq!((&*ops.headers[0].name, &*ops.headers[0].prefix), ("authorization", "Bearer "));
    assert_eq!((ops.clock_skew_ms, ops.forward), (60_000, true));
    let Wire::AuthorizationPolicy(policy) = wire(&parse(1), vec![]) else { panic!("a policy") };
    let jwt = policy.rules[0].from[0].jwt.clone().unwrap();
    assert_eq!((&*jwt.provider, &*jwt.subjects[0], &*jwt.claims[0].values[0]), ("shop", "alice", "admin"));
}

//! HTTP routes that are refused, and where.

use super::*;

pub(super) fn examples() -> Vec<Value> {
    vec![
        object(
            "GRPCRoute",
            &json!({
                "parentRefs": [
                    {"kind": "Service", "name": "cart", "port": 80},
                    {"kind": "Service", "name": "pay", "namespace": "bank"},
                ],
                "hostnames": ["cart.example"],
                "rules": [
                    {
                        "name": "reads",
                        "matches": [
                            {"method": {"service": "shop.Cart", "method": "Get"}, "headers": [{"name": "x-v", "value": "1"}]},
                            {"method": {"type": "RegularExpression", "service": "shop\\..*", "method": "List.*"}},
                            {"method": {"type": "Exact", "method": "Ping"}},
                            {},
                        ],
                        "filters": [
                            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x-c"]}},
                            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "x-by", "value": "r"}]}},
                            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "dark", "port": 80}, "fraction": {"numerator": 1, "denominator": 10}}},
                        ],
                        "backendRefs": [{
                            "name": "v1", "port": 80, "weight": 3,
                            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "x-v", "value": "1"}]}}],
                        }],
                    },
                    {},
                ],
            }),
        ),
        object(
            "TLSRoute",
            &json!({
                "parentRefs": [{"kind": "Service", "name": "web", "port": 443}],
                "hostnames": ["a.example", "*.b.example"],
                "rules": [{"backendRefs": [{"name": "v1", "port": 443, "weight": 9}, {"name": "v2", "port": 443}]}],
            }),
        ),
        object(
            "HTTPRoute",
            &json!({
                "parentRefs": [{"kind": "Service", "name": "pay", "namespace": "bank", "port": 80}],
                "rules": [{"filters": [{
                    "type": "DirectResponse",
                    "directResponse": {"statusCode": 503, "contentType": "application/json", "body": "{}"},
                }]}],
            }),
        ),
        object("Service", &json!({"ports": [{"port": 3306, "protocol": "auto"}]})),
    ]
}

/// The example of a kind, with one place of it changed.
fn own(kind: &str, pointer: &str, to: Value) -> Value {
    let all = super::examples();
    let found = all.iter().rposition(|example| example["kind"] == kind).expect("an example");
    changed(found, pointer, to)
}

#[test]
fn routes_of_grpc_and_tls_are_refused_where_they_are_wrong() {
    use Reason::*;
    let method = "/spec/rules/0/matches/0/method";
    let at = "spec.rules[0].matches[0].method";
    for (name, refused) in
        [("shop/Cart", true), ("1a.B", true), ("a..B", true), (".a.B", false), ("A_1", false)]
    {
        let route = own("GRPCRoute", &format!("{method}/service"), json!(name));
        if refused {
            refuses(&route, BadFormat, &format!("{at}.service"));
        } else {
            Resource::parse(&route).unwrap();
        }
    }
    refuses(&own("GRPCRoute", &format!("{method}/method"), json!("a.b")), BadFormat, &format!("{at}.method"));
    refuses(&own("GRPCRoute", method, json!({})), MissingField, at);
    let broken = own("GRPCRoute", "/spec/rules/0/matches/1/method/service", json!("(a"));
    refuses(&broken, BadFormat, "spec.rules[0].matches[1].method.service");
    for filter in ["URLRewrite", "RequestRedirect", "DirectResponse"] {
        let route = own("GRPCRoute", "/spec/rules/0/filters/0/type", json!(filter));
        refuses(&route, BadFormat, "spec.rules[0].filters[0].type");
    }
    let path = own("GRPCRoute", "/spec/rules/0/matches/0/path", json!({"value": "/a"}));
    refuses(&path, UnknownField, "spec.rules[0].matches[0].path");
    refuses(&own("TLSRoute", "/spec/hostnames", json!([])), OutOfRange, "spec.hostnames");
    refuses(&own("TLSRoute", "/spec/hostnames", Value::Null), MissingField, "spec.hostnames");
    let other = own("TLSRoute", "/spec/parentRefs/0/namespace", json!("x"));
    refuses(&other, NotBuiltYet, "spec.parentRefs[0].namespace");
}

#[test]
fn an_answer_stands_alone_and_is_one_that_http_has() {
    use Reason::*;
    let rule = "/spec/rules/0";
    let to = "filters/0/directResponse";
    let path = |field: &str| format!("spec.rules[0].filters[0].directResponse.{field}");
    let changed = |at: &str, value: Value| own("HTTPRoute", &format!("{rule}/{at}"), value);
    refuses(&changed(&format!("{to}/statusCode"), json!(101)), OutOfRange, &path("statusCode"));
    refuses(&changed(&format!("{to}/statusCode"), json!(204)), Conflict, &path("body"));
    refuses(&changed(&format!("{to}/body"), json!("x".repeat(4097))), BadFormat, &path("body"));
    refuses(&changed(&format!("{to}/contentType"), json!("a\r\nb: c")), BadFormat, &path("contentType"));
    let backends = changed("backendRefs", json!([{"name": "a", "port": 1}]));
    refuses(&backends, Conflict, "spec.rules[0].backendRefs");
}

#[test]
fn a_route_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&changed(4, "/spec/parentRefs/0/kind", json!("Gateway")), NotBuiltYet, "spec.parentRefs[0].kind");
    refuses(&changed(4, "/spec/hostnames/0", json!("10.0.0.1")), BadFormat, "spec.hostnames[0]");
    let unbuilt = changed(4, "/spec/rules/0/sessionPersistence", json!({}));
    refuses(&unbuilt, NotBuiltYet, "spec.rules[0].sessionPersistence");
    for bad in ["a", "//", "/a/../b", "/a%2Fb", "/a?b", "/a b", "", "/.."] {
        let at = "/spec/rules/0/matches/0/path/value";
        refuses(&changed(4, at, json!(bad)), BadFormat, "spec.rules[0].matches[0].path.value");
    }
    refuses(
        &changed(4, "/spec/rules/0/backendRefs/1/port", Value::Null),
        MissingField,
        "spec.rules[0].backendRefs[1].port",
    );
    let heavy = changed(4, "/spec/rules/0/backendRefs/0/weight", json!(1_000_001));
    refuses(&heavy, OutOfRange, "spec.rules[0].backendRefs[0].weight");
}

#[test]
fn what_a_rule_asks_of_requests_is_refused_where_it_is_wrong() {
    use Reason::*;
    let refused = |at: &str, value: Value, reason: Reason, path: &str| {
        refuses(&changed(4, &format!("/spec/rules/2/{at}"), value), reason, &format!("spec.rules[2].{path}"));
    };
    let regex = "matches/0/path/value";
    refused(regex, json!("("), BadFormat, "matches[0].path.value");
    refused(regex, json!("(?=a)"), BadFormat, "matches[0].path.value");
    refused(regex, json!("(a{1000}){1000}"), BadFormat, "matches[0].path.value");
    refused(regex, json!("a".repeat(1025)), OutOfRange, "matches[0].path.value");
    refused(regex, Value::Null, MissingField, "matches[0].path.value");
    refused("matches/0/method", json!("get"), BadFormat, "matches[0].method");
    refused("matches/0/headers/1/name", json!("X-Canary"), Conflict, "matches[0].headers[1].name");
    refused("matches/0/headers/0/name", json!("x canary"), BadFormat, "matches[0].headers[0].name");
    refused("matches/0/headers/0/value", json!("a\r\nb: c"), BadFormat, "matches[0].headers[0].value");
    refused("matches/0/headers/0/type", json!("Prefix"), BadFormat, "matches[0].headers[0].type");
    refused("matches/0/queryParams/0/name", json!("a b"), BadFormat, "matches[0].queryParams[0].name");
    refused("timeouts/request", json!("10"), BadFormat, "timeouts.request");
    refused("timeouts/backendRequest", json!("11s"), Conflict, "timeouts.backendRequest");
    refused("retry/codes/0", json!(200), OutOfRange, "retry.codes[0]");
    refused("retry/attempts", json!(0), OutOfRange, "retry.attempts");
    refused("retry/backoff", json!("2m"), OutOfRange, "retry.backoff");
}

#[test]
fn filters_are_refused_where_they_are_wrong() {
    use Reason::*;
    let refused = |at: &str, value: Value, reason: Reason, path: &str| {
        let path = format!("spec.rules[2].filters{path}");
        refuses(&changed(4, &format!("/spec/rules/2/filters{at}"), value), reason, &path);
    };
    refused("/0/type", json!("CORS"), NotBuiltYet, "[0].type");
    refused("/0/type", json!("URLRewrite"), Conflict, "[0].requestHeaderModifier");
    refused("/1/type", json!("RequestHeaderModifier"), Conflict, "[1].responseHeaderModifier");
    let set = "/0/requestHeaderModifier/set/0";
    for name in ["Host", "content-length", "Transfer-Encoding", "proxy-x", "connection"] {
        refused(&format!("{set}/name"), json!(name), BadFormat, "[0].requestHeaderModifier.set[0].name");
    }
    refused(&format!("{set}/name"), json!("X-C"), Conflict, "[0].requestHeaderModifier");
    refused(&format!("{set}/value"), json!("a\nb"), BadFormat, "[0].requestHeaderModifier.set[0].value");
    refused(&format!("{set}/value"), json!(" a"), BadFormat, "[0].requestHeaderModifier.set[0].value");
    refused("/2/urlRewrite/hostname", json!("*.example"), BadFormat, "[2].urlRewrite.hostname");
    let prefix = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"});
    refused("/2/urlRewrite/path", prefix, Conflict, "[2].urlRewrite.path.type");
    refused("/3/requestMirror/percent", json!(101), OutOfRange, "[3].requestMirror.percent");
    refused(
        "/4/requestMirror/fraction/numerator",
        json!(1001),
        OutOfRange,
        "[4].requestMirror.fraction.numerator",
    );
    refused("/4/requestMirror/percent", json!(1), Conflict, "[4].requestMirror.fraction");
    let redirect = |at: &str, value: Value| changed(4, &format!("/spec/rules/3/{at}"), value);
    let to = "filters/0/requestRedirect";
    let path = |field: &str| format!("spec.rules[3].filters[0].requestRedirect.{field}");
    refuses(&redirect(&format!("{to}/statusCode"), json!(304)), OutOfRange, &path("statusCode"));
    refuses(&redirect(&format!("{to}/scheme"), json!("ftp")), BadFormat, &path("scheme"));
    let backends = redirect("backendRefs", json!([{"name": "a", "port": 1}]));
    refuses(&backends, Conflict, "spec.rules[3].backendRefs");
    let own = changed(4, "/spec/rules/2/backendRefs/0/filters/0/type", json!("URLRewrite"));
    refuses(&own, NotBuiltYet, "spec.rules[2].backendRefs[0].filters[0].type");
    let l4 = changed(11, "/spec/rules/0/backendRefs/0/filters", json!([]));
    refuses(&l4, UnknownField, "spec.rules[0].backendRefs[0].filters");
}

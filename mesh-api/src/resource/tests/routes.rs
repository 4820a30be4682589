//! HTTP routes that are refused, and where.

use super::*;

#[test]
fn a_route_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&changed(4, "/spec/parentRefs/0/kind", json!("Gateway")), NotBuiltYet, "spec.parentRefs[0].kind");
    refuses(
        &changed(4, "/spec/parentRefs/0/namespace", json!("x")),
        NotBuiltYet,
        "spec.parentRefs[0].namespace",
    );
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

//! `healthCheck` and `recovery` of a `Service`.

use super::*;
use v1::{health_check::Probe, recovery_step::Action};

pub(super) fn examples() -> Vec<Value> {
    vec![
        object(
            "Service",
            &json!({
                "ports": [
                    {"name": "http", "port": 80, "healthCheck": {
                        "http": {
                            "path": "/ready?full", "port": 8081, "headers": [{"name": "Host", "value": "shop"}],
                            "expectedStatuses": [204, "300-399"],
                        },
                        "interval": "1s", "timeout": "500ms", "jitterPercent": 0, "healthyThreshold": 1,
                        "unhealthyThreshold": 5, "startupGrace": "0s",
                    }},
                    {"name": "dns", "port": 53, "protocol": "udp", "healthCheck": {"command": {"ref": "dig"}}},
                ],
                "healthCheck": {"grpc": {"service": "shop.Cart"}},
                "recovery": {
                    "steps": [
                        {"drain": {}}, {"after": 5, "eject": {}},
                        {"after": 6, "webhook": {"url": "https://ops.example/hook"}},
                        {"after": 10, "restart": {"ref": "restart-cart", "atMost": 2}},
                    ],
                    "readmit": {"afterPasses": 4},
                },
            }),
        ),
        object(
            "Service",
            &json!({"ports": [{"port": 80}], "healthCheck": {"http": {}}, "dns": {"ttl": "1m"}}),
        ),
        object("Mesh", &json!({"dns": {"ttl": "0s"}})),
        object(
            "Service",
            &json!({"ports": [{"port": 80}], "healthCheck": {"tcp": {"port": 81}}, "recovery": {}}),
        ),
    ]
}

#[track_caller]
fn check(change: &Value, reason: Reason, at: &str) {
    let mut spec = json!({"ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let error = Resource::parse(&object("Service", &spec)).expect_err("refused");
    assert_eq!((error.reason, error.path.as_str()), (reason, at), "{error}");
}

#[test]
fn what_is_wrong_with_them_is_named() {
    use Reason::*;
    let checked = |check: Value| json!({"healthCheck": check});
    check(&checked(json!({})), Conflict, "spec.healthCheck");
    check(&checked(json!({"http": {}, "tcp": {}})), Conflict, "spec.healthCheck");
    check(&checked(json!({"http": {"path": "health"}})), BadFormat, "spec.healthCheck.http.path");
    check(&checked(json!({"http": {"path": "/a b"}})), BadFormat, "spec.healthCheck.http.path");
    let status = |status: Value| checked(json!({"http": {"expectedStatuses": [status]}}));
    for (value, reason) in [(json!(99), OutOfRange), (json!("300-200"), BadFormat), (json!(true), WrongType)]
    {
        check(&status(value), reason, "spec.healthCheck.http.expectedStatuses[0]");
    }
    let header =
        |name: &str, value: &str| checked(json!({"http": {"headers": [{"name": name, "value": value}]}}));
    check(&header("a b", "x"), BadFormat, "spec.healthCheck.http.headers[0].name");
    check(&header("a", "x\r\ny: z"), BadFormat, "spec.healthCheck.http.headers[0].value");
    check(&header("Content-Length", "7"), Conflict, "spec.healthCheck.http.headers[0]");
    check(&checked(json!({"tcp": {}, "interval": "1ms"})), OutOfRange, "spec.healthCheck.interval");
    check(
        &checked(json!({"tcp": {}, "unhealthyThreshold": 0})),
        OutOfRange,
        "spec.healthCheck.unhealthyThreshold",
    );
    check(&checked(json!({"command": {"ref": "/bin/sh"}})), BadFormat, "spec.healthCheck.command.ref");
    check(&checked(json!({"command": {"run": "x"}})), UnknownField, "spec.healthCheck.command.run");
    let udp = json!({"ports": [{"port": 53, "protocol": "udp"}], "healthCheck": {"tcp": {}}});
    check(&udp, Conflict, "spec.healthCheck");
    let udp = json!({"ports": [{"port": 53, "protocol": "udp", "healthCheck": {"http": {}}}]});
    check(&udp, Conflict, "spec.ports[0].healthCheck");
    check(&json!({"recovery": {}}), Conflict, "spec.recovery");
    check(&json!({"dns": {"ttl": "1500ms"}}), OutOfRange, "spec.dns.ttl");
    check(&json!({"dns": {}}), MissingField, "spec.dns.ttl");
    let recovery = |step: Value| json!({"healthCheck": {"tcp": {}}, "recovery": {"steps": [step]}});
    check(&recovery(json!({"after": 3})), Conflict, "spec.recovery.steps[0]");
    check(&recovery(json!({"drain": {}, "eject": {}})), Conflict, "spec.recovery.steps[0]");
    check(&recovery(json!({"drain": {"for": "1s"}})), UnknownField, "spec.recovery.steps[0].drain.for");
    for url in ["ftp://a/", "https://", "https:///x", "https://user@a/", "a"] {
        let step = json!({"webhook": {"url": url}});
        check(&recovery(step), BadFormat, "spec.recovery.steps[0].webhook.url");
    }
    check(&recovery(json!({"restart": {}})), MissingField, "spec.recovery.steps[0].restart.ref");
}

#[test]
fn they_are_told_to_agents() {
    let of = |i: usize| {
        let Wire::Service(service) = wire(&Resource::parse(&examples()[i]).unwrap(), vec![]) else {
            panic!("a service")
        };
        service
    };
    let all = of(0);
    let own = all.ports[0].health_check.as_ref().unwrap();
    assert_eq!((own.port, own.interval_ms, own.timeout_ms, own.unhealthy_threshold), (8081, 1000, 500, 5));
    let Some(Probe::Http(http)) = &own.probe else { panic!("{own:?}") };
    assert_eq!((http.statuses[0].from, http.statuses[1].to), (204, 399));
    assert_eq!(all.ports[1].health_check.as_ref().unwrap().probe, Some(Probe::Command("dig".into())));
    assert_eq!(all.health_check.unwrap().probe, Some(Probe::Grpc("shop.Cart".into())));
    let recovery = all.recovery.unwrap();
    assert_eq!((recovery.readmit_passes, recovery.steps[0].after), (4, 1));
    assert!(matches!(&recovery.steps[3].action, Some(Action::Restart(r)) if r.at_most == 2));
    let plain = of(1).health_check.unwrap();
    let Some(Probe::Http(http)) = &plain.probe else { panic!("{plain:?}") };
    assert_eq!((&*http.path, http.statuses[0].from, http.statuses[0].to), ("/health", 200, 399));
    assert_eq!(of(1).dns_ttl_seconds, Some(60));
    assert_eq!((plain.interval_ms, plain.healthy_threshold, plain.startup_grace_ms), (10_000, 2, 30_000));
}

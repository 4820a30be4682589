//! What a `TrafficPolicy` asks for of requests.

use super::*;

pub(super) fn examples() -> Vec<Value> {
    let target = json!([{"kind": "Service", "name": "web"}]);
    vec![
        object(
            "TrafficPolicy",
            &json!({
                "targetRefs": target, "balancing": "peakEwma",
                "limits": {
                    "maxConnections": 7, "maxRequests": 100, "maxRequestsPerEndpoint": 20, "maxPending": 50,
                    "queueTimeout": "250ms",
                },
                "outlierEjection": {
                    "consecutive5xx": 3, "consecutiveGatewayFailures": 2,
                    "successRate": {"interval": "5s", "minimumHosts": 3, "requestVolume": 50, "stdevFactor": 1500},
                },
                "breaker": {
                    "scope": "service", "consecutiveFailures": 3, "failurePercent": 50, "minimumRequests": 10,
                    "openFor": "500ms", "maxOpenFor": "30s",
                },
                "rateLimits": [
                    {"requests": 100}, {"requests": 5, "per": "1m", "burst": 2, "by": "source"},
                    {"requests": 1, "by": "header", "header": "X-Key"},
                ],
                "fault": {
                    "headers": [{"name": "x-fault", "value": "yes"}],
                    "delay": {"percent": 10, "duration": "2s"}, "abort": {"status": 503},
                },
            }),
        ),
        object(
            "TrafficPolicy",
            &json!({
                "targetRefs": target, "breaker": {}, "balancing": "leastRequests",
                "outlierEjection": {"successRate": {}}, "limits": {"maxRequestsPerEndpoint": 1},
            }),
        ),
    ]
}

#[track_caller]
fn check(change: &Value, reason: Reason, at: &str) {
    let mut spec = json!({"targetRefs": [{"kind": "Service", "name": "web"}]});
    spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let error = Resource::parse(&object("TrafficPolicy", &spec)).expect_err("refused");
    assert_eq!((error.reason, error.path.as_str()), (reason, at), "{error}");
}

#[test]
fn what_is_wrong_with_them_is_named() {
    use Reason::*;
    check(&json!({"limits": {"maxRequests": 0}}), OutOfRange, "spec.limits.maxRequests");
    check(&json!({"limits": {"maxPending": 5}}), Conflict, "spec.limits.maxPending");
    let untimely = json!({"limits": {"maxRequests": 5, "queueTimeout": "1s"}});
    check(&untimely, Conflict, "spec.limits.queueTimeout");
    let rate = |field: &str, value: Value| json!({"outlierEjection": {"successRate": {field: value}}});
    check(&rate("interval", json!("1ms")), OutOfRange, "spec.outlierEjection.successRate.interval");
    check(&rate("factor", json!(1)), UnknownField, "spec.outlierEjection.successRate.factor");
    check(&json!({"breaker": {"scope": "pod"}}), BadFormat, "spec.breaker.scope");
    check(&json!({"breaker": {"openFor": "1ms"}}), OutOfRange, "spec.breaker.openFor");
    let short = json!({"breaker": {"openFor": "10s", "maxOpenFor": "5s"}});
    check(&short, Conflict, "spec.breaker.maxOpenFor");
    check(&json!({"rateLimits": []}), OutOfRange, "spec.rateLimits");
    check(&json!({"rateLimits": [{}]}), MissingField, "spec.rateLimits[0].requests");
    let by = json!({"rateLimits": [{"requests": 1, "by": "header"}]});
    check(&by, MissingField, "spec.rateLimits[0].header");
    let alone = json!({"rateLimits": [{"requests": 1, "header": "x"}]});
    check(&alone, Conflict, "spec.rateLimits[0].header");
    check(&json!({"fault": {}}), Conflict, "spec.fault");
    check(&json!({"fault": {"abort": {"status": 200}}}), OutOfRange, "spec.fault.abort.status");
    check(&json!({"fault": {"delay": {"percent": 5}}}), MissingField, "spec.fault.delay.duration");
}

#[test]
fn they_are_told_to_agents() {
    let of = |i: usize| {
        let Wire::TrafficPolicy(policy) = wire(&Resource::parse(&examples()[i]).unwrap(), vec![]) else {
            panic!("a policy")
        };
        policy
    };
    let all = of(0);
    let limits = all.limits.unwrap();
    assert_eq!((limits.max_requests, limits.max_requests_per_endpoint, limits.max_pending), (100, 20, 50));
    assert_eq!((limits.queue_timeout_ms, all.balancing()), (250, v1::Balancing::PeakEwma));
    let ejection = all.outlier_ejection.unwrap();
    assert_eq!((ejection.consecutive_5xx, ejection.consecutive_gateway_failures), (3, 2));
    assert_eq!(ejection.success_rate.unwrap().stdev_factor, 1500);
    let breaker = all.breaker.unwrap();
    assert!(breaker.service && breaker.failure_percent == 50 && breaker.max_open_ms == 30_000);
    assert_eq!(all.rate_limits[0].burst, 100);
    assert!(all.rate_limits[1].by_source && all.rate_limits[2].by_header == "x-key");
    let fault = all.fault.unwrap();
    assert_eq!((fault.delay_ms, fault.abort_percent, fault.abort_status), (2000, 100, 503));
    let least = of(1);
    assert_eq!((least.breaker.unwrap().open_ms, least.outlier_ejection.unwrap().consecutive_5xx), (1000, 0));
}

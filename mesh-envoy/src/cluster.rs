//! A port of a service as a `Cluster`: how it is balanced, limited, and whom of it is rested.
//!
//! Of a `TrafficPolicy` this takes what Envoy and gRPC have too: balancing, affinity, slow start, the connect timeout,
//! limits and ejection. Breakers, rate limits and faults are the mesh's own, and hold at the other end.
//! Several balancing policies stand in order: a client takes the first that it knows. A plain round robin is said in the
//! old field: gRPC then shares the load among places by their weight.

use mesh_api::resource::{Balancing, ConnectionLimits, OutlierEjection, Protocol, TrafficPolicySpec};
use serde_json::{Value, json};

use crate::look::{Look, Target};

/// As good as no limit.
const UNLIMITED: u32 = 1_000_000;
/// How long a connection to an endpoint stays without a request.
const IDLE: &str = "30s";

/// The cluster; `None`: there is no such port.
pub fn cluster(look: &Look<'_>, target: &Target) -> Option<Value> {
    let port = look.port(target)?;
    let policies = look.policies(target, port);
    let connect = policies.iter().find_map(|policy| policy.connect_timeout);
    let mut json = json!({
        "name": target.to_string(),
        "type": "EDS",
        "eds_cluster_config": { "eds_config": ads() },
        "connect_timeout": connect.map_or_else(|| "5s".to_owned(), seconds),
        // Nobody is asked who is known not to serve, not even where nobody else is left.
        "common_lb_config": { "healthy_panic_threshold": { "value": 0.0 } },
        "circuit_breakers": breakers(policies.iter().find_map(|policy| policy.limits)),
    });
    balancing(&policies, &mut json);
    if let Some(ejection) = policies.iter().find_map(|policy| policy.outlier_ejection) {
        json["outlier_detection"] = outliers(&ejection);
    }
    if matches!(port.protocol, Protocol::Http | Protocol::Auto) {
        let http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        json["typed_extension_protocol_options"] = json!({ http: {
            "@type": format!("type.googleapis.com/{http}"),
            "common_http_protocol_options": { "idle_timeout": IDLE },
            // As the client speaks: what is behind the port is not asked for it.
            "use_downstream_protocol_config": { "http_protocol_options": {}, "http2_protocol_options": {} },
        }});
    }
    Some(json)
}

/// "Where this came from."
pub fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}

/// As protobuf writes durations.
pub fn seconds(time: std::time::Duration) -> String {
    let (whole, ms) = (time.as_secs(), time.subsec_millis());
    if ms == 0 { format!("{whole}s") } else { format!("{whole}.{ms:03}s") }
}

/// How a port's endpoints are chosen; affinity is by the client's address, as is Maglev.
pub fn is_hashed(policies: &[&TrafficPolicySpec]) -> bool {
    chosen(policies) == Balancing::Maglev
}

fn chosen(policies: &[&TrafficPolicySpec]) -> Balancing {
    if policies.iter().any(|policy| policy.affinity.is_some()) {
        return Balancing::Maglev;
    }
    policies.iter().find_map(|policy| policy.balancing).unwrap_or(Balancing::RoundRobin)
}

fn balancing(policies: &[&TrafficPolicySpec], json: &mut Value) {
    let start = policies.iter().find_map(|policy| policy.slow_start);
    let start = start.map(|start| json!({ "slow_start_window": seconds(start.window) }));
    let policy = |name: &str, message: &str, start: Option<&Value>| {
        let url = format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{name}.v3.{message}");
        let mut config = json!({ "@type": url });
        if let Some(start) = start {
            config["slow_start_config"] = start.clone();
        }
        json!({ "typed_extension_config": {
            "name": format!("envoy.load_balancing_policies.{name}"), "typed_config": config,
        }})
    };
    let round = policy("round_robin", "RoundRobin", start.as_ref());
    let all = match chosen(policies) {
        Balancing::RoundRobin => {
            json["lb_policy"] = json!("ROUND_ROBIN");
            if let Some(start) = start {
                json["round_robin_lb_config"] = json!({ "slow_start_config": start });
            }
            return;
        }
        Balancing::Random => vec![policy("random", "Random", None), round],
        Balancing::LeastConnections | Balancing::LeastRequests | Balancing::PeakEwma => {
            vec![policy("least_request", "LeastRequest", start.as_ref()), round]
        }
        Balancing::Maglev => {
            vec![policy("maglev", "Maglev", None), policy("ring_hash", "RingHash", None), round]
        }
    };
    json["load_balancing_policy"] = json!({ "policies": all });
}

fn breakers(limits: Option<ConnectionLimits>) -> Value {
    let limits = limits.unwrap_or_default();
    let connections = limits.max_connections.unwrap_or(UNLIMITED);
    let requests = limits.requests.max_requests.unwrap_or(UNLIMITED);
    let mut json = json!({ "thresholds": [{
        "max_connections": connections,
        "max_requests": requests,
        "max_pending_requests": limits.requests.max_pending.unwrap_or(connections.min(requests)),
        // As the mesh's own proxy: a fifth of what is in flight, or three.
        "retry_budget": { "budget_percent": { "value": 20.0 }, "min_retry_concurrency": 3 },
    }]});
    if let Some(each) = limits.max_connections_per_endpoint {
        json["per_host_thresholds"] = json!([{ "max_connections": each }]);
    }
    json
}

fn outliers(ejection: &OutlierEjection) -> Value {
    let answers = ejection.answers;
    let on = |asked: bool| if asked { 100 } else { 0 };
    let mut json = json!({
        "base_ejection_time": seconds(ejection.base_ejection_time),
        "max_ejection_percent": ejection.max_ejected_percent,
        "always_eject_one_host": true,
        "split_external_local_origin_errors": true,
        "consecutive_local_origin_failure": ejection.consecutive_connect_failures,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "consecutive_5xx": answers.consecutive_5xx.unwrap_or(5),
        "enforcing_consecutive_5xx": on(answers.consecutive_5xx.is_some()),
        "consecutive_gateway_failure": answers.consecutive_gateway_failures.unwrap_or(5),
        "enforcing_consecutive_gateway_failure": on(answers.consecutive_gateway_failures.is_some()),
        "enforcing_success_rate": on(answers.success_rate.is_some()),
    });
    if let Some(rate) = answers.success_rate {
        json["interval"] = json!(seconds(rate.interval));
        json["success_rate_minimum_hosts"] = json!(rate.minimum_hosts);
        json["success_rate_request_volume"] = json!(rate.request_volume);
        json["success_rate_stdev_factor"] = json!(rate.stdev_factor);
    }
    json
}

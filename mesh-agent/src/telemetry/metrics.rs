//! Every metric of the agent, described once: name, type, labels, help. `docs/metrics.md` is made of this.
//!
//! Names begin with `mesh_`. Labels of flows and requests: `source` and `destination` are
//! `<namespace>/<name>`, a destination service with `:<port>`; `outside` is whatever is not of the mesh,
//! `overflow` what found no room, `unknown` what had no name any more, `unproved` a caller of whom nothing is proved. `endpoint` is the workload that the
//! kernel chose, where the agent was asked for it.

use std::fmt::Write as _;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by bucket.
    Histogram,
}

impl Type {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// Its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

const FLOW: &[&str] = &["source", "destination", "endpoint", "protocol", "path", "verdict"];
const ENDED: &[&str] = &["source", "destination", "endpoint", "protocol", "path"];
const MAP: &[&str] = &["map"];
const REQUEST: &[&str] = &["direction", "source", "destination", "route", "protocol", "outcome"];
const ENDPOINT: &[&str] = &["destination", "workload"];

macro_rules! metrics {
    ($($id:ident = $name:literal, $kind:ident, $labels:expr, $help:literal;)*) => {
        $(#[doc = $help] pub const $id: Metric = Metric { name: $name, kind: Type::$kind, labels: $labels, help: $help };)*
        /// All of them.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    FLOW_OPENED = "mesh_flow_opened_total", Counter, FLOW, "Connections of this node's workloads that were established; UDP: sockets that were given an endpoint for an address. Exact, also while no agent ran.";
    FLOW_CLOSED = "mesh_flow_closed_total", Counter, FLOW, "Established connections that have ended; UDP: none, nothing ends it.";
    FLOW_FAILED = "mesh_flow_failed_total", Counter, FLOW, "Connections that were begun and never established.";
    FLOW_REFUSED = "mesh_flow_refused_total", Counter, FLOW, "Connections refused in connect(), and UDP datagrams refused; the verdict says why.";
    FLOW_SENT = "mesh_flow_sent_bytes_total", Counter, FLOW, "Payload bytes that peers acknowledged, of ended connections, and of open ones as they stand; not of UDP.";
    FLOW_RECEIVED = "mesh_flow_received_bytes_total", Counter, FLOW, "Payload bytes received, of ended connections, and of open ones as they stand; not of UDP.";
    FLOW_RETRANSMITS = "mesh_flow_retransmits_total", Counter, FLOW, "Segments sent again, of ended connections, SYNs among them.";
    FLOW_DURATION = "mesh_flow_duration_seconds", Histogram, ENDED, "From connect() to the end of a connection. From records that may be lost: see mesh_flow_events_lost_total.";
    FLOW_RTT = "mesh_flow_rtt_seconds", Histogram, ENDED, "Smoothed round-trip time of established connections when they end, to the agent where the path is proxy. From the same records.";
    FLOW_EVENTS_LOST = "mesh_flow_events_lost_total", Counter, &[], "Records of ended connections that found no room in the ring; the totals are exact all the same.";
    EJECTIONS = "mesh_ejections_total", Counter, &["destination"], "Endpoints left out because connections to them failed, or for what they answered, each time.";
    EJECTED = "mesh_ejected_endpoints", Gauge, &["destination"], "Endpoints that are left out now. Only of services with outlierEjection.";
    LB_PANIC = "mesh_lb_panic", Gauge, &["destination"], "1: so many are left out that all are used. Only of services with outlierEjection.";
    IN_FLIGHT = "mesh_requests_in_flight", Gauge, &["destination"], "Requests from this node that are under way. Only of services whose policy limits or weighs requests, ejects for answers or has a breaker.";
    WAITING = "mesh_requests_waiting", Gauge, &["destination"], "Requests from this node that wait for their turn (limits.maxPending).";
    BREAKERS_OPEN = "mesh_breakers_open", Gauge, &["destination"], "Circuit breakers that are open or probe: of the service, or of its endpoints. Only of services with breaker.";
    BREAKER_OPENED = "mesh_breaker_opened_total", Counter, &["destination"], "How often they have opened.";
    VERDICTS = "mesh_verdicts_total", Counter, &["verdict"], "What the kernel decided: one verdict a connection, a UDP socket's choice of an endpoint, or a refused datagram.";
    REQUESTS = "mesh_requests_total", Counter, &["direction", "source", "destination", "route", "protocol", "outcome", "status", "grpc_status", "reason"], "Requests through the proxy that have ended (TCP: connections): direction out as the caller's node tells it, in as the node of who is called. outcome is ok, client_error or server_error (the endpoint's or the mesh's); status is empty where none was sent, grpc_status where it is not gRPC's, reason where the proxy neither refused nor cut it.";
    REQUEST_DURATION = "mesh_request_duration_seconds", Histogram, REQUEST, "From a request's head to its response's last byte.";
    REQUEST_BYTES = "mesh_request_bytes_total", Counter, REQUEST, "Bytes of requests' bodies, as they were framed; not of TCP.";
    RESPONSE_BYTES = "mesh_response_bytes_total", Counter, REQUEST, "Bytes of responses' bodies, as they were framed; not of TCP.";
    ACCESS_LOG_LINES = "mesh_access_log_lines_total", Counter, &["outcome"], "Lines of the access log: written; dropped, because the output did not take them in time, or not at all.";
    PROXY_ACCEPTED = "mesh_proxy_accepted_total", Counter, &["direction"], "Connections handed to the proxy.";
    PROXY_OPEN = "mesh_proxy_open", Gauge, &[], "Connections in the proxy now.";
    PROXY_HANDED_ON = "mesh_proxy_handed_on_total", Counter, &[], "Connections that a workload's home worker gave to another.";
    PROXY_DROPPED = "mesh_proxy_dropped_total", Counter, &["reason"], "Connections that the proxy closed without serving them, or cut.";
    PROXY_RETRIES = "mesh_proxy_retries_total", Counter, &[], "Requests sent again: another endpoint after a failed connect, a reused connection that had closed, or as a route asks for it.";
    PROXY_HEDGES = "mesh_proxy_hedges_total", Counter, &["outcome"], "Second requests (hedge) that have ended: won, their answer came first; lost, the first one's did, or they failed. One that is under way counts as lost.";
    PROXY_MIRRORED = "mesh_proxy_mirrored_total", Counter, &["outcome"], "Copies of requests that routes ask for: sent, skipped (too many were under way, the body was, or there was no endpoint), failed (sent and not answered).";
    PROXY_DETECTED = "mesh_proxy_detected_total", Counter, &["verdict"], "Connections to ports of protocol auto, by what they were taken for: http, http2, tls, opaque (its client began with anything else), server_first, silent (nobody said anything within 100 ms), remembered (the workload's last client there was silent, so nothing was waited for).";
    PROXY_RESETS = "mesh_proxy_resets_total", Counter, &[], "Resets passed on from one side to the other.";
    PROXY_PANICS = "mesh_proxy_panics_total", Counter, &[], "Connections ended by a bug in the agent.";
    JWT_TOKENS = "mesh_jwt_tokens_total", Counter, &["outcome"], "Tokens that requests to this node's workloads carried: checked and found good; known, checked before; refused: why is the reason of the request.";
    EXT_AUTHZ = "mesh_ext_authz_total", Counter, &["outcome"], "Requests that external authorisation was asked about: allowed, denied; failed, refused without an answer; unasked, let in without one.";
    DNS_QUESTIONS = "mesh_dns_questions_total", Counter, &["outcome"], "Questions of this node's workloads to resolvers: answered by the mesh; forwarded to the resolver that was asked, and answered there; failed, where nobody answered; refused, where too many of one workload waited.";
    TLS_ORIGINATED = "mesh_tls_originated_total", Counter, &["outcome"], "TLS begun by the proxy with endpoints of external services: ok, what is wrong with the certificate, failed (no TLS there, or none that is spoken here), timeout.";
    EXTERNAL_LOOKUPS = "mesh_external_lookups_total", Counter, &["outcome"], "Look-ups of host names of external services: ok; failed, where what was known before is kept.";
    EXTERNAL_FAILING = "mesh_external_hosts_failing", Gauge, &[], "Host names of external services whose last look-up failed; `meshctl status` names them.";
    HEALTH_CHECKS = "mesh_health_checks_total", Counter, &["kind", "outcome"], "Health checks of this node's workloads: passed, failed. kind: http, grpc, tcp, command.";
    HEALTH_CHANGES = "mesh_health_changes_total", Counter, &[], "How often a workload became healthy or unhealthy by a check.";
    HEALTH_RUNNING = "mesh_health_checks", Gauge, &[], "Health checks that this node makes.";
    HEALTH_UNHEALTHY = "mesh_health_unhealthy", Gauge, &[], "Of those, by which a workload is not healthy; `meshctl health` says why.";
    HEALTH_LEFT_OUT = "mesh_health_checks_left_out", Gauge, &[], "Health checks for which a node has no room: their workloads count as healthy.";
    RECOVERY_ACTIONS = "mesh_recovery_actions_total", Counter, &["action", "outcome"], "What was done for workloads that do not get well: drain, eject, restart; readmit, when they are well again; webhook, that the control plane is to tell.";
    UPSTREAM_OPENED = "mesh_upstream_opened_total", Counter, &[], "Upstream connections opened by the proxy.";
    UPSTREAM_REUSED = "mesh_upstream_reused_total", Counter, &[], "Requests sent on an upstream connection that an earlier one had left.";
    UPSTREAM_FAILED = "mesh_upstream_failed_total", Counter, &[], "Upstream connections that could not be opened.";
    UPSTREAM_IDLE = "mesh_upstream_idle", Gauge, &[], "Upstream connections waiting in the pools.";
    HBONE_TUNNELS = "mesh_hbone_tunnels", Gauge, &["role"], "Tunnels that are open: as client, where a workload of this node calls, and as server.";
    HBONE_STREAMS = "mesh_hbone_streams", Gauge, &["role"], "Connections inside tunnels.";
    POLICY_AUDITED = "mesh_policy_audited_total", Counter, &["policy"], "What AuthorizationPolicies of action audit have matched: requests, and connections on which none are looked at. Policies beyond the first 1024 count as overflow.";
    HBONE_HANDSHAKES = "mesh_hbone_handshakes_total", Counter, &["role", "outcome", "fault"], "Tunnels begun, by how that ended: ok, timeout, broken, no_certificate (of our own), or why a certificate was refused; fault: us, where this node refused the peer's, peer, where the peer refused ours.";
    HBONE_REFUSED = "mesh_hbone_refused_total", Counter, &["reason"], "CONNECTs that this node refused.";
    ENDPOINT_LIVE = "mesh_endpoint_live", Gauge, ENDPOINT, "Connections from this node to an endpoint now. Only with /metrics?endpoints.";
    ENDPOINT_OPENED = "mesh_endpoint_opened_total", Counter, ENDPOINT, "Connections from this node to an endpoint. Only with /metrics?endpoints.";
    ENDPOINT_FAILURES = "mesh_endpoint_failures_total", Counter, ENDPOINT, "Of those, never established. Only with /metrics?endpoints.";
    MAP_ENTRIES = "mesh_map_entries", Gauge, MAP, "Entries of a BPF map; of FLOW_EVENTS the bytes that wait. At most 10 s old.";
    MAP_CAPACITY = "mesh_map_capacity", Gauge, MAP, "Room of a BPF map, in the same unit.";
    POLICY_ENDED = "mesh_policy_ended_total", Counter, &[], "Connections of this node's workloads that were ended because a changed policy no longer allows them.";
    PLAINTEXT_ENDED = "mesh_plaintext_ended_total", Counter, &[], "Connections of this node's workloads that were ended because they are plaintext and the workload became strict.";
    SNAPSHOT_EPOCH = "mesh_snapshot_epoch", Gauge, &[], "Epoch of the snapshot in force.";
    SNAPSHOT_AGE = "mesh_snapshot_age_seconds", Gauge, &[], "Since it came into force.";
    CONFIG_ACKS = "mesh_config_acks_total", Counter, &[], "Responses of the control plane that were taken.";
    CONFIG_NACKS = "mesh_config_nacks_total", Counter, &[], "Responses of which something was refused.";
    CONTROL_CONNECTED = "mesh_control_connected", Gauge, &[], "1: in step with a control plane.";
    WORKLOADS = "mesh_workloads", Gauge, &[], "Workloads enrolled on this node.";
    SERVICES = "mesh_services", Gauge, &[], "Service ports that this node knows.";
    IDENTITY_EXPIRES = "mesh_identity_expires_seconds", Gauge, &["identity"], "Until the certificate of an identity of this node ends; below 0: it has ended. The node's own among them.";
    IDENTITY_MISSING = "mesh_identity_missing", Gauge, &[], "Identities of this node's workloads that have no certificate yet.";
    IDENTITY_RENEWED = "mesh_identity_renewed_total", Counter, &[], "Certificates that the control plane has issued to this node.";
    IDENTITY_FAILED = "mesh_identity_failed_total", Counter, &[], "Certificates that were asked for in vain; the condition of the identity says why.";
    IDENTITY_ADOPTED = "mesh_identity_adopted_total", Counter, &[], "Certificates with their keys that were taken over from the agent that ran before.";
    IDENTITY_UNKEPT = "mesh_identity_unkept_total", Counter, &[], "Certificates that could not be kept for the agent that comes after: it needs the control plane for those.";
    CONDITIONS = "mesh_conditions", Gauge, &[], "Things that are not as they should be; `meshctl status` names them.";
}

/// `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics of mesh-agent\n\n\
         Made by `mesh-agent metrics-doc`; `cargo xtask tidy` compares. Served on `:15090/metrics`.\n\n\
         `source` and `destination` are `<namespace>/<name>`, a destination service with `:<port>`; `outside`: not of\n\
         the mesh; `overflow`: found no room; `unknown`: had no name any more; `unproved`: a caller of whom the receiving\n\
         node has no proof. `endpoint` is the workload that the kernel\n\
         chose, with `--flow-endpoints`, and else empty.\n\n\
         | name | type | labels | what |\n|---|---|---|---|\n",
    );
    for metric in ALL {
        let labels = metric.labels.join(", ");
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| `{}` | {} | {labels} | {} |", metric.name, metric.kind.name(), metric.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_what_they_are() {
        for (i, metric) in ALL.iter().enumerate() {
            assert!(metric.name.starts_with("mesh_"), "{}", metric.name);
            assert_eq!(metric.kind == Type::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(!ALL[..i].iter().any(|other| other.name == metric.name), "{}", metric.name);
            assert!(markdown().contains(metric.name));
        }
    }
}

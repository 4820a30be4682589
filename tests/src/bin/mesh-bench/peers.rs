//! HAProxy and Envoy beside the client, as the agent's proxy is: one thread each, 100 routes to one backend, retries,
//! ejection for answers, a rate limit that is never reached, no access log.
//!
//! Each has three ways in on the client's loopback: HTTP/1.1 to a server of HTTP/1.1, HTTP/2 to one of HTTP/2, and to
//! one of gRPC.

use std::{
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mesh_tests::{Pod, process::Process};

use crate::envoy::{self, TYPE, cluster, listener};

/// What serves HTTP/1, HTTP/2 and gRPC.
const NAMES: [&str; 3] = ["one", "two", "grpc"];
/// Rules of each routing table.
pub const ROUTES: usize = 100;
/// Within this they answer.
const START: Duration = Duration::from_secs(20);

/// A proxy that we are compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// HAProxy.
    HaProxy,
    /// Envoy.
    Envoy,
}

impl Peer {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::HaProxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// Where it takes requests: of HTTP/1, of HTTP/2, of gRPC.
    pub fn ports(self) -> [u16; 3] {
        match self {
            Self::HaProxy => [9101, 9102, 9103],
            Self::Envoy => [9201, 9202, 9203],
        }
    }

    /// Starts it in the client's network namespace, before a server with these ports.
    pub fn start(self, client: &Pod, server: Ipv4Addr, ports: [u16; 3]) -> Result<Process> {
        let mut process = match self {
            Self::HaProxy => haproxy(client, server, ports, self.ports())?,
            Self::Envoy => envoy(client, server, ports, self.ports())?,
        };
        for (port, version) in self.ports().into_iter().zip(["--http1.1", "--http2-prior-knowledge"]) {
            let url = format!("http://127.0.0.1:{port}/r/57/b0");
            let begin = Instant::now();
            while client.run("curl", &["-sf", "-m", "2", version, &url]).is_err() {
                let late = begin.elapsed() >= START || process.ended().is_some();
                ensure!(!late, "{} does not answer at port {port}:\n{}", self.name(), process.log());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(process)
    }
}

fn haproxy(client: &Pod, server: Ipv4Addr, to: [u16; 3], at: [u16; 3]) -> Result<Process> {
    let work = client.work();
    for backend in NAMES {
        let lines: Vec<String> = (0..ROUTES).map(|n| format!("/r/{n}/ {backend}\n")).collect();
        fs::write(work.join(format!("{backend}.map")), lines.concat())?;
    }
    let backend = |name: &str, port: u16, proto: &str| {
        format!(
            "backend {name}\n  http-reuse always\n  balance leastconn\n  retries 2\n  retry-on conn-failure empty-response 503\n\
             \x20 server s {server}:{port} maxconn 10000 {proto} check observe layer7 error-limit 5 on-error mark-down\n"
        )
    };
    let frontend = |name: &str, port: u16, proto: &str| {
        let map = work.join(format!("{name}.map"));
        format!(
            "frontend {name}-in\n  bind 127.0.0.1:{port} {proto}\n\
             \x20 stick-table type integer size 1k expire 10s store http_req_rate(1s)\n\
             \x20 http-request track-sc0 int(1)\n\
             \x20 http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000 }}\n\
             \x20 use_backend %[path,map_beg({},{name})]\n",
            map.display()
        )
    };
    let proto = |name: &str| if name == "one" { "" } else { "proto h2" };
    let ways = NAMES.into_iter().zip(at.into_iter().zip(to));
    let parts: Vec<String> = ways
        .map(|(name, (at, to))| frontend(name, at, proto(name)) + &backend(name, to, proto(name)))
        .collect();
    let config = format!(
        "global\n  nbthread 1\n  maxconn 9000\ndefaults\n  mode http\n  maxconn 9000\n  timeout connect 5s\n  timeout client 60s\n\
         \x20 timeout server 60s\n{}",
        parts.concat(),
    );
    let path = work.join("haproxy.cfg");
    fs::write(&path, config)?;
    Ok(client.start("haproxy", "/usr/sbin/haproxy", &["-db", "-f", &path.to_string_lossy()]))
}

fn envoy(client: &Pod, server: Ipv4Addr, to: [u16; 3], at: [u16; 3]) -> Result<Process> {
    let two = format!(
        r#", "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
          {{"@type": "{TYPE}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {{"http2_protocol_options": {{}}}}}}}}"#
    );
    let breaker = r#", "lb_policy": "LEAST_REQUEST", "outlier_detection": {"consecutive_5xx": 5}"#;
    let server = server.to_string();
    let listeners: Vec<String> = NAMES
        .into_iter()
        .zip(at)
        .map(|(name, at)| listener(name, "127.0.0.1", at, "", &manager(name)))
        .collect();
    let more = |name: &str| if name == "one" { breaker.to_owned() } else { format!("{breaker}{two}") };
    let clusters: Vec<String> =
        NAMES.into_iter().zip(to).map(|(name, to)| cluster(name, &server, to, &more(name))).collect();
    let config = envoy::config(&listeners, &clusters);
    let path = client.work().join("envoy-l7.json");
    fs::write(&path, config)?;
    let path = path.to_string_lossy().into_owned();
    let args = ["-c", &path, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
    Ok(client.start("envoy", envoy::program()?, &args))
}

fn manager(name: &str) -> String {
    let retry = r#""retry_policy": {"retry_on": "connect-failure,reset,gateway-error", "num_retries": 2}"#;
    let rule = |n: usize| {
        format!(
            r#"{{"match": {{"prefix": "/r/{n}/"}}, "route": {{"cluster": "{name}", "timeout": "0s", {retry}}}}}"#
        )
    };
    let rules: Vec<String> = (0..ROUTES).map(rule).collect();
    let all = r#"{"default_value": {"numerator": 100, "denominator": "HUNDRED"}, "runtime_key": "all"}"#;
    let limit = format!(
        r#"{{"name": "limit", "typed_config": {{"@type": "{TYPE}.filters.http.local_ratelimit.v3.LocalRateLimit",
          "stat_prefix": "limit", "filter_enabled": {all}, "filter_enforced": {all},
          "token_bucket": {{"max_tokens": 1000000, "tokens_per_fill": 1000000, "fill_interval": "1s"}}}}}}"#
    );
    format!(
        r#"{{"name": "http", "typed_config": {{"@type": "{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
          "stat_prefix": "{name}", "http_filters": [{limit}, {{"name": "router", "typed_config": {{"@type": "{TYPE}.filters.http.router.v3.Router"}}}}],
          "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [{}]}}]}}}}}}"#,
        rules.join(",")
    )
}

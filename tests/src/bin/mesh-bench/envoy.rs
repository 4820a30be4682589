//! A pair of Envoys as the peer: one beside the client, one beside the server, mutual TLS and HTTP/2 between them.
//!
//! Two ways through it: requests (HTTP/1.1 in, HTTP/2 between, HTTP/1.1 out) and tunnels (any TCP in, CONNECT
//! between, TCP out). One worker each, access logs off, nothing else configured: as lean as it gets.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Pod, process::Process, shell};

/// Where requests come in, on the client's loopback.
pub const REQUESTS: u16 = 9001;
/// Where TCP comes in, on the client's loopback.
pub const TUNNEL: u16 = 9002;
/// Where the server's Envoy takes requests and tunnels.
pub const FAR: [u16; 2] = [15443, 15444];
/// Within this they answer.
const START: Duration = Duration::from_secs(20);

/// Both are running.
pub struct Pair {
    /// Beside the client, beside the server.
    pub processes: [Process; 2],
}

/// The program that `cargo xtask bench` has fetched.
pub fn program() -> Result<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/envoy/envoy/_bin/envoy"));
    ensure!(path.exists(), "{} is missing: cargo xtask bench fetches it", path.display());
    Ok(path)
}

impl Pair {
    /// Starts them: `client` reaches what `server` has on `port`.
    pub fn start(client: &Pod, server: &Pod, port: u16) -> Result<Self> {
        let envoy = program()?;
        authority(server)?;
        let far = server.ip().to_string();
        let tls = server.work().to_string_lossy().into_owned();
        let near = near(&far, &tls);
        let processes = [(client, near), (server, this(&tls, port))].map(|(pod, config)| {
            let path = pod.work().join("envoy.json");
            fs::write(&path, config)?;
            let path = path.to_string_lossy().into_owned();
            let args = ["-c", &path, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
            anyhow::Ok(pod.start("envoy", &envoy, &args))
        });
        let [one, other] = processes;
        let pair = Self { processes: [one?, other?] };
        for port in [REQUESTS, TUNNEL] {
            let answers =
                || client.run("curl", &["-sf", "-m", "2", &format!("http://127.0.0.1:{port}/")]).is_ok();
            let begin = Instant::now();
            while !answers() {
                let logs = || pair.processes.each_ref().map(Process::log).join("\n");
                ensure!(begin.elapsed() < START, "no answer at port {port} of the Envoys:\n{}", logs());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(pair)
    }
}

/// A root and a certificate that both ends show.
fn authority(pod: &Pod) -> Result<()> {
    let openssl = |args: &str| {
        let mut command = Command::new("openssl");
        command.args(args.split(' ')).current_dir(pod.work());
        shell::run(&mut command, "").with_context(|| format!("openssl {args}"))
    };
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!("req -x509 {curve} -keyout ca.key -out ca.pem -subj /CN=bench"))?;
    openssl(
        &format!("req -new {curve} -keyout leaf.key -out leaf.csr -subj /CN=leaf").replace("-days 2 ", ""),
    )?;
    let profile = "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n\
                   subjectAltName=URI:spiffe://bench/ns/default/sa/bench\n";
    fs::write(pod.work().join("profile"), profile)?;
    openssl(
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile profile -out leaf.pem",
    )?;
    Ok(())
}

fn tls_context(work: &str) -> String {
    format!(
        r#""common_tls_context": {{"tls_params": {{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}},
          "alpn_protocols": ["h2"],
          "tls_certificates": [{{"certificate_chain": {{"filename": "{work}/leaf.pem"}}, "private_key": {{"filename": "{work}/leaf.key"}}}}],
          "validation_context": {{"trusted_ca": {{"filename": "{work}/ca.pem"}}}}}}"#
    )
}

pub const TYPE: &str = "type.googleapis.com/envoy.extensions";

fn address(ip: &str, port: u16) -> String {
    format!(r#"{{"socket_address": {{"address": "{ip}", "port_value": {port}}}}}"#)
}

pub fn cluster(name: &str, ip: &str, port: u16, more: &str) -> String {
    let at = address(ip, port);
    format!(
        r#"{{"name": "{name}", "connect_timeout": "5s", "type": "STATIC"{more}, "load_assignment": {{"cluster_name": "{name}",
          "endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address": {at}}}}}]}}]}},
          "circuit_breakers": {{"thresholds": [{{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000}}]}}}}"#
    )
}

pub fn listener(name: &str, ip: &str, port: u16, socket: &str, filter: &str) -> String {
    let at = address(ip, port);
    format!(r#"{{"name": "{name}", "address": {at}, "filter_chains": [{{{socket}"filters": [{filter}]}}]}}"#)
}

fn http(prefix: &str, upgrades: &str, route: &str) -> String {
    format!(
        r#"{{"name": "http", "typed_config": {{"@type": "{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
          "stat_prefix": "{prefix}"{upgrades}, "http_filters": [{{"name": "router", "typed_config": {{"@type": "{TYPE}.filters.http.router.v3.Router"}}}}],
          "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [{route}]}}]}}}}}}"#
    )
}

pub fn config(listeners: &[String], clusters: &[String]) -> String {
    format!(
        r#"{{"static_resources": {{"listeners": [{}], "clusters": [{}]}}}}"#,
        listeners.join(","),
        clusters.join(",")
    )
}

/// The client's.
fn near(far: &str, work: &str) -> String {
    let tls = tls_context(work);
    let over = format!(
        r#", "transport_socket": {{"name": "tls", "typed_config": {{"@type": "{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext", {tls}}}}},
          "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{"@type": "{TYPE}.upstreams.http.v3.HttpProtocolOptions",
          "explicit_http_config": {{"http2_protocol_options": {{}}}}}}}}"#
    );
    let requests = http("near", "", r#"{"match": {"prefix": "/"}, "route": {"cluster": "requests"}}"#);
    let tunnel = format!(
        r#"{{"name": "tcp", "typed_config": {{"@type": "{TYPE}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "near-tcp",
          "cluster": "tunnel", "tunneling_config": {{"hostname": "server:80"}}}}}}"#
    );
    config(
        &[
            listener("requests", "127.0.0.1", REQUESTS, "", &requests),
            listener("tunnel", "127.0.0.1", TUNNEL, "", &tunnel),
        ],
        &[cluster("requests", far, FAR[0], &over), cluster("tunnel", far, FAR[1], &over)],
    )
}

/// The server's.
fn this(work: &str, port: u16) -> String {
    let tls = tls_context(work);
    let socket = format!(
        r#""transport_socket": {{"name": "tls", "typed_config": {{"@type": "{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
          "require_client_certificate": true, {tls}}}}},"#
    );
    let requests = http("far", "", r#"{"match": {"prefix": "/"}, "route": {"cluster": "own"}}"#);
    let connect = r#", "http2_protocol_options": {"allow_connect": true}, "upgrade_configs": [{"upgrade_type": "CONNECT"}]"#;
    let route = r#"{"match": {"connect_matcher": {}}, "route": {"cluster": "own",
          "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}"#;
    let tunnel = http("far-tcp", connect, route);
    config(
        &[
            listener("requests", "0.0.0.0", FAR[0], &socket, &requests),
            listener("tunnel", "0.0.0.0", FAR[1], &socket, &tunnel),
        ],
        &[cluster("own", "127.0.0.1", port, "")],
    )
}

//! The real Envoy as a gateway into the mesh, configured by mesh-control alone: both variants of xDS side by side, under
//! requests of which none is lost.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    load::{Load, Running},
    mesh::CONTROL,
    process::Process,
    programs::{Nginx, curl, nginx},
    resources::{Service, route},
};
use serde_json::{Value, json};

/// As `cargo xtask test` has fetched it.
const ENVOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/envoy/envoy/_bin/envoy");
const WAIT: Duration = Duration::from_secs(30);

/// What docs/envoy.md has to copy, with `api` (`GRPC` or `DELTA_GRPC`).
fn bootstrap(node: &str, api: &str, token: &str, ca: &Path) -> Value {
    let type_of = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let socket = json!({ "address": CONTROL.to_string(), "port_value": 15010 });
    let http = "upstreams.http.v3.HttpProtocolOptions";
    let name = json!({ "san_type": "IP_ADDRESS", "matcher": { "exact": CONTROL.to_string() } });
    json!({
        "node": { "id": node, "cluster": "gateways" },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api, "transport_api_version": "V3",
                "grpc_services": [{
                    "envoy_grpc": { "cluster_name": "mesh-control" },
                    "initial_metadata": [{ "key": "authorization", "value": format!("Bearer {token}") }],
                }],
            },
            "cds_config": ads, "lds_config": ads,
        },
        "static_resources": { "clusters": [{
            "name": "mesh-control", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": { "cluster_name": "mesh-control", "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": { "socket_address": socket } } }] }] },
            "typed_extension_protocol_options": { format!("envoy.extensions.{http}"): {
                "@type": type_of(http), "explicit_http_config": { "http2_protocol_options": {} } } },
            "transport_socket": { "name": "tls", "typed_config": {
                "@type": type_of("transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": {
                    "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
                    "validation_context": {
                        "trusted_ca": { "filename": ca }, "match_typed_subject_alt_names": [name],
                    },
                },
            } },
        }] },
    })
}

struct Edge {
    pod: Pod,
    envoy: Process,
}

/// An Envoy in a pod of the mesh.
fn edge(mesh: &Mesh, node: u8, id: &str, api: &str) -> Edge {
    assert!(Path::new(ENVOY).exists(), "{ENVOY} is missing: cargo xtask test fetches it");
    let token = mesh.meshctl(&["token", "create", "--envoy", "edge"], "");
    let pod = mesh.pod(node, id).account("edge").up();
    let config = pod.work().join("envoy.json");
    let ca = mesh.fabric().data().join("ca.pem");
    fs::write(&config, bootstrap(id, api, token.trim(), &ca).to_string()).expect("write the bootstrap");
    let config = config.to_string_lossy().into_owned();
    let args = ["-c", &config, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
    let envoy = pod.start("envoy", ENVOY, &args);
    Edge { pod, envoy }
}

impl Edge {
    fn url(&self, port: u16, path: &str) -> String {
        format!("http://{}:{port}{path}", self.pod.ip())
    }

    #[track_caller]
    fn answers(&self, client: &Pod, port: u16, wanted: &str) {
        eventually::within(WAIT, &format!("{} answers at {port} as {wanted}", self.pod.name()), || {
            let reply = curl(client, &[&self.url(port, "/")]);
            reply.status == 200 && reply.body.contains(wanted)
        });
    }

    fn load(&self, client: &Pod) -> Running {
        Load::to(SocketAddr::from((self.pod.ip(), 8080))).host("shop.example").rate(100).start(client)
    }
}

fn web(mesh: &Mesh, node: u8, name: &str, service: &str) -> (Pod, Nginx) {
    let mut pod = mesh.pod(node, name).serves(service, "http", 8080).outside().up();
    let server = nginx(&pod, &[8080]);
    pod.enrol();
    (pod, server)
}

fn resources(spec: &Value) -> String {
    json!({ "apiVersion": "nodemesh.io/v1", "kind": "EnvoyResources", "metadata": { "name": "edge" }, "spec": spec })
        .to_string()
}

fn gateway() -> Value {
    json!({ "port": 8080, "services": [{ "name": "web", "port": 80, "hosts": ["*"] }] })
}

/// A listener of people's own, and the routes that it answers with.
fn own_listener() -> Value {
    let name = "envoy.extensions.filters";
    let routes = json!({ "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": "own\n" } } }] }] });
    json!({
        "name": "own", "address": { "socket_address": { "address": "0.0.0.0", "port_value": 9090 } },
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": {
            "@type": format!("type.googleapis.com/{name}.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "own", "route_config": routes,
            "http_filters": [{ "name": "router", "typed_config": {
                "@type": format!("type.googleapis.com/{name}.http.router.v3.Router") } }],
        } }] }],
    })
}

fn proxies(mesh: &Mesh) -> String {
    mesh.try_meshctl(&["proxy", "status"], "").unwrap_or_default()
}

#[track_caller]
fn synced(mesh: &Mesh) {
    eventually::within(WAIT, "both Envoys are in step", || {
        let table = proxies(mesh);
        let lines = table.lines().filter(|line| line.starts_with("edge-"));
        let good = |line: &&str| {
            let state = line.contains(" world ") || line.contains(" delta ");
            state && line.matches("synced").count() == 4
        };
        !table.contains("refused") && lines.filter(good).count() == 2
    });
}

#[test]
fn an_envoy_is_a_gateway_into_the_mesh() {
    let mesh = Mesh::builder().nodes(2).mtls().control_args(&["--envoys"]).up();
    let client = mesh.pod(1, "client").beside().up();
    mesh.apply(&Service::vip("web", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("canary", 2).http("http", 80).yaml());
    let _web = [web(&mesh, 1, "web-1", "web"), web(&mesh, 2, "web-2", "web")];
    let _canary = web(&mesh, 2, "canary-1", "canary");
    let edges = [edge(&mesh, 1, "edge-1", "DELTA_GRPC"), edge(&mesh, 2, "edge-2", "GRPC")];
    mesh.apply(&resources(&json!({ "gateway": gateway() })));
    for edge in &edges {
        edge.answers(&client, 8080, "name=web-1");
        edge.answers(&client, 8080, "name=web-2");
    }
    synced(&mesh);

    let loads = edges.each_ref().map(|edge| edge.load(&client));
    let served = |name: &str| {
        for load in &loads {
            let before = load.now().servers.get(name).copied().unwrap_or(0);
            eventually::within(WAIT, &format!("{name} is asked"), || {
                load.now().servers.get(name).copied().unwrap_or(0) > before + 5
            });
        }
    };
    // An endpoint comes; routes move to another cluster and back; an endpoint leaves.
    let more = web(&mesh, 1, "web-3", "web");
    served("web-3");
    mesh.apply(&route("web", &[("/", &[("web", 1), ("canary", 1)])]));
    served("canary-1");
    mesh.apply(&route("web", &[("/", &[("canary", 1)])]));
    eventually::within(WAIT, "the cluster of web has left", || {
        proxies_of(&mesh, "clusters").iter().all(|sent| *sent == 1)
    });
    mesh.meshctl(&["delete", "httproute", "web"], "");
    served("web-1");
    more.0.drain(1000);

    // What Envoy refuses is told in its words; the rest goes on, the new listener with it.
    let bad = json!({ "name": "bad", "type": "STATIC", "connect_timeout": "-1s" });
    mesh.apply(&resources(
        &json!({ "gateway": gateway(), "clusters": [bad], "listeners": [own_listener()] }),
    ));
    eventually::within(WAIT, "both refusals are shown", || {
        let table = proxies(&mesh);
        ["edge-1", "edge-2"].iter().all(|id| {
            let told = format!("{id} refused clusters: ");
            table.lines().any(|line| line.starts_with(&told) && line.contains("Expected positive duration"))
        })
    });
    for edge in &edges {
        edge.answers(&client, 9090, "own");
    }
    mesh.apply(&resources(&json!({ "gateway": gateway(), "listeners": [own_listener()] })));
    synced(&mesh);

    // Another control plane with the same store: nothing is sent again.
    mesh.kill_control();
    mesh.start_control();
    synced(&mesh);
    let metrics = mesh.fabric().metrics();
    assert_eq!(
        metrics.count("mesh_control_envoy_resources_total", &[]),
        0,
        "{}",
        mesh.fabric().metrics_page()
    );
    assert_eq!(metrics.count("mesh_control_envoys_connected", &[]), 2);
    mesh.apply(&route("web", &[("/", &[("canary", 1)])]));
    served("canary-1");
    for (load, edge) in loads.into_iter().zip(&edges) {
        let report = load.stop();
        assert_eq!(report.failed(), 0, "{report:?}\n{}", edge.envoy.log());
        assert!(report.ok > 100, "{report:?}");
    }
}

/// How many resources of a type each was sent last.
fn proxies_of(mesh: &Mesh, of: &str) -> Vec<u64> {
    let text = mesh.try_meshctl(&["proxy", "status", "-o", "json"], "").unwrap_or_default();
    let items: Value = serde_json::from_str(&text).unwrap_or_default();
    let count = |item: &Value| match item["variant"].as_str() {
        // Of delta the last response is a removal.
        Some("delta") => item["types"][of]["sent"].as_u64().map(|sent| sent + 1),
        _ => item["types"][of]["sent"].as_u64(),
    };
    items.as_array().into_iter().flatten().filter_map(count).collect()
}

#[test]
fn resources_of_people_come_in_by_type_and_go_out_by_polling() {
    let mesh = Mesh::builder().control_args(&["--envoys"]).up();
    let (_pod, _server) = {
        mesh.apply(&Service::vip("web", 1).http("http", 80).yaml());
        web(&mesh, 1, "web-1", "web")
    };
    let data = mesh.fabric().data();
    let admin = fs::read_to_string(data.join("admin.token")).expect("the admin's token");
    let token = mesh.meshctl(&["token", "create", "--envoy", "sidecar"], "");
    let call =
        |token: &str, method: &str, path: &str, body: &str| call(&mesh, &data, token, method, path, body);
    let body = json!({
        "version": "1.0",
        "clusters": [{ "name": "local", "type": "EDS", "eds_cluster_config": { "eds_config": { "ads": {} } } }],
        "endpoints": [{ "cluster_name": "local", "endpoints": "{{endpoints default/web 80}}" }],
    });
    assert_eq!(call(&admin, "PUT", "/resources/sidecar", &body.to_string()), (200, "true".to_owned()));
    let (status, answer) = call(&admin, "GET", "/v1/envoy/sidecar", "");
    assert!(status == 200 && answer.contains("\"local\""), "{answer}");

    let ask = json!({ "node": { "id": "sidecar-app1" }, "resource_names": ["local"] }).to_string();
    let mut version = String::new();
    eventually("the endpoints are polled", || {
        let (status, answer) = call(&token, "POST", "/v3/discovery:endpoints", &ask);
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        version = answer["version_info"].as_str().unwrap_or_default().to_owned();
        status == 200 && answer["resources"][0].to_string().contains("10.91.1.")
    });
    let again =
        json!({ "node": { "id": "sidecar-app1" }, "resource_names": ["local"], "version_info": version });
    assert_eq!(call(&token, "POST", "/v3/discovery:endpoints", &again.to_string()).0, 304);
    let other = json!({ "node": { "id": "edge-1" } }).to_string();
    assert_eq!(call(&token, "POST", "/v3/discovery:clusters", &other).0, 403, "of another type");
    assert_eq!(call(&admin, "POST", "/v3/discovery:clusters", &ask).0, 403, "people have no node type");
    assert_eq!(call("none", "POST", "/v3/discovery:clusters", &ask).0, 401);
    assert_eq!(call(&token, "GET", "/v1/services", "").0, 403, "its token is for discovery alone");

    let wrong = json!({ "clusters": [{ "name": "c", "lb_policy": "BEST" }] }).to_string();
    let (status, answer) = call(&admin, "PUT", "/v1/envoy/sidecar", &wrong);
    assert!(status == 400 && answer.contains("spec.clusters[0].lb_policy"), "{answer}");
    assert_eq!(call(&admin, "PUT", "/v1/envoy/front-proxy", "{}").0, 400);
    assert_eq!(call(&admin, "DELETE", "/v1/envoy/sidecar", "").0, 200);
    assert_eq!(call(&admin, "GET", "/v1/envoy/sidecar", "").0, 404);
}

/// A request of curl to the REST API; status and body.
fn call(mesh: &Mesh, data: &Path, token: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut command = std::process::Command::new("curl");
    command.args(["-s", "--max-time", "5", "-w", "\n%{http_code}", "-X", method, "--cacert"]);
    command.arg(data.join("ca.pem")).args(["-H", &format!("Authorization: Bearer {}", token.trim())]);
    if !body.is_empty() {
        command.args(["-d", body]);
    }
    command.arg(format!("https://{CONTROL}:15080{path}"));
    let output = mesh.fabric().netns.with(|| command.output()).expect("run curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (status.parse().unwrap_or(0), body.to_owned())
}

//! What is told of requests is what they were: metrics, access log, `meshctl tap`, `meshctl explain`; with curl, nginx
//! and gRPC's Python.

use std::{fs, path::Path, path::PathBuf};

use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    programs::{Nginx, curl, curl_many, url},
    resources::{Service, at, authorization, route, transport, vip4, vip6},
};
use serde_json::Value;

use crate::{
    http2::{called, cart},
    words::web,
};

const TRACE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A client on node 1 and nginx on node 2, whose agent takes requests.
struct Ground {
    mesh: Mesh,
    client: Pod,
    _server: (Pod, Nginx),
}

impl Ground {
    fn up(agent_args: &[&str]) -> Self {
        let mesh = Mesh::builder().nodes(2).mtls().agent_args(agent_args).up();
        mesh.apply(&Service::vip("site", 1).port("http", 80, "http", "proxy").yaml());
        let server = web(&mesh, 2, "a", "site", "http", 1);
        let client = mesh.pod(1, "client").account("shop").up();
        let ground = Self { mesh, client, _server: server };
        for vip in [url(vip4(1), 80, "/"), url(vip6(1), 80, "/")] {
            eventually("the service answers", || ground.get(&vip) == 200);
        }
        ground
    }

    fn get(&self, url: &str) -> u16 {
        curl(&self.client, &["-H", TRACE, url]).status
    }
}

/// A file that goes with the story.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("mesh-story-{}-{name}", std::process::id())))
    }

    fn lines(&self) -> Vec<Value> {
        lines(&self.0)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        for path in [self.0.clone(), self.0.with_extension("1")] {
            let _ = fs::remove_file(path);
        }
    }
}

/// Every line of an access log is an object.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn has(line: &Value, fields: &[(&str, &str)]) -> bool {
    fields.iter().all(|(name, value)| match &line[*name] {
        Value::String(text) => text == value,
        Value::Null => value.is_empty(),
        other => format!("{other}") == *value,
    })
}

#[test]
fn both_nodes_tell_of_a_request_in_metrics_and_in_the_access_log() {
    let file = File::new("log");
    let ground = Ground::up(&["--access-log", &file.0.to_string_lossy()]);
    let Ground { mesh, client, .. } = &ground;
    assert!(file.lines().is_empty(), "nobody has asked for a log");
    mesh.apply(&transport("log", &["accessLog: {percent: 100}"]));
    let root = url(vip4(1), 80, "/seen?token=secret");
    let seen = |path: &str| file.lines().into_iter().filter(|line| line["path"] == path).collect::<Vec<_>>();
    eventually("both sides tell", || {
        ground.get(&root);
        ["out", "in"].iter().all(|side| seen("/seen").iter().any(|line| has(line, &[("direction", side)])))
    });
    let common = [
        ("source", "default/client"),
        ("identity", "spiffe://mesh.local/ns/default/sa/shop"),
        ("destination", "default/site:80"),
        ("endpoint", "default/a"),
        ("protocol", "http"),
        ("method", "GET"),
        ("status", "200"),
        ("outcome", "ok"),
        ("reason", ""),
        ("tries", "1"),
        ("traceId", "0af7651916cd43dd8448eb211c80319c"),
    ];
    for line in seen("/seen") {
        assert!(has(&line, &common), "{line:#}");
        assert!(!line.to_string().contains("secret"), "{line:#}");
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        assert!(
            line["seconds"].as_f64().unwrap() > 0.0 && line["responseBytes"].as_u64().unwrap() > 10,
            "{line:#}"
        );
    }
    // Counted on both sides, under the name of who was proved.
    for (node, direction) in [(1, "out"), (2, "in")] {
        let labels = [
            ("direction", direction),
            ("source", "default/client"),
            ("outcome", "ok"),
            ("status", "200"),
            ("protocol", "http"),
        ];
        let metrics = mesh.node(node).metrics();
        assert!(metrics.count("mesh_requests_total", &labels) >= 1, "node {node}");
        assert!(metrics.count("mesh_response_bytes_total", &labels[..3]) > 10);
    }

    // Moved away, it is begun anew; and from now on only what fails.
    mesh.apply(&transport("log", &["accessLog: {errors: true}"]));
    let (good, bad) = (url(vip4(1), 80, "/good"), url(vip4(1), 80, "/files/none"));
    eventually("what comes out well is not told any more", || {
        let before = seen("/good").len();
        assert_eq!([ground.get(&good), ground.get(&bad), ground.get(&bad)], [200, 404, 404]);
        eventually("the failures are", || seen("/files/none").len() >= 4);
        let same = seen("/good").len() == before;
        fs::rename(&file.0, file.0.with_extension("1")).unwrap();
        same
    });
    assert_eq!(curl_many(client, &bad, 20).len(), 20);
    eventually("the new file has them all", || seen("/files/none").len() >= 40);
    assert!(file.lines().iter().all(|line| has(line, &[("outcome", "client_error")])), "{:#?}", file.lines());
    for node in [1, 2] {
        assert_eq!(
            mesh.node(node).metrics().count("mesh_access_log_lines_total", &[("outcome", "dropped")]),
            0
        );
    }
}

#[test]
fn calls_of_grpc_are_counted_by_their_own_status() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("cart", 1).http("http", 80).yaml());
    let client = mesh.pod(1, "client").up();
    let _a = cart(&mesh, 1, "cart-a");
    let _b = cart(&mesh, 2, "cart-b");
    eventually("both are called", || called(&client, at(vip4(1), 80)) == "fine cart-a cart-b");
    let count = |outcome: &str, code: &str| {
        let labels = [("protocol", "grpc"), ("outcome", outcome), ("grpc_status", code), ("status", "200")];
        mesh.node(1).metrics().count("mesh_requests_total", &labels)
    };
    // Forty and two go well, one fails as the server wants it to (FAILED_PRECONDITION).
    eventually("they are counted", || count("ok", "0") >= 42 && count("client_error", "9") >= 1);
    let received = mesh.node(1).metrics().count("mesh_request_bytes_total", &[("protocol", "grpc")]);
    assert!(received > 6_000_000, "{received}");
    mesh.apply(&authorization("none", "cart", "deny", "[{to: [{paths: [/shop.Cart/Echo]}]}]"));
    eventually("it is refused", || called(&client, at(vip4(1), 80)).starts_with("refused"));
    let refused = [("protocol", "grpc"), ("grpc_status", "7"), ("outcome", "client_error")];
    eventually("and counted so", || mesh.node(1).metrics().count("mesh_requests_total", &refused) >= 1);
}

#[test]
fn who_taps_sees_what_was_asked_for_and_nothing_else() {
    let ground = Ground::up(&[]);
    let node = ground.mesh.node(1);
    let tap = node.start_meshctl(
        "tap",
        &["tap", "-o", "json", "--service", "site", "--path", "/files", "--status", "4xx"],
    );
    let some = node.start_meshctl("some", &["tap", "-n", "2", "--source", "client"]);
    let (good, bad) = (url(vip4(1), 80, "/files"), url(vip4(1), 80, "/files/none?x=1"));
    let shown = || -> Vec<Value> {
        let log = tap.log();
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    eventually("it is shown", || {
        ground.get(&good);
        ground.get(&bad);
        !shown().is_empty()
    });
    for line in shown() {
        let fields =
            [("path", "/files/none"), ("status", "404"), ("source", "default/client"), ("direction", "out")];
        assert!(has(&line, &fields), "{line:#}");
    }
    let mut some = some;
    let ended = some.wait(std::time::Duration::from_secs(10));
    assert!(ended.success() && some.log().lines().count() == 3, "{}", some.log());
    assert!(some.log().contains("default/site:80") && some.log().contains("http GET"), "{}", some.log());
    // Refused with the words that there are.
    let refused = node.meshctl(&["tap", "--status", "6xx"]).unwrap_err();
    assert!(format!("{refused:#}").contains("1xx to 5xx"), "{refused:#}");
}

#[test]
fn a_request_is_explained_as_it_would_go() {
    let ground = Ground::up(&[]);
    let Ground { mesh, client, .. } = &ground;
    mesh.apply(&Service::vip("front", 2).http("http", 80).yaml());
    mesh.apply(&Service::vip("lines", 3).tcp("tcp", 90).yaml());
    mesh.apply(&route("front", &[("/api", &[("site", 9), ("front", 1)]), ("/none", &[])]));
    mesh.apply(&authorization(
        "p",
        "",
        "deny",
        "[{to: [{paths: [/api/admin]}], from: [{serviceAccounts: [shop]}]}]",
    ));
    let run = mesh.node(1).work().join("run");
    let explain = |method: &str, url: &str| {
        mesh.meshctl(
            &["explain", "client", method, url, "-H", "x-a: b", "--run-dir", &run.to_string_lossy()],
            "",
        )
    };
    let api = url(vip4(2), 80, "/api/users");
    let told = || explain("GET", &api);
    until(std::time::Duration::from_secs(15), "the route is there", told, |text| {
        [
            "240.240.0.2 is a virtual address of default/front:80",
            "proxy: a route is attached that the proxy carries out",
            "rule default/front/0",
            "default/front/1 (any host, paths below /none/): no: the path is \"/api/users\"",
            "default/site:80 weight 9 (90.0 %)",
            "default/site:80: 1 of 1 take new connections",
            "default/a port 8080: in a tunnel of mutual TLS",
            "default/a: let in, denied by no rule",
        ]
        .iter()
        .all(|line| text.contains(line))
    });
    let denied = || explain("GET", &url(vip4(2), 80, "/api/admin"));
    until(std::time::Duration::from_secs(15), "the policy decides", denied, |text| {
        text.contains("default/a: refused, denied by rules[0] of AuthorizationPolicy default/p")
    });
    assert!(explain("GET", &url(vip4(2), 80, "/")).contains("no rule takes it: 404, no_route"));
    assert!(explain("GET", &url(vip4(3), 90, "/")).contains("kernel: nothing of this port needs the proxy"));
    assert!(explain("GET", "http://front.default.mesh/none").contains("none: 500, no_backend"));
    assert!(explain("GET", "http://192.0.2.1/").contains("outside of the mesh"));
    // Nothing was sent.
    let asked = mesh.node(1).metrics().count("mesh_requests_total", &[("destination", "default/front:80")]);
    assert_eq!(asked, 0);
    // And what is told is what happens.
    let get = |path: &str| curl(client, &[&url(vip4(2), 80, path)]).status;
    assert_eq!([get("/"), get("/none")], [404, 500]);
}

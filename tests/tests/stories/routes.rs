//! What an `HTTPRoute` can ask of requests, and do to them: with real clients and servers, on one node and across.

use std::{fs, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    programs::{Nginx, Reply, curl, curl_many, url},
    resources::{Service, vip4, vip6},
};

use crate::words::{share, web};

/// Services `front` (240.240.0.1), `v1`, `v2`, and an `HTTPRoute` of `front` with these rules.
struct Shop {
    mesh: Mesh,
    client: Pod,
    v1: (Pod, Nginx),
    v2: (Pod, Nginx),
}

impl Shop {
    fn up(rules: &str) -> Self {
        let mesh = Mesh::builder().nodes(2).mtls().up();
        for (name, number) in [("front", 1), ("v1", 2), ("v2", 3)] {
            mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
        }
        let v1 = web(&mesh, 1, "v1-a", "v1", "http", 1);
        let v2 = web(&mesh, 2, "v2-a", "v2", "http", 1);
        let client = mesh.pod(1, "client").up();
        mesh.apply(&http_route(rules));
        let shop = Self { mesh, client, v1, v2 };
        for service in [2, 3] {
            eventually("the backends answer", || shop.get(&[&url(vip4(service), 80, "/")]).status == 200);
        }
        shop
    }

    fn get(&self, args: &[&str]) -> Reply {
        curl(&self.client, args)
    }
}

fn http_route(rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: front, namespace: default}}\nspec:\n\
         \x20 parentRefs: [{{kind: Service, name: front, port: 80}}]\n  rules:\n{rules}"
    )
}

/// The value of a header in what `curl -i` has shown.
fn shown<'r>(reply: &'r Reply, name: &str) -> Option<&'r str> {
    let named = |line: &'r str| line.split_once(": ").filter(|(field, _)| field.eq_ignore_ascii_case(name));
    reply.body.lines().find_map(named).map(|(_, value)| value.trim())
}

#[test]
fn headers_queries_and_methods_choose_a_backend() {
    let shop = Shop::up(
        "  - backendRefs: [{name: v1, port: 80}]\n\
         \x20 - matches:\n\
         \x20   - headers: [{name: x-canary, value: 'yes'}]\n\
         \x20   - queryParams: [{name: version, value: 'v 2'}]\n\
         \x20   - {path: {value: /admin}, method: DELETE}\n\
         \x20   - {path: {type: RegularExpression, value: '/item/[0-9]+'}}\n\
         \x20   backendRefs: [{name: v2, port: 80}]\n",
    );
    for front in [url(vip4(1), 80, ""), url(vip6(1), 80, "")] {
        let to = |args: &[&str], path: &str| {
            let url = format!("{front}{path}");
            shop.get(&[args, &[&url]].concat()).name().to_owned()
        };
        eventually("the route is there", || to(&["-H", "X-Canary: yes"], "/") == "v2-a");
        assert_eq!(to(&[], "/"), "v1-a");
        assert_eq!(to(&["-H", "X-Canary: yes!"], "/"), "v1-a");
        assert_eq!(to(&["-H", "X-Canary: no", "-H", "x-canary: yes"], "/"), "v2-a");
        assert_eq!(to(&[], "/?a=b&version=v%202"), "v2-a");
        assert_eq!(to(&[], "/?version=v%203&version=v%202"), "v1-a", "the first counts");
        assert_eq!(to(&["-X", "DELETE"], "/admin/users"), "v2-a");
        assert_eq!(to(&["-X", "DELETE"], "/administrator"), "v1-a");
        assert_eq!(to(&["-X", "PUT"], "/admin/users"), "v1-a");
        assert_eq!(to(&[], "/item/17"), "v2-a");
        assert_eq!(to(&[], "/item/17/x"), "v1-a");
    }
}

#[test]
fn requests_are_edited_rewritten_and_redirected() {
    let shop = Shop::up(
        "  - matches: [{path: {value: /api}}]\n\
         \x20   filters:\n\
         \x20   - {type: URLRewrite, urlRewrite: {hostname: inside.example, \
                    path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}\n\
         \x20   - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Echo, value: rule}]}}\n\
         \x20   - {type: ResponseHeaderModifier, responseHeaderModifier: \
                    {set: [{name: Server, value: mesh}], add: [{name: X-From, value: route}]}}\n\
         \x20   backendRefs: [{name: v2, port: 80}]\n\
         \x20 - matches: [{path: {value: /old}}]\n\
         \x20   filters: [{type: RequestRedirect, requestRedirect: \
                    {path: {type: ReplacePrefixMatch, replacePrefixMatch: /api}, statusCode: 301}}]\n",
    );
    for host in [vip4(1).to_string(), format!("[{}]", vip6(1))] {
        let api = format!("http://{host}/api/users?id=1");
        eventually("the route is there", || shop.get(&[&api]).status == 200);
        let reply = shop.get(&["-i", "-H", "x-echo: client", &api]);
        assert_eq!((reply.field("name"), reply.field("uri")), ("v2-a", "/v2/users?id=1"), "{reply:?}");
        assert_eq!((reply.field("host"), reply.field("echo")), ("inside.example", "rule"), "{reply:?}");
        assert_eq!((shown(&reply, "server"), shown(&reply, "x-from")), (Some("mesh"), Some("route")));

        let old = format!("http://{host}/old/users?id=1");
        let reply = shop.get(&["-i", &old]);
        assert_eq!((reply.status, shown(&reply, "location")), (301, Some(&*api)), "{reply:?}");
        let followed = shop.get(&["-L", &old]);
        assert_eq!((followed.status, followed.field("uri")), (200, "/v2/users?id=1"), "{followed:?}");
    }
}

#[test]
fn a_busy_endpoint_is_passed_over_where_the_route_says_so() {
    let both = "backendRefs: [{name: v1, port: 80}]";
    let shop = Shop::up(&format!("  - {both}\n    retry: {{codes: [503], attempts: 2, backoff: 1ms}}\n"));
    // A second endpoint of v1, on the other node.
    let (_other, _) = web(&shop.mesh, 2, "v1-b", "v1", "http", 1);
    let front = url(vip4(1), 80, "/maybe/x");
    let names = |replies: &[Reply]| replies.iter().filter(|reply| reply.name() == "v1-b").count();
    eventually("both answer", || (1..20).contains(&names(&curl_many(&shop.client, &front, 20))));
    fs::write(shop.v1.0.work().join("busy"), "").unwrap();
    let replies = curl_many(&shop.client, &front, 100);
    assert_eq!((replies.iter().filter(|r| r.status == 200).count(), names(&replies)), (100, 100));
    let retried = shop.mesh.node(1).metrics().count("mesh_proxy_retries_total", &[]);
    assert!((30..=100).contains(&retried), "{retried}");
    // Without it the client sees them.
    shop.mesh.apply(&http_route(&format!("  - {both}\n")));
    eventually("the busy one is seen", || {
        curl_many(&shop.client, &front, 10).iter().any(|reply| reply.status == 503)
    });
}

#[test]
fn a_request_that_takes_too_long_is_given_up() {
    let shop = Shop::up("  - backendRefs: [{name: slow, port: 80}]\n    timeouts: {request: 300ms}\n");
    shop.mesh.apply(&Service::vip("slow", 4).http("http", 80).yaml());
    let mut silent = shop.mesh.pod(2, "silent").serves("slow", "http", 8080).outside().up();
    let script = "import socket\ns = socket.create_server(('', 8080), family=socket.AF_INET)\nheld = []\n\
                  while True: held.append(s.accept())\n";
    let _server = silent.start("silent", "/usr/bin/python3", &["-c", script]);
    silent.enrol();
    let front = url(vip4(1), 80, "/");
    let asked = || shop.get(&["-i", &front]);
    eventually("it is given up", || shown(&asked(), "x-mesh-reason") == Some("request_timeout"));
    let reply = asked();
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&reply.took), "{reply:?}");
}

#[test]
fn copies_go_to_the_mirror_and_its_answers_to_nobody() {
    let shop = Shop::up(
        "  - backendRefs: [{name: v1, port: 80}]\n\
         \x20   filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 50}}]\n",
    );
    let front = url(vip4(1), 80, "/mirrored");
    eventually("the route is there", || shop.get(&[&front]).name() == "v1-a");
    let (before, copied) = (shop.v1.1.hits("/mirrored"), shop.v2.1.hits("/mirrored"));
    let replies = curl_many(&shop.client, &front, 200);
    assert!(replies.iter().all(|reply| reply.name() == "v1-a"), "{replies:?}");
    eventually("all were logged", || shop.v1.1.hits("/mirrored") == before + 200);
    let mirrored = |outcome| {
        let labels = [("outcome", outcome)];
        shop.mesh.node(1).metrics().count("mesh_proxy_mirrored_total", &labels)
    };
    eventually("all copies have arrived", || shop.v2.1.hits("/mirrored") == mirrored("sent"));
    share(shop.v2.1.hits("/mirrored") - copied, 200, 50.0);
    assert_eq!(mirrored("failed"), 0);
}

//! Whose requests a route is for: everybody's, or those of its own namespace; answers of a route's own; and subsets of a
//! service, which are services with a narrower selector.

use mesh_tests::{
    Mesh, eventually,
    programs::{curl, nginx, url},
    resources::{Service, route, vip4, vip6},
};

use crate::words::web;

const OWN: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute
metadata: {name: own, namespace: elsewhere}\nspec:
  parentRefs: [{kind: Service, name: front, namespace: default, port: 80}]
  rules:
  - matches: [{path: {value: /closed}}]
    filters:
    - {type: DirectResponse, directResponse: {statusCode: 503, contentType: text/html, body: '<p>later</p>'}}
  - backendRefs: [{name: v2, namespace: default, port: 80}]
";

#[test]
fn a_clients_own_namespace_says_where_its_requests_go() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("front", 1), ("v1", 2), ("v2", 3)] {
        mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
    }
    mesh.apply(&route("front", &[("/", &[("v1", 1)])]));
    let (_v1, _s1) = web(&mesh, 1, "v1-a", "v1", "http", 1);
    let (_v2, _s2) = web(&mesh, 2, "v2-a", "v2", "http", 1);
    let client = mesh.pod(1, "client").up();
    let other = mesh.pod(1, "other").namespace("elsewhere").up();
    let fronts = [url(vip4(1), 80, ""), url(vip6(1), 80, "")];
    let get = |front: &str, pod: &mesh_tests::Pod| curl(pod, &[&format!("{front}/")]).name().to_owned();
    for front in &fronts {
        for pod in [&client, &other] {
            eventually("the producer's route holds for all", || get(front, pod) == "v1-a");
        }
    }
    mesh.apply(OWN);
    for front in &fronts {
        eventually("their own takes its place", || get(front, &other) == "v2-a");
        assert_eq!(get(front, &client), "v1-a");
        let closed = |pod| curl(pod, &["-i", &format!("{front}/closed")]);
        let reply = closed(&other);
        assert!(reply.status == 503 && reply.body.contains("<p>later</p>"), "{reply:?}");
        assert!(reply.body.contains("content-type: text/html"), "{reply:?}");
        assert_eq!(closed(&client).name(), "v1-a");
        let known = curl(&other, &["--http2-prior-knowledge", &format!("{front}/closed")]);
        assert!(known.status == 503 && known.body.contains("<p>later</p>"), "{known:?}");
    }
    let told = mesh.meshctl(&["get", "httproutes", "-n", "elsewhere"], "");
    assert!(told.contains("own") && !told.contains("does not exist"), "{told}");
    mesh.meshctl(&["delete", "httproute", "own", "-n", "elsewhere"], "");
    eventually("the producer's is back", || get(&fronts[0], &other) == "v1-a");
}

#[test]
fn a_subset_is_a_service_with_a_narrower_selector() {
    let mesh = Mesh::builder().up();
    let service = |name: &str, rest: &str, labels: &str| {
        format!(
            "---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  {rest}\n\
             \x20 selector: {{{labels}}}\n  ports: [{{name: http, port: 80, targetPort: 8080, protocol: http}}]\n"
        )
    };
    mesh.apply(&service("shop", &format!("vips: [{}]", vip4(1)), "app: shop"));
    mesh.apply(&service("shop-canary", "headless: true", "app: shop, version: canary"));
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec:\n\
         \x20 parentRefs: [{kind: Service, name: shop}]\n  rules:\n\
         \x20 - matches: [{headers: [{name: x-canary, value: 'yes'}]}]\n\
         \x20   backendRefs: [{name: shop-canary, port: 80}]\n\
         \x20 - backendRefs: [{name: shop, port: 80}]\n",
    );
    let up = |name: &str, version: &str| {
        let mut pod = mesh.pod(1, name).label("app", "shop").label("version", version).outside().up();
        let server = nginx(&pod, &[8080]);
        pod.enrol();
        (pod, server)
    };
    let (_a, _sa) = up("stable", "stable");
    let (_b, _sb) = up("canary", "canary");
    let client = mesh.pod(1, "client").up();
    let shop = url(vip4(1), 80, "/");
    let seen = |args: &[&str]| -> std::collections::BTreeSet<String> {
        (0..8).map(|_| curl(&client, &[args, &[&shop]].concat()).name().to_owned()).collect()
    };
    eventually("all of it is balanced over both", || seen(&[]).iter().eq(["canary", "stable"]));
    eventually("the subset is one", || seen(&["-H", "x-canary: yes"]).iter().eq(["canary"]));
}

//! What keeps a client at its endpoint: a cookie, a header, a parameter, of HTTP/1 and HTTP/2.

use std::collections::{BTreeMap, BTreeSet};

use mesh_tests::{
    Mesh, Pod, eventually,
    programs::{Nginx, Reply, curl, url},
    resources::{Service, at, traffic, vip4},
};

use crate::words::{settled, web};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn shop(policy: &str) -> (Mesh, Pod, BTreeMap<&'static str, (Pod, Nginx)>) {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    let all = NAMES.iter().zip([1, 2, 2]);
    let all = all.map(|(name, node)| (*name, web(&mesh, node, name, "shop", "http", 1))).collect();
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &NAMES);
    mesh.apply(&traffic("shop", &[policy]));
    (mesh, client, all)
}

/// Who answers so many requests with these arguments.
fn who(client: &Pod, count: usize, args: &[&str]) -> BTreeSet<String> {
    let reply = |_| {
        let reply = curl(client, args);
        assert_eq!(reply.status, 200, "{args:?}: {reply:?}");
        reply.name().to_owned()
    };
    (0..count).map(reply).collect()
}

fn cookies(reply: &Reply) -> Vec<&str> {
    let named = |line| str::strip_prefix(line, "set-cookie: ");
    reply.body.lines().filter_map(named).map(str::trim).collect()
}

#[test]
fn a_cookie_brings_a_browser_back_until_its_endpoint_is_gone() {
    let (mesh, client, servers) = shop("affinity: {cookie: {name: shop-at, ttl: 1h, path: /}}");
    let front = url(vip4(1), 80, "/");
    let first = || curl(&client, &["-i", &front]);
    eventually("the cookie is set", || cookies(&first()).len() == 1);
    let reply = first();
    let cookie = cookies(&reply)[0];
    assert!(
        cookie.starts_with("shop-at=") && cookie.ends_with("Path=/; Max-Age=3600; HttpOnly; SameSite=Lax")
    );
    let jar = client.work().join("jar").to_string_lossy().into_owned();
    let browse = ["-b", &jar, "-c", &jar, &front];
    let kept = who(&client, 30, &browse);
    assert_eq!(kept.len(), 1, "one browser, one endpoint: {kept:?}");
    assert_eq!(who(&client, 30, &[&front]).len(), 3, "others are balanced");
    let again = curl(&client, &["-i", "-b", &jar, &front]);
    assert!(cookies(&again).is_empty(), "it is told once: {again:?}");
    // Another node's proxy, another version of HTTP's heads: the same cookie.
    let other = mesh.pod(2, "other").up();
    let line = std::fs::read_to_string(&jar).unwrap();
    let value = line.lines().last().and_then(|line| line.split('\t').next_back()).unwrap().to_owned();
    let sent = format!("Cookie: x=y; shop-at={value}");
    eventually("it holds there as well", || who(&other, 10, &["-H", &sent, &front]) == kept);

    let name = kept.first().unwrap().as_str();
    servers[name].0.leave();
    let moved = || curl(&client, &["-b", &jar, "-c", &jar, &front]);
    eventually("its endpoint is gone", || moved().status == 200 && moved().name() != name);
    let moved = who(&client, 20, &browse);
    assert!(moved.len() == 1 && moved != kept, "and it has another one: {moved:?}");
}

#[test]
fn a_header_or_a_parameter_is_a_key() {
    let (mesh, client, _servers) = shop("affinity: {header: X-User}");
    let front = url(vip4(1), 80, "/");
    let users: Vec<String> = (0..12).map(|number| format!("x-user: {number}")).collect();
    let of = |user: &String| who(&client, 6, &["-H", user, &front]);
    eventually("it is in force", || users.iter().take(4).all(|user| of(user).len() == 1));
    let homes: Vec<BTreeSet<String>> = users.iter().map(of).collect();
    assert!(homes.iter().all(|home| home.len() == 1), "{homes:?}");
    assert_eq!(homes.iter().flatten().collect::<BTreeSet<_>>().len(), 3, "users are spread: {homes:?}");
    assert_eq!(who(&client, 30, &[&front]).len(), 3, "who has none is balanced");
    let far = mesh.pod(2, "far").up();
    let there: Vec<_> = users.iter().map(|user| who(&far, 2, &["-H", user, &front])).collect();
    assert_eq!(there, homes, "the same from another node");

    mesh.apply(&traffic("shop", &["affinity: {query: user}"]));
    let by = |user: u32| who(&client, 6, &[&url(vip4(1), 80, &format!("/?a=b&user={user}"))]);
    eventually("the parameter is", || (0..6).all(|user| by(user).len() == 1));
}

#[test]
fn streams_of_http2_are_kept_as_well() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    let _servers = NAMES.map(|name| crate::http2::web(&mesh, 2, name, "shop"));
    let client = mesh.pod(1, "client").up();
    let (front, known) = (url(vip4(1), 80, "/"), "--http2-prior-knowledge");
    let all = || (0..12).map(|_| curl(&client, &[known, &front])).collect::<Vec<_>>();
    eventually("all answer", || {
        let names: BTreeSet<String> = all().iter().map(|reply| reply.name().to_owned()).collect();
        names.len() == 3
    });
    mesh.apply(&traffic("shop", &["affinity: {cookie: {name: at}}"]));
    let jar = client.work().join("jar").to_string_lossy().into_owned();
    eventually("it is kept", || who(&client, 8, &[known, "-b", &jar, "-c", &jar, &front]).len() == 1);
    let kept = who(&client, 20, &[known, "-b", &jar, "-c", &jar, &front]);
    assert_eq!(kept.len(), 1, "{kept:?}");
    // HTTP/1's heads say the same.
    assert!(std::fs::read_to_string(&jar).unwrap().contains("at\t"));
}

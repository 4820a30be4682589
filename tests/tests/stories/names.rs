//! How names of the mesh are answered: for how long, and where the answer is larger than a datagram.

use std::time::Duration;

use mesh_tests::{
    Mesh,
    dns::{dig, resolver, with_resolv_conf},
    eventually::until,
    resources::Service,
};

/// The mesh with this time for its names.
fn mesh_ttl(ttl: &str) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{mtls: {{mode: 'off'}}, dns: {{ttl: {ttl}}}}}\n"
    )
}

#[test]
fn answers_hold_as_long_as_the_service_says_or_the_mesh() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("shop", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("own", 2).tcp("tcp", 80).yaml().replace("spec:\n", "spec:\n  dns: {ttl: 1m}\n"));
    let dns = mesh.pod(1, "dns").outside().up();
    let _server = resolver(&dns, &["--no-resolv"]);
    let client = mesh.pod(1, "client").up();
    let seconds = |name: &str| {
        let text = dig(&client, dns.ip(), &[name]).text;
        let line =
            text.lines().find(|line| line.contains("\tIN\t") && !line.starts_with(';')).unwrap_or_default();
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let holds = |name: &str, want: &str| {
        until(
            Duration::from_secs(10),
            &format!("{name} holds for {want} s"),
            || seconds(name),
            |seen| seen == want,
        );
    };
    holds("shop.default.mesh", "5");
    holds("own.default.mesh", "60");
    mesh.apply(&mesh_ttl("30s"));
    holds("shop.default.mesh", "30");
    holds("own.default.mesh", "60");
    holds("gone.default.mesh", "30");
    mesh.apply(&mesh_ttl("0s"));
    holds("shop.default.mesh", "0");
}

#[test]
fn a_headless_service_of_many_is_answered_whole_over_tcp() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::headless("many").tcp("tcp", 80).yaml());
    let one = |i: u32| {
        format!(
            "---\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {{name: w-{i}}}\n\
             spec: {{addresses: [10.77.0.{i}], services: [{{service: many}}]}}\n"
        )
    };
    let all = (1..=100).map(one).collect::<Vec<_>>().concat();
    mesh.apply(&all);
    let dns = mesh.pod(1, "dns").outside().up();
    let _server = resolver(&dns, &["--no-resolv"]);
    let client = mesh.pod(1, "client").up();
    let ask = |args: &[&str]| dig(&client, dns.ip(), &[&["many.default.mesh"], args].concat());
    // Cut off over UDP, and said to be; dig asks again over TCP by itself.
    let whole =
        until(Duration::from_secs(10), "all of them", || ask(&["+noedns"]), |dug| dug.answers.len() == 100);
    assert!(whole.text.contains("(TCP)"), "{}", whole.text);
    let cut = ask(&["+noedns", "+ignore"]);
    assert!(cut.flags.split(' ').any(|flag| flag == "tc") && cut.answers.len() < 100, "{cut:?}");
    let large = ask(&["+bufsize=4096", "+ignore"]);
    assert!(!large.flags.split(' ').any(|flag| flag == "tc") && large.answers.len() == 100, "{large:?}");
    let srv = dig(&client, dns.ip(), &["_tcp._tcp.many.default.mesh", "SRV", "+tcp"]);
    assert_eq!(srv.answers.len(), 100, "{srv:?}");
    let conf = format!("nameserver {}\nsearch default.mesh\n", dns.ip());
    let found = with_resolv_conf(&client, &conf, &["getent", "ahostsv4", "many"]).unwrap();
    assert_eq!(found.lines().filter(|line| line.contains("STREAM")).count(), 100, "{found}");
}

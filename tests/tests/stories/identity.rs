//! Who is who: nodes join, their workloads have certificates, keys are rotated and revoked.
//!
//! The judge is openssl.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use mesh_tests::{
    Mesh, Node, eventually,
    resources::{Service, at, vip4},
    shell, within,
};
use serde_json::Value;

use crate::words::{settled, web};

const DEFAULT: &str = "spiffe://mesh.local/ns/default/sa/default";
/// Certificates that end within seconds, so that a story sees it.
const SHORT: [&str; 4] = ["--svid-ttl", "6s", "--node-ttl", "6s"];
const ROTATED: Duration = Duration::from_secs(40);

/// What the agent shows of an identity.
fn shown(node: &Node, identity: &str) -> Option<Value> {
    let all = node.identities();
    let of = all["identities"].as_array()?.iter().find(|one| one["identity"] == identity)?;
    (!of["notAfter"].is_null()).then(|| of.clone())
}

/// openssl on this node's files.
fn openssl(args: &[&str]) -> Result<String, String> {
    shell::run(Command::new("openssl").args(args), "").map_err(|error| format!("{error:#}"))
}

/// The node's bundle and an identity's chain, as files: roots, intermediates, leaf.
fn files(node: &Node, identity: &str) -> [PathBuf; 3] {
    let chain = shown(node, identity).expect("a certificate")["chain"].as_str().unwrap().to_owned();
    let end = "-----END CERTIFICATE-----";
    let (leaf, rest) = chain.split_at(chain.find(end).unwrap() + end.len());
    let roots = node.identities()["bundle"]["roots"].as_str().unwrap().to_owned();
    let write = |name: &str, text: &str| {
        let path = node.work().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    [write("roots.pem", &roots), write("rest.pem", rest), write("leaf.pem", leaf)]
}

/// Does openssl take an identity's certificate against the node's bundle?
fn verified(node: &Node, identity: &str) -> Result<String, String> {
    let [roots, rest, leaf] = files(node, identity).map(|path| path.to_string_lossy().into_owned());
    openssl(&["verify", "-CAfile", &roots, "-untrusted", &rest, &leaf])
}

fn ca(mesh: &Mesh) -> Value {
    serde_json::from_str(&mesh.meshctl(&["ca", "status", "-o", "json"], "")).unwrap()
}

fn root(status: &Value) -> String {
    status["roots"][0]["sha256"].as_str().unwrap().to_owned()
}

#[track_caller]
fn has(node: &Node, identity: &str) {
    eventually(&format!("{} holds {identity}", node.name()), || shown(node, identity).is_some());
}

fn state(mesh: &Mesh, node: &str) -> Value {
    let status: Value = serde_json::from_str(&mesh.meshctl(&["status", "-o", "json"], "")).unwrap();
    status["nodes"][node].clone()
}

#[test]
fn workloads_have_certificates_that_openssl_takes() {
    let mesh = Mesh::builder().nodes(2).up();
    let (one, two) = (mesh.node(1), mesh.node(2));
    let _a = mesh.pod(1, "a").up();
    let mut b = mesh.pod(2, "b").account("cart").up();
    let cart = "spiffe://mesh.local/ns/default/sa/cart";
    has(one, DEFAULT);
    has(two, cart);
    has(one, "spiffe://mesh.local/node/node1");
    for (node, identity) in [(one, DEFAULT), (two, cart), (one, "spiffe://mesh.local/node/node1")] {
        verified(node, identity).unwrap();
    }
    assert!(shown(one, cart).is_none(), "no workload of node 1 is cart");
    let [_, _, leaf] = files(two, cart).map(|path| path.to_string_lossy().into_owned());
    let text = openssl(&["x509", "-in", &leaf, "-noout", "-ext", "subjectAltName", "-subject"]).unwrap();
    assert!(text.contains("critical") && text.contains(&format!("URI:{cart}")), "{text}");
    let dump = two.identities().to_string();
    assert!(dump.contains("BEGIN CERTIFICATE") && !dump.contains("PRIVATE"), "{dump}");

    let table = two.meshctl(&["status", "--identities"]).unwrap();
    assert!(table.contains(cart) && (table.contains("in 60m") || table.contains("in 59m")), "{table}");
    let left = two.metrics().sum("mesh_identity_expires_seconds", &[("identity", cart)]);
    assert!((3000.0..=3600.0).contains(&left), "{left}");
    let issued = mesh.meshctl(&["ca", "issued"], "");
    assert!(issued.contains(cart) && issued.contains("node2"), "{issued}");

    // With its last workload the identity goes.
    b.leave();
    eventually("cart is dropped", || !two.identities().to_string().contains(cart));
    b.enrol();
    has(two, cart);
}

#[test]
fn a_token_for_a_single_use_joins_one_node_and_its_membership_outlives_restarts() {
    let mesh = Mesh::builder().nodes(2).lay();
    mesh.start_control();
    let (one, two) = (mesh.node(1), mesh.node(2));
    let token = |ttl: &str| {
        let args =
            ["token", "create", "--node", "node1", "--allow", "default/*", "--single-use", "--ttl", ttl];
        mesh.meshctl(&args, "")
    };
    fs::write(one.token_file(), token("1h")).unwrap();
    one.start_agent();
    one.wait_ready();
    let _a = mesh.pod(1, "a").up();
    has(one, DEFAULT);

    // Whoever else comes with it is refused: here node 2, under the name of node 1.
    fs::copy(one.token_file(), two.token_file()).unwrap();
    let mut args: Vec<String> = two.agent_args();
    let name = args.iter().position(|arg| arg == "node2").unwrap();
    args[name] = "node1".to_owned();
    let log = two.work().join("thief.log");
    let command = {
        let mut command =
            mesh_tests::process::command(two.agent_cgroup(), mesh_tests::process::own_program("mesh-agent"));
        command.args(&args);
        command
    };
    let thief = mesh_tests::process::Process::start(two.netns(), command, &log).unwrap();
    eventually("the thief is told", || thief.log().contains("used already"));
    drop(thief);

    // The node itself does not need it any more.
    fs::remove_file(one.token_file()).unwrap();
    one.kill_agent();
    one.start_agent();
    one.wait_ready();
    has(one, DEFAULT);
    assert!(mesh.meshctl(&["token", "list"], "").contains("used"));

    // One that has ended is named as such.
    fs::write(two.token_file(), token("1ms").replace("node1", "node2")).unwrap();
    two.start_agent();
    eventually("the end of the token is named", || two.log().contains("has expired"));
}

#[test]
fn a_revoked_node_is_out_until_it_is_given_a_new_token() {
    let mesh = Mesh::builder().nodes(2).up();
    let one = mesh.node(1);
    let _a = mesh.pod(1, "a").up();
    has(one, DEFAULT);
    let before = shown(one, DEFAULT).unwrap()["serial"].as_str().unwrap().to_owned();
    let said = mesh.meshctl(&["node", "revoke", "node1"], "");
    assert!(said.contains(&before) && said.contains("spiffe://mesh.local/node/node1"), "{said}");
    eventually("its streams have ended", || {
        let node = state(&mesh, "node1");
        node["connected"] == false && node["session"] == false
    });
    assert_eq!(state(&mesh, "node2")["connected"], true);
    eventually("it says why", || {
        one.log().contains("was revoked") || one.log().contains("CertificateRevoked")
    });
    assert!(mesh.meshctl(&["node", "list"], "").contains("revoked"));
    // The others refuse what it had.
    let two = mesh.node(2);
    eventually("node 2 knows the list", || {
        let lists = two.identities()["bundle"]["revoked"].as_array().map_or(0, Vec::len);
        lists == 1
    });
    let list = two.identities()["bundle"]["revoked"][0].as_str().unwrap().to_owned();
    let path = two.work().join("crl.pem");
    fs::write(&path, list).unwrap();
    let text = openssl(&["crl", "-in", &path.to_string_lossy(), "-noout", "-text"]).unwrap();
    assert!(text.contains(&before.to_uppercase()), "{text}");
    let [roots, rest, leaf] = files(one, DEFAULT).map(|path| path.to_string_lossy().into_owned());
    let crl = path.to_string_lossy().into_owned();
    let args = ["verify", "-crl_check", "-CRLfile", &crl, "-CAfile", &roots, "-untrusted", &rest, &leaf];
    assert!(openssl(&args).unwrap_err().contains("revoked"));

    mesh.issue_token(one);
    within(ROTATED, "it is back", || state(&mesh, "node1")["session"] == true);
    within(ROTATED, "with another certificate", || {
        shown(one, DEFAULT).is_some_and(|now| now["serial"] != before.as_str())
    });
    verified(one, DEFAULT).unwrap();
}

#[test]
fn keys_of_the_authority_are_rotated_while_agents_stay_connected() {
    let mesh = Mesh::builder().nodes(2).control_args(&SHORT).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _server = web(&mesh, 2, "a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let nodes = || mesh.nodes().collect::<Vec<_>>();
    for node in nodes() {
        has(node, DEFAULT);
    }
    let before = ca(&mesh);
    assert_eq!(before["stage"], "steady");
    let serial = shown(mesh.node(1), DEFAULT).unwrap()["serial"].clone();
    within(ROTATED, "certificates are renewed", || {
        shown(mesh.node(1), DEFAULT).is_some_and(|now| now["serial"] != serial)
    });

    mesh.meshctl(&["ca", "rotate"], "");
    let after = ca(&mesh);
    assert_eq!((root(&after), after["generation"].as_u64()), (root(&before), Some(2)));
    assert_ne!(after["intermediate"]["sha256"], before["intermediate"]["sha256"]);
    let intermediate = after["intermediate"]["name"].as_str().unwrap().to_owned();
    let issuer = |node: &Node| {
        let [_, _, leaf] = files(node, DEFAULT);
        openssl(&["x509", "-in", &leaf.to_string_lossy(), "-noout", "-issuer"]).unwrap()
    };
    for node in nodes() {
        within(ROTATED, "the new intermediate signs", || issuer(node).contains(&intermediate));
        verified(node, DEFAULT).unwrap();
    }

    mesh.meshctl(&["ca", "rotate", "--root"], "");
    assert_eq!(root(&ca(&mesh)), root(&before), "announced, and signs nothing yet");
    let again = mesh.try_meshctl(&["ca", "rotate", "--root"], "");
    assert!(again.is_err() || ca(&mesh)["stage"] != "announced", "one at a time");
    within(ROTATED, "the new root signs", || root(&ca(&mesh)) != root(&before));
    let renewed = ca(&mesh);
    assert_eq!(renewed["roots"].as_array().unwrap().len(), 2);
    // Every certificate holds before every bundle on the way.
    within(ROTATED, "the old root is gone", || {
        for node in nodes() {
            verified(node, DEFAULT).unwrap();
        }
        let status = ca(&mesh);
        status["stage"] == "steady" && status["roots"].as_array().unwrap().len() == 1
    });
    for node in nodes() {
        within(ROTATED, "its bundle is the new root alone", || {
            let bundle = node.identities()["bundle"]["roots"].as_str().unwrap().to_owned();
            bundle.matches("BEGIN").count() == 1
        });
        verified(node, DEFAULT).unwrap();
        assert_eq!(state(&mesh, node.name())["session"], true);
    }
    settled(&client, at(vip4(1), 80), &["a"]);
    // A restart believes the new root, whatever the token names.
    mesh.node(1).kill_agent();
    mesh.node(1).start_agent();
    mesh.node(1).wait_ready();
    within(ROTATED, "in step after a restart", || state(&mesh, "node1")["session"] == true);
}

#[test]
fn certificates_are_kept_while_nobody_renews_them() {
    let mesh = Mesh::builder().control_args(&["--svid-ttl", "10s"]).up();
    let _a = mesh.pod(1, "a").up();
    let node = mesh.node(1);
    has(node, DEFAULT);
    mesh.kill_control();
    let serial = shown(node, DEFAULT).unwrap()["serial"].clone();
    within(ROTATED, "a renewal fails", || node.metrics().sum("mesh_identity_failed_total", &[]) >= 3.0);
    assert_eq!(shown(node, DEFAULT).unwrap()["serial"], serial);
    let status = node.ask("status", Value::Null, &[]).unwrap();
    assert!(status["status"]["conditions"].to_string().contains("no new certificate"), "{status}");
    mesh.start_control();
    within(ROTATED, "renewed again", || shown(node, DEFAULT).is_some_and(|now| now["serial"] != serial));
    eventually("and nothing is wrong", || {
        let status = node.ask("status", Value::Null, &[]).unwrap();
        !status["status"]["conditions"].to_string().contains("no new certificate")
    });
}

#[test]
fn an_intermediate_of_somebody_elses_authority_signs() {
    let dir = std::env::temp_dir().join(format!("mesh-given-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let usage = "keyUsage=critical,keyCertSign,cRLSign";
    let root = ["req", "-x509", "-days", "30", "-subj", "/CN=Company root", "-addext", usage];
    openssl(&[&root[..], &key, &["-keyout", &file("root.key"), "-out", &file("root.pem")]].concat()).unwrap();
    let below = [
        "req",
        "-x509",
        "-days",
        "20",
        "-subj",
        "/CN=Mesh intermediate",
        "-addext",
        usage,
        "-addext",
        "basicConstraints=critical,CA:TRUE,pathlen:0",
        "-CA",
        &file("root.pem"),
        "-CAkey",
        &file("root.key"),
    ];
    openssl(&[&below[..], &key, &["-keyout", &file("ca.key"), "-out", &file("ca.pem")]].concat()).unwrap();
    let flags = ["--ca-cert", &file("ca.pem"), "--ca-key", &file("ca.key"), "--ca-bundle", &file("root.pem")];

    let mesh = Mesh::builder().control_args(&flags).up();
    let _a = mesh.pod(1, "a").up();
    has(mesh.node(1), DEFAULT);
    let [_, rest, leaf] = files(mesh.node(1), DEFAULT).map(|path| path.to_string_lossy().into_owned());
    openssl(&["verify", "-CAfile", &file("root.pem"), "-untrusted", &rest, &leaf]).unwrap();
    assert_eq!(ca(&mesh)["own"], false);
    let refused = mesh.try_meshctl(&["ca", "rotate"], "").unwrap_err();
    assert!(format!("{refused:#}").contains("--ca-cert"), "{refused:#}");
    drop(mesh);
    fs::remove_dir_all(dir).unwrap();
}

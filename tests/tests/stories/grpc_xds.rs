//! gRPC's own client (PyPI's grpcio) that dials `xds:///service.namespace.mesh:port`: known by a certificate of the
//! mesh's, it resolves, balances, follows routes and endpoints, and a control plane that restarts.

use std::{fs, path::Path, process::Command, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually, mesh::CONTROL, process::Process, programs::wait_for_ports, resources::Service,
    shell,
};
use serde_json::json;

const PYTHON: &str = "/usr/bin/python3";
/// As `cargo xtask test` has fetched it.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/grpcio");
const SERVER: &str = include_str!("grpc_xds/server.py");
const CLIENT: &str = include_str!("grpc_xds/client.py");
const WAIT: Duration = Duration::from_secs(30);

fn serving(mesh: &Mesh, name: &str, service: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(1, name).serves(service, "grpc", 8080).outside().up();
    let path = format!("PYTHONPATH={MODULES}");
    let mut server = pod.start("grpc", "/usr/bin/env", &[&path, PYTHON, "-c", SERVER, name]);
    wait_for_ports(&pod, &mut server, &[8080]);
    pod.enrol();
    (pod, server)
}

/// Certificate and bootstrap file of a client.
fn bootstrap(mesh: &Mesh, pod: &Pod) -> String {
    let file = |name: &str| pod.work().join(name).to_string_lossy().into_owned();
    let mut openssl = Command::new("openssl");
    openssl.args("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj / -keyout".split(' '));
    openssl.args([&file("key.pem"), "-out", &file("csr.pem")]);
    shell::run(&mut openssl, "").expect("openssl makes a request");
    let (csr, cert) = (file("csr.pem"), file("cert.pem"));
    mesh.meshctl(&["proxy", "certificate", "grpc", "--csr", &csr, "--out", &cert], "");
    let tls = json!({
        "ca_certificate_file": file("ca.pem"), "certificate_file": cert, "private_key_file": file("key.pem"),
    });
    let text = json!({
        "xds_servers": [{
            "server_uri": format!("{CONTROL}:15010"),
            "channel_creds": [{ "type": "tls", "config": tls }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": "grpc-client" },
    });
    fs::write(file("xds.json"), text.to_string()).expect("write the bootstrap");
    file("xds.json")
}

/// Lines of the client: calls answered, by whom; and those that were not.
fn answers(client: &Process, name: &str) -> usize {
    client.log().lines().filter(|line| *line == name).count()
}

#[test]
fn grpc_resolves_and_balances_by_xds() {
    assert!(Path::new(MODULES).exists(), "{MODULES} is missing: cargo xtask test fetches it");
    let mesh = Mesh::builder().control_args(&["--envoys"]).up();
    mesh.apply(&Service::vip("echo", 1).http("grpc", 8080).yaml());
    mesh.apply(&Service::vip("other", 2).http("grpc", 8080).yaml());
    let _echo = [serving(&mesh, "echo-1", "echo"), serving(&mesh, "echo-2", "echo")];
    let _other = serving(&mesh, "other-1", "other");
    let pod = mesh.pod(1, "client").beside().up();
    let file = bootstrap(&mesh, &pod);
    let args =
        [&format!("PYTHONPATH={MODULES}"), &format!("GRPC_XDS_BOOTSTRAP={file}"), PYTHON, "-c", CLIENT];
    let target = "xds:///echo.default.mesh:8080".to_owned();
    let args: Vec<&str> = args.iter().map(|arg| &**arg).chain([target.as_str()]).collect();
    let client = pod.start("client", "/usr/bin/env", &args);
    let asked = |name: &str| {
        let before = answers(&client, name);
        eventually::within(WAIT, &format!("{name} is asked"), || answers(&client, name) > before + 5);
    };
    asked("echo-1");
    asked("echo-2");
    let table = mesh.meshctl(&["proxy", "status"], "");
    assert!(table.contains("grpc-client") && table.contains("gRPC"), "{table}");

    let more = serving(&mesh, "echo-3", "echo");
    asked("echo-3");
    more.0.drain(1000);
    let gone = || {
        let before = answers(&client, "echo-3");
        asked("echo-1");
        answers(&client, "echo-3") == before
    };
    eventually::within(WAIT, "echo-3 is asked no more", gone);

    mesh.kill_control();
    asked("echo-2");
    mesh.start_control();
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: echo}\nspec:\n  \
         parentRefs: [{kind: Service, name: echo}]\n  rules:\n  \
         - {matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: other, port: 8080}]}\n",
    );
    asked("other-1");
    let log = client.log();
    let failed: Vec<_> = log.lines().filter(|line| line.starts_with("error")).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

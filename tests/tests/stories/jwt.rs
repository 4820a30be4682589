//! Tokens: who issues them shows its keys over HTTPS, policies ask for them, applications are told of them.
//!
//! The other side is PyJWT: it makes the keys, the tokens and the key sets (`jwt/issuer.py`).

use std::{fs, path::PathBuf, process::Command, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    mesh::CONTROL,
    process::{self, Process},
    programs::{Reply, curl, url},
    resources::{Service, authorization, vip4, vip6},
    shell, within,
};
use serde_json::{Value, json};

const PYTHON: &str = "/usr/bin/python3";
const ISSUER: &str = include_str!("jwt/issuer.py");
const PORT: &str = "8443";
/// For what the control plane asks again each second.
const ROTATED: Duration = Duration::from_secs(20);

/// Answers with the head that it got.
pub const ECHO: &str = r"
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        lines = ''.join(f'got {name.lower()}={value}\n' for name, value in self.headers.items())
        body = (f'name={sys.argv[2]}\n' + lines).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
print('ready', flush=True)
Server(('::', int(sys.argv[1])), Handler).serve_forever()
";

/// Who issues tokens, on the control plane's host.
struct Issuer<'m> {
    mesh: &'m Mesh,
    dir: PathBuf,
    server: Option<Process>,
}

impl<'m> Issuer<'m> {
    /// Shows one key, `first`.
    fn up(mesh: &'m Mesh) -> Self {
        let dir = mesh.fabric().data().with_file_name("issuer");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("issuer.py"), ISSUER).unwrap();
        let mut issuer = Self { mesh, dir, server: None };
        issuer.run(&["init", &CONTROL.to_string()]);
        issuer.run(&["keys", "first:RS256"]);
        issuer.serve();
        issuer
    }

    fn serve(&mut self) {
        let mut command = process::command(self.mesh.fabric().cgroup(), PYTHON);
        command.arg(self.dir.join("issuer.py")).arg(&self.dir).args(["serve", &CONTROL.to_string(), PORT]);
        let log = self.dir.join("serve.log");
        let server = Process::start(&self.mesh.fabric().netns, command, &log).unwrap();
        eventually("the issuer listens", || server.log().contains("ready"));
        self.server = Some(server);
    }

    fn run(&self, args: &[&str]) -> String {
        let mut command = Command::new(PYTHON);
        command.arg(self.dir.join("issuer.py")).arg(&self.dir).args(args);
        shell::run(&mut command, "").unwrap().trim().to_owned()
    }

    /// A token that is good for an hour, with some of its claims changed; `null`: without.
    fn token(&self, key: &str, alg: &str, change: Value) -> String {
        let mut claims = json!({
            "iss": "https://id.example", "aud": ["shop"], "sub": "alice", "exp": 3600, "iat": 0,
            "realm": {"roles": ["admin", "staff"]}, "level": 7,
        });
        let (Some(claims), Value::Object(change)) = (claims.as_object_mut(), change) else {
            panic!("objects")
        };
        claims.extend(change);
        claims.retain(|_, value| !value.is_null());
        self.run(&["token", key, alg, &serde_json::to_string(claims).unwrap()])
    }

    /// The mesh, with this issuer as the provider `shop`.
    fn mesh_yaml(&self, more: &str) -> String {
        let ca = fs::read_to_string(self.dir.join("ca.pem")).unwrap();
        let jwks = json!({"url": format!("https://{CONTROL}:{PORT}/"), "ca": ca});
        format!(
            "apiVersion: nodemesh.io/v1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec:\n  jwtProviders:\n  \
             - {{name: shop, issuer: 'https://id.example', audiences: [shop], clockSkew: 0s, jwks: {jwks}{more}}}\n"
        )
    }
}

const CLAIMS: &str = ", forward: false, claimsToHeaders: [{claim: realm.roles, header: x-roles}, {claim: sub, header: x-user}]";
/// Who is `admin` may come to port 8080.
const ADMINS: &str = "[{from: [{jwt: {provider: shop, claims: [{name: realm.roles, values: [admin]}]}}], \
                      to: [{ports: [8080]}]}]";

/// A pod labelled `app: web` that echoes heads at 8080, behind the service `web` (number 1).
fn web(mesh: &Mesh) -> (Pod, Process) {
    mesh.apply(&Service::vip("web", 1).http("http", 80).yaml());
    let mut pod = mesh.pod(1, "web-0").label("app", "web").serves("web", "http", 8080).outside().up();
    let server = pod.start("echo", PYTHON, &["-c", ECHO, "8080", "web-0"]);
    eventually("the application is ready", || server.log().contains("ready"));
    pod.enrol();
    (pod, server)
}

/// A request with this token (empty: without) and more headers; the answer's head stands before its body.
fn ask(from: &Pod, to: &str, token: &str, more: &[&str]) -> Reply {
    let bearer = format!("Authorization: Bearer {token}");
    let mut args = vec!["-i", to];
    if !token.is_empty() {
        args.extend(["-H", &bearer]);
    }
    for header in more {
        args.extend(["-H", header]);
    }
    curl(from, &args)
}

#[track_caller]
fn refused(reply: &Reply, status: u16, reason: &str) {
    let head = reply.body.to_ascii_lowercase();
    assert_eq!(reply.status, status, "{reply:?}");
    assert!(head.contains(&format!("x-mesh-reason: {reason}")), "{reason}: {head}");
    let challenge = match (status, reason) {
        (401, "jwt_missing") => Some("www-authenticate: bearer\r\n"),
        (401, _) => Some("www-authenticate: bearer error=\"invalid_token\""),
        _ => None,
    };
    // curl's lines end without their CR here.
    let challenge = challenge.map(|text| text.trim_end().to_owned());
    assert_eq!(head.contains("www-authenticate"), challenge.is_some(), "{head}");
    assert!(challenge.is_none_or(|text| head.contains(&text)), "{head}");
}

#[track_caller]
fn becomes(what: &str, from: &Pod, to: &str, token: &str, status: u16) {
    within(ROTATED, what, || ask(from, to, token, &[]).status == status);
}

#[test]
fn requests_need_a_good_token_and_the_application_is_told_of_it() {
    let mesh = Mesh::builder().nodes(2).mtls().control_args(&["--jwks-refresh", "1s"]).up();
    let (web, _echo) = web(&mesh);
    let (near, far) = (mesh.pod(1, "near").up(), mesh.pod(2, "far").up());
    let issuer = Issuer::up(&mesh);
    mesh.apply(&issuer.mesh_yaml(CLAIMS));
    mesh.apply(&authorization("web", "web", "allow", ADMINS));
    let good = issuer.token("first", "RS256", json!({}));
    let ways =
        [url(vip4(1), 80, "/"), url(vip6(1), 80, "/"), url(web.ip(), 8080, "/"), url(web.ip6(), 8080, "/")];
    for from in [&near, &far] {
        for to in &ways {
            becomes("without a token it is refused", from, to, "", 401);
            becomes("a good token is taken", from, to, &good, 200);
            let reply = ask(from, to, &good, &["X-Roles: root", "x_user: root", "X-Other: kept"]);
            let body = &reply.body;
            assert!(
                body.contains("got x-roles=admin,staff\n") && body.contains("got x-user=alice\n"),
                "{body}"
            );
            assert!(!body.contains("root") && !body.contains("got authorization"), "{body}");
            assert!(body.contains("got x-other=kept"), "{body}");
            refused(&ask(from, to, "", &["X-Roles: admin"]), 401, "jwt_missing");
        }
    }
    let shop = |change: Value| issuer.token("first", "RS256", change);
    for (token, status, reason) in [
        (shop(json!({"realm": {"roles": ["staff"]}})), 403, "denied_by_policy"),
        (shop(json!({"realm": null, "realm.roles": "admin"})), 200, ""),
        (shop(json!({"exp": -5})), 401, "jwt_expired"),
        (shop(json!({"exp": null})), 401, "jwt_malformed"),
        (shop(json!({"nbf": 600})), 401, "jwt_not_yet_valid"),
        (shop(json!({"aud": "cart"})), 401, "jwt_audience"),
        (shop(json!({"iss": "https://id.example/"})), 401, "jwt_issuer"),
        (issuer.token("stranger", "RS256", json!({})), 401, "jwt_unknown_key"),
        (issuer.token("first", "PS512", json!({})), 200, ""),
        (issuer.token("first", "none", json!({})), 401, "jwt_algorithm"),
        (issuer.token("first", "confused", json!({})), 401, "jwt_algorithm"),
        (format!("{}AAAA", &good[..good.len() - 4]), 401, "jwt_signature"),
        ("not-a-token".to_owned(), 401, "jwt_malformed"),
    ] {
        for from in [&near, &far] {
            let reply = ask(from, &ways[0], &token, &[]);
            if status == 200 {
                assert_eq!(reply.status, 200, "{reply:?}");
            } else {
                refused(&reply, status, reason);
            }
        }
    }
    let tokens = |outcome| mesh.node(1).metrics().count("mesh_jwt_tokens_total", &[("outcome", outcome)]);
    assert!(tokens("known") >= 10 && tokens("checked") >= 3 && tokens("refused") >= 20);
    let missing = [("reason", "jwt_missing"), ("status", "401")];
    assert!(mesh.node(1).metrics().count("mesh_requests_total", &missing) >= 4);
    // Bytes that are no request carry no token.
    let raw = far.run(PYTHON, &["-c", RAW, &web.ip().to_string()]).unwrap();
    assert_eq!(raw.trim(), "refused", "{raw}");
}

/// What comes back for bytes that are no HTTP.
pub const RAW: &str = r"
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 8080), 5) as s:
        s.sendall(b'\x00\x01raw bytes\r\n\r\n')
        answer = s.recv(1000)
except OSError:
    answer = b''
print('answered' if answer and b'x-mesh-reason' not in answer else 'refused')
";

#[test]
fn keys_are_rotated_and_the_last_good_ones_outlive_their_issuer() {
    let mesh = Mesh::builder().control_args(&["--jwks-refresh", "1s"]).up();
    let (_web, _echo) = web(&mesh);
    let client = mesh.pod(1, "client").up();
    let mut issuer = Issuer::up(&mesh);
    mesh.apply(&issuer.mesh_yaml(""));
    mesh.apply(&authorization("web", "web", "allow", ADMINS));
    let to = url(vip4(1), 80, "/");
    let first = issuer.token("first", "RS256", json!({}));
    becomes("without a token it is refused", &client, &to, "", 401);
    becomes("the first key is taken", &client, &to, &first, 200);
    assert!(ask(&client, &to, &first, &[]).body.contains("got authorization=Bearer "), "it is forwarded");
    // Another key beside it, of another kind, then alone.
    issuer.run(&["keys", "first:RS256", "second:ES256", "third:EdDSA"]);
    let second = issuer.token("second", "ES256", json!({}));
    let third = issuer.token("third", "EdDSA", json!({}));
    for token in [&second, &third] {
        becomes("a new key is taken", &client, &to, token, 200);
    }
    assert_eq!(ask(&client, &to, &first, &[]).status, 200);
    issuer.run(&["keys", "second:ES256"]);
    for token in [&first, &third] {
        becomes("a key that is shown no more is not", &client, &to, token, 401);
        refused(&ask(&client, &to, token, &[]), 401, "jwt_unknown_key");
    }
    assert_eq!(ask(&client, &to, &second, &[]).status, 200);

    // The issuer goes; nothing changes, but that it is said.
    issuer.server = None;
    let said = || mesh.meshctl(&["get", "mesh", "-o", "json"], "");
    within(ROTATED, "the mesh says so", || said().contains("its last good keys stay in force"));
    assert_eq!(ask(&client, &to, &second, &[]).status, 200);
    mesh.kill_control();
    mesh.start_control();
    within(ROTATED, "a control plane that begins without it says so too", || {
        said().contains("does not answer")
    });
    let node = mesh.node(1);
    node.kill_agent();
    node.start_agent();
    node.wait_ready();
    becomes("and an agent that begins knows the keys", &client, &to, &second, 200);
    mesh.kill_control();
    node.kill_agent();
    node.start_agent();
    node.wait_ready();
    becomes("and one that begins without a control plane", &client, &to, &second, 200);
    refused(&ask(&client, &to, &first, &[]), 401, "jwt_unknown_key");
    mesh.start_control();
    issuer.run(&["keys", "first:RS256"]);
    issuer.serve();
    becomes("it is back, with the first key", &client, &to, &first, 200);
    becomes("and the second one is over", &client, &to, &second, 401);
}

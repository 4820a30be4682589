//! The API as foreign clients see it: its description holds, bad input is a named refusal, nothing breaks it.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use mesh_tests::{
    Mesh,
    api::{admin_token, ask, curl},
    eventually,
    mesh::CONTROL,
    resources::{Service, at},
    shell,
    tls::Authority,
    within,
};
use serde_json::{Value, json};

use crate::words::{answered, lines};

/// Where xtask puts what PyPI has.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/schemathesis");
/// What the fuzzer may take.
const FUZZ_SECONDS: u64 = 60;

/// Watches do not end; what a URL names is what the body names, else nothing would ever be written.
const HOOKS: &str = r"
import schemathesis
@schemathesis.hook
def filter_query(context, query):
    return not query or str(query.get('watch', 'false')).lower() != 'true'
@schemathesis.hook
def map_case(context, case):
    metadata = case.body.get('metadata') if isinstance(case.body, dict) else None
    if isinstance(metadata, dict) and case.path_parameters and 'name' in case.path_parameters:
        for part in ('name', 'namespace'):
            named = metadata.get(part, 'default')
            if isinstance(named, str) and named.isascii() and named.isalnum():
                case.path_parameters[part] = named
    return case
";

fn python(mesh: &Mesh, args: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", MODULES).current_dir(&mesh.place().work).args(args);
    command
}

#[test]
fn the_description_is_valid_and_made_up_requests_find_no_fault() {
    let mesh = Mesh::builder().lay();
    mesh.start_control();
    let admin = admin_token(&mesh);
    let page = mesh.place().work.join("openapi.json");
    let output = curl(&mesh, "", "/openapi.json", &[]);
    fs::write(&page, &output.stdout).unwrap();
    let page = page.to_string_lossy().into_owned();
    let mut validator = python(&mesh, &["-m", "openapi_spec_validator", &page]);
    let said = shell::run(&mut validator, "").unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.contains("OK"), "{said}");

    fs::write(mesh.place().work.join("hooks.py"), HOOKS).unwrap();
    let ca = mesh.fabric().data().join("ca.pem").to_string_lossy().into_owned();
    let header = format!("Authorization: Bearer {admin}");
    let url = format!("https://{CONTROL}:15080");
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let mut fuzz = Command::new("timeout");
    fuzz.env("PYTHONPATH", MODULES).env("SCHEMATHESIS_HOOKS", "hooks").current_dir(&mesh.place().work);
    fuzz.args([&(FUZZ_SECONDS + 60).to_string(), "python3", "-m", "schemathesis.cli", "run", &page]);
    fuzz.args(["--url", &url, "-H", &header, "--checks", checks, "--tls-verify", &ca, "--no-color"]);
    fuzz.args([
        "--warnings",
        "off",
        "--max-time",
        &FUZZ_SECONDS.to_string(),
        "--request-timeout",
        "10",
        "--phases",
        "fuzzing",
    ]);
    // They would take the test's own token, or the authority that it knows the server by.
    for name in ["revokeToken", "rotate"] {
        fuzz.args(["--exclude-operation-id", name]);
    }
    let output = mesh.fabric().netns.with(|| fuzz.output()).expect("run schemathesis");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("generated"), "{text}");
    // It wrote what it made up; the control plane is as well as before.
    mesh.apply(&Service::vip("after", 99).tcp("tcp", 80).yaml());
    mesh.kill_control();
    mesh.start_control();
    assert!(mesh.meshctl(&["get", "service", "after"], "").contains("after"));
}

#[test]
fn a_program_that_balances_itself_hears_of_endpoints() {
    let mesh = Mesh::builder().nodes(2).places(&[("eu", "a"), ("eu", "b")]).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let viewer = mesh.meshctl(&["token", "create", "--role", "viewer"], "").trim().to_owned();
    let first = lines(&mesh, 1, "a", "raw");
    let path = "/v1/discover/default/raw";
    let endpoints = |body: &Value| body["endpoints"].as_array().map_or(0, Vec::len);
    eventually("the first endpoint", || endpoints(&ask(&mesh, &viewer, path, &[]).body) == 1);
    let found = ask(&mesh, &viewer, path, &[]).body;
    assert_eq!(found["endpoints"][0]["locality"]["zone"], "a", "{found}");
    let index = found["index"].as_str().unwrap();
    let (wait, thread_mesh) = (format!("{path}?wait=15s&index={index}"), &mesh);
    let later = std::thread::scope(|scope| {
        let waits = scope.spawn(|| ask(thread_mesh, &viewer, &wait, &[]));
        let second = lines(&mesh, 2, "b", "raw");
        let later = waits.join().unwrap();
        assert_eq!(endpoints(&later.body), 2, "{later:?}");
        drop(second);
        later
    });
    // It goes where it was told.
    let client = mesh.pod(1, "outside").outside().up();
    for one in later.body["endpoints"].as_array().unwrap() {
        let to = at(
            one["addresses"][0].as_str().unwrap().parse::<std::net::IpAddr>().unwrap(),
            one["targetPort"].as_u64().unwrap() as u16,
        );
        if one["workload"].as_str().unwrap().ends_with("/a") {
            answered(&client, to, &["a"]);
        }
    }
    drop(first);
    assert_eq!(ask(&mesh, &viewer, "/v1/apply", &["-d", "{}"]).status, 403);
}

#[test]
fn a_watch_goes_on_while_others_write() {
    let mesh = Mesh::builder().lay();
    mesh.start_control();
    let admin = admin_token(&mesh);
    let mut command = Command::new("curl");
    command.args(["-sSN", "--cacert"]).arg(mesh.fabric().data().join("ca.pem"));
    command.args(["-H", &format!("Authorization: Bearer {admin}")]);
    command.arg(format!("https://{CONTROL}:15080/v1/services?watch=true")).stdout(Stdio::piped());
    let mut child = mesh.fabric().netns.with(|| command.spawn()).unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut next =
        |word: &str| told.by_ref().find(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word}"));
    next("event: synced");
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    assert!(next("data: ").contains("synced") || next("event: put") == "event: put");
    mesh.meshctl(&["delete", "service", "raw"], "");
    next("event: delete");
    assert!(next("data: ").contains("\"name\":\"raw\""));
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn bad_input_is_a_named_refusal_and_changes_nothing() {
    let mesh = Mesh::builder().lay();
    mesh.start_control();
    let admin = admin_token(&mesh);
    let before = ask(&mesh, &admin, "/v1/status", &[]).body["revision"].clone();
    let work = mesh.place().work.clone();
    let file = |name: &str, text: &[u8]| {
        fs::write(work.join(name), text).unwrap();
        format!("@{}", work.join(name).display())
    };
    let post = |data: &str| ask(&mesh, &admin, "/v1/apply", &["--data-binary", data]);
    let large = file("large", &vec![b'x'; 10 << 20]);
    let deep = file("deep", format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000)).as_bytes());
    let bytes = file("bytes", b"{\"kind\": \"\xff\xfe\"}");
    for (data, status, words) in [
        (large.as_str(), 413, "too large"),
        (&deep, 400, "recursion limit"),
        (&bytes, 400, "invalid unicode"),
        ("{\"kind\": \"Pod\", \"apiVersion\": \"v1\", \"metadata\": {\"name\": \"a\"}}", 400, "kind"),
        ("{\"kind\": 7}", 400, "kind"),
        ("[]", 400, "the object"),
    ] {
        let answer = post(data);
        assert!(answer.status == status && answer.said().contains(words), "{data}: {answer:?}");
    }
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..30 {
        let list = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb.extend([format!("a{n}: &a{n} [{list}]\n")]);
    }
    for (name, text) in [
        ("bomb.yaml", bomb.as_bytes()),
        ("deep.yaml", "- ".repeat(100_000).as_bytes()),
        ("bytes.yaml", b"kind: \xff\xfe"),
    ] {
        let _ = file(name, text);
        let path = work.join(name).to_string_lossy().into_owned();
        let error = format!("{:#}", mesh.try_meshctl(&["apply", "-f", &path], "").unwrap_err());
        assert!(error.contains(name), "{error}");
    }
    let short = mesh.meshctl(&["token", "create", "--role", "viewer", "--ttl", "1s"], "").trim().to_owned();
    within(Duration::from_secs(5), "the token ends", || {
        ask(&mesh, &short, "/v1/services", &[]).status == 401
    });
    assert!(ask(&mesh, &short, "/v1/services", &[]).said().contains("has expired"));
    let viewer = mesh.meshctl(&["token", "create", "--role", "viewer"], "").trim().to_owned();
    assert_eq!(ask(&mesh, &viewer, "/v1/services/a/b", &["-X", "DELETE"]).status, 403);
    let tokens =
        ask(&mesh, &admin, "/v1/status", &[]).body["revision"].as_u64().unwrap() - before.as_u64().unwrap();
    assert_eq!(tokens, 2, "two tokens, and nothing else, were written");
}

#[test]
fn a_full_disk_is_said_and_nothing_acknowledged_is_lost() {
    let mesh = Mesh::builder().volatile_store().lay();
    mesh.start_control();
    let (admin, data) = (admin_token(&mesh), mesh.fabric().data());
    let remount = |size: &str| {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,size={size}")]).arg(&data);
        shell::run(&mut command, "").unwrap_or_else(|error| panic!("{error:#}"));
    };
    remount("6m");
    let mut written = Vec::new();
    let refusal = (0..400).find_map(|number| {
        let labels: Value = (0..60).map(|n| (format!("l{n}"), "x".repeat(60).into())).collect::<serde_json::Map<_, _>>().into();
        let object = json!({
            "apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": {"name": format!("s{number}"), "labels": labels},
            "spec": {"ports": (1..400).map(|port| json!({"port": port, "name": format!("p{port}")})).collect::<Vec<_>>()},
        });
        let path = mesh.place().work.join("object.json");
        fs::write(&path, object.to_string()).unwrap();
        let answer = ask(&mesh, &admin, "/v1/apply", &["--data-binary", &format!("@{}", path.display())]);
        if answer.status == 201 {
            written.push(format!("s{number}"));
            return None;
        }
        Some(answer)
    });
    let refusal = refusal.expect("the disk gets full");
    assert_eq!(refusal.status, 503, "{refusal:?}");
    assert!(refusal.said().contains("disk full") || refusal.said().contains("No space"), "{refusal:?}");
    assert!(!written.is_empty());
    let names = |mesh: &Mesh| -> Vec<String> {
        let list = ask(mesh, &admin, "/v1/services", &[]).body;
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let holds_all = |names: &[String]| written.iter().all(|name| names.contains(name));
    assert!(holds_all(&names(&mesh)), "reads go on");
    remount("64m");
    mesh.kill_control();
    mesh.start_control();
    assert!(holds_all(&names(&mesh)), "what was acknowledged is there");
    mesh.apply(&Service::vip("after", 9).tcp("tcp", 80).yaml());
}

#[test]
fn the_rest_port_shows_a_given_certificate_and_its_successor() {
    let work = std::env::temp_dir().join(format!("nm-tls-{}", std::process::id()));
    fs::create_dir_all(&work).unwrap();
    let authority = Authority::new(&work, "company");
    let given = authority.issue("control", &format!("IP:{CONTROL}"), 30);
    let mesh = Mesh::builder().control_args(&["--tls-cert", &given.cert, "--tls-key", &given.key]).lay();
    let shown = |mesh: &Mesh| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "5", "--cacert", &authority.file(), "-w", "%{certs}"]);
        command.arg(format!("https://{CONTROL}:15080/healthz"));
        mesh.fabric().netns.with(|| shell::run(&mut command, ""))
    };
    mesh.start_control_unasked();
    eventually("the company's certificate is shown", || shown(&mesh).is_ok());
    let first = shown(&mesh).unwrap();
    let next = authority.issue("next", &format!("IP:{CONTROL}"), 30);
    fs::copy(&next.key, &given.key).unwrap();
    fs::copy(&next.cert, &given.cert).unwrap();
    within(Duration::from_secs(20), "its successor is shown", || shown(&mesh).is_ok_and(|now| now != first));
    let _ = fs::remove_dir_all(&work);
}

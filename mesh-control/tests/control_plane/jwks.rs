//! Keys of those who issue tokens: from a file, from a URL, kept while their source is away.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_api::proto::discovery::DeltaDiscoveryRequest;
use mesh_api::proto::v1::JwtKeys;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Agent, Control, PATIENCE, Person};

fn set(kid: &str) -> String {
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "A".repeat(43)}]}).to_string()
}

fn mesh(jwks: &Value) -> Value {
    json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Mesh", "metadata": {"name": "mesh"},
        "spec": {"jwtProviders": [{"name": "shop", "issuer": "https://id", "jwks": jwks}]},
    })
}

/// An issuer on loopback that answers what it is told to: status line, and body.
struct Issuer {
    url: String,
    says: Arc<Mutex<(String, String)>>,
}

impl Issuer {
    async fn up() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let says = Arc::new(Mutex::new(("200 OK".to_owned(), set("one"))));
        let answers = says.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (status, body) = answers.lock().unwrap().clone();
                let _ = stream.read(&mut [0; 4096]).await;
                let length = body.len();
                let head = "cache-control: max-age=1\r\nlocation: https://other/\r\nconnection: close";
                let answer = format!("HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, says }
    }

    fn say(&self, status: &str, body: &str) {
        *self.says.lock().unwrap() = (status.to_owned(), body.to_owned());
    }
}

async fn agent(control: &Control) -> Agent {
    let agent = control.agent(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    let request = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/nodemesh.v1.JwtKeys".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    agent.send(request).await;
    agent
}

/// Names of the keys that the agent is told next; none where they are gone.
async fn told(agent: &mut Agent) -> Vec<String> {
    let response = agent.next().await;
    agent.ack(&response).await;
    let Some(resource) = response.resources.first() else { return Vec::new() };
    assert_eq!(resource.name, "shop");
    let keys = JwtKeys::decode(&*resource.resource.as_ref().unwrap().value).unwrap();
    keys.keys.into_iter().map(|key| key.kid).collect()
}

/// Waits until the Mesh says so.
async fn said(admin: &Person, problem: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, mesh) = admin.get("/v1/mesh").await;
        let shown = mesh["status"]["conditions"].to_string();
        if shown.contains(problem) {
            return;
        }
        assert!(Instant::now() < deadline, "{problem} is not in {shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_followed_and_its_last_good_keys_outlive_it_and_a_restart() {
    let mut control = Control::up().await;
    let (admin, issuer) = (control.admin(), Issuer::up().await);
    let mut first = agent(&control).await;
    assert_eq!(told(&mut first).await, Vec::<String>::new());
    admin.apply(&mesh(&json!({"url": issuer.url}))).await;
    assert_eq!(told(&mut first).await, ["one"]);
    issuer.say("200 OK", &set("two"));
    assert_eq!(told(&mut first).await, ["two"]);
    let long = format!("{} {}", set("big"), " ".repeat(300 << 10));
    for (status, body, problem) in [
        ("500 Oops", set("three"), "answers 500, not 200"),
        ("302 Found", set("three"), "302"),
        ("200 OK", "{}".to_owned(), "no object with a list"),
        ("200 OK", long, "longer than"),
    ] {
        issuer.say(status, &body);
        said(&admin, problem).await;
    }
    said(&admin, "its last good keys stay in force").await;
    assert!(control.running().engine.metrics.jwks_failures.get() >= 4);
    drop(first);

    control.restart().await;
    let admin = control.admin();
    let mut second = agent(&control).await;
    assert_eq!(told(&mut second).await, ["two"], "although its issuer answers nothing good");
    said(&admin, "longer than").await;
    issuer.say("200 OK", &set("four"));
    assert_eq!(told(&mut second).await, ["four"]);
    said(&admin, r#""status":"True""#).await;

    // Another source's keys are not these.
    let elsewhere = "http://10.255.0.1/keys";
    admin.apply(&mesh(&json!({"url": elsewhere}))).await;
    assert_eq!(told(&mut second).await, Vec::<String>::new());
    said(&admin, "--jwks-plain-http").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_again_when_it_changes_and_an_inline_set_with_the_mesh() {
    let control = Control::up().await;
    let admin = control.admin();
    let dir = control.config.data.join("jwks");
    std::fs::create_dir(&dir).unwrap();
    let mut agent = agent(&control).await;
    told(&mut agent).await;
    admin.apply(&mesh(&json!({"file": "shop.json"}))).await;
    said(&admin, "shop.json cannot be read").await;
    std::fs::write(dir.join("shop.json"), set("one")).unwrap();
    assert_eq!(told(&mut agent).await, ["one"]);
    std::fs::write(dir.join("shop.json"), "half").unwrap();
    said(&admin, "it is not JSON").await;
    std::fs::write(dir.join("shop.json"), set("two")).unwrap();
    assert_eq!(told(&mut agent).await, ["two"]);
    admin.apply(&mesh(&json!({"inline": set("here")}))).await;
    // The file's keys go at once; both changes may come as one.
    let mut now = told(&mut agent).await;
    if now.is_empty() {
        now = told(&mut agent).await;
    }
    assert_eq!(now, ["here"]);
    admin.apply(&mesh(&json!({"inline": set("there")}))).await;
    assert_eq!(told(&mut agent).await, ["there"]);
    let (_, shown) = admin.get("/v1/mesh").await;
    assert!(shown["spec"]["jwtProviders"][0]["jwks"]["inline"].as_str().unwrap().contains("there"));
    let (_, page) = admin.get("/v1/status").await;
    assert_eq!(page["conditions"], json!([]));
}

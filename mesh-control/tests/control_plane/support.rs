//! A control plane, people ([`Person`]) and agents ([`Agent`], [`Session`]) for tests. Every wait is bounded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_api::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail};
use mesh_api::proto::v1::identity_client::IdentityClient;
use mesh_api::proto::v1::node_client::NodeClient;
use mesh_api::proto::v1::{
    Heartbeat, Hello, JoinRequest, JoinResponse, Membership, SessionDown, SessionUp, SignRequest,
    SigningRequest, TrustBundle, Workload, WorkloadUpsert, session_down, session_up, signed,
};
use mesh_api::resource::Kind;
use mesh_control::config::Serve;
use mesh_control::server::{Running, start};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Control {
    pub running: Option<Running>,
    pub config: Serve,
    /// Of join tokens.
    nodes: Mutex<BTreeMap<String, String>>,
    _dir: Arc<TempDir>,
}

pub fn config(data: PathBuf) -> Serve {
    Serve {
        data,
        api: ([127, 0, 0, 1], 0).into(),
        agents: ([127, 0, 0, 1], 0).into(),
        envoys: Some(([127, 0, 0, 1], 0).into()),
        name: Vec::new(),
        heartbeat: Duration::from_secs(1),
        lease: Duration::from_secs(2),
        svid_ttl: Duration::from_hours(1),
        node_ttl: Duration::from_hours(1),
        ca_cert: None,
        ca_key: None,
        ca_bundle: None,
        tls_cert: None,
        tls_key: None,
        files: None,
        jwks_dir: None,
        jwks_refresh: Duration::from_secs(1),
        jwks_plain_http: false,
        store: mesh_control::store::StoreArgs::default(),
        no_fsync: false,
        log: String::new(),
    }
}

impl Control {
    pub async fn up() -> Self {
        Self::up_with(|_| {}).await
    }

    pub async fn up_with(change: impl FnOnce(&mut Serve)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = config(dir.path().join("data"));
        change(&mut config);
        let running = Some(start(&config).await.unwrap());
        Self { running, config, nodes: Mutex::default(), _dir: dir }
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub async fn down(&mut self) {
        self.running.take().unwrap().stop().await;
    }

    pub async fn restart(&mut self) {
        self.down().await;
        // The store is closed by its last user, the registry's thread among them.
        let deadline = Instant::now() + PATIENCE;
        let running = loop {
            match start(&self.config).await {
                Ok(running) => break running,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.running = Some(running);
    }

    pub fn ca(&self) -> Vec<u8> {
        std::fs::read(self.config.data.join("ca.pem")).unwrap()
    }

    pub fn admin(&self) -> Person {
        let token = std::fs::read_to_string(self.config.data.join("admin.token")).unwrap();
        self.person(token.trim())
    }

    pub fn person(&self, token: &str) -> Person {
        let ca = ureq::tls::Certificate::from_pem(&self.ca()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::new_with_certs(&[ca]))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let http = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Person { http, url: format!("https://{}", self.running().api), token: token.to_owned() }
    }

    pub async fn join_token(&self, node: &str, allow: &[&str]) -> String {
        let body = json!({ "role": "node", "node": node, "allow": allow });
        let (status, answer) = self.admin().post("/v1/tokens", &body).await;
        assert_eq!(status, 201, "{answer}");
        let token = answer["token"].as_str().unwrap().to_owned();
        self.nodes.lock().unwrap().insert(token.clone(), node.to_owned());
        token
    }

    fn endpoint(&self, identity: Option<Identity>) -> Endpoint {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.ca())).domain_name("localhost");
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let address = format!("https://{}", self.running().agents);
        Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap()
    }

    /// Joins as the node of the token; what a connection shows from then on.
    pub async fn join(&self, token: &str) -> Result<Joined, Status> {
        // The node that the token is for is known to who made it.
        let node = self.nodes.lock().unwrap().get(token).cloned().unwrap_or_default();
        self.join_as(token, &node).await
    }

    pub async fn join_as(&self, token: &str, node: &str) -> Result<Joined, Status> {
        let (key, csr) = request(&[]);
        let mut client = IdentityClient::new(self.endpoint(None).connect().await.unwrap());
        let request = JoinRequest { token: token.to_owned(), node: node.to_owned(), csr };
        let JoinResponse { certificate, bundle } = client.join(request).await?.into_inner();
        let (certificate, bundle) = (certificate.unwrap(), bundle.unwrap());
        let identity = Identity::from_pem(pem(&certificate.chain), key.serialize_pem());
        let channel = self.endpoint(Some(identity)).connect().await.unwrap();
        Ok(Joined { bundle, channel })
    }

    /// An agent's configuration stream.
    pub async fn agent(&self, token: &str) -> Result<Agent, Status> {
        self.join(token).await?.agent().await
    }

    /// A node's session, before its hello.
    pub async fn session(&self, token: &str) -> Result<Session, Status> {
        self.join(token).await?.session().await
    }
}

/// A node that has joined.
pub struct Joined {
    pub bundle: TrustBundle,
    pub channel: Channel,
}

impl Joined {
    pub async fn agent(&self) -> Result<Agent, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let mut client =
            AggregatedDiscoveryServiceClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Agent { requests, responses })
    }

    pub async fn session(&self) -> Result<Session, Status> {
        let (messages, outgoing) = mpsc::channel(16);
        let mut client = NodeClient::new(self.channel.clone());
        let answers = client.session(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Session { messages, answers })
    }

    /// Asks for certificates; each request's CSR is for the identity that it names.
    pub async fn sign(&self, identities: &[&str]) -> Result<Vec<signed::Result>, Status> {
        let one = |identity: &&str| SigningRequest {
            identity: (*identity).to_owned(),
            csr: request(&[identity]).1,
        };
        self.sign_these(identities.iter().map(one).collect()).await
    }

    pub async fn sign_these(&self, requests: Vec<SigningRequest>) -> Result<Vec<signed::Result>, Status> {
        let mut client = IdentityClient::new(self.channel.clone());
        let answer = client.sign(SignRequest { requests }).await?.into_inner();
        Ok(answer.results.into_iter().map(|signed| signed.result.unwrap()).collect())
    }
}

/// A key, and a request for these names.
pub fn request(names: &[&str]) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

/// Certificates as PEM.
pub fn pem(chain: &[Vec<u8>]) -> String {
    let one = |der: &Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()));
    chain.iter().map(one).collect()
}

/// Somebody with an API token.
#[derive(Clone)]
pub struct Person {
    http: ureq::Agent,
    url: String,
    token: String,
}

impl Person {
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, &[], String::new()).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.send("DELETE", path, &[], String::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, &[], body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("PUT", path, &[], body.to_string()).await
    }

    /// Applies what must be accepted.
    pub async fn apply(&self, object: &Value) -> Value {
        let (status, answer) = self.post("/v1/apply", object).await;
        assert!(matches!(status, 200 | 201), "{status} {answer}");
        answer
    }

    pub async fn send(
        &self,
        method: &'static str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> (u16, Value) {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (request, http) = (request.body(body).unwrap(), self.http.clone());
        let call = move || {
            let mut response = http.run(request).unwrap();
            let text = response.body_mut().read_to_string().unwrap();
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            (response.status().as_u16(), value)
        };
        tokio::task::spawn_blocking(call).await.unwrap()
    }

    /// An answer that goes on, or is no JSON.
    pub fn open(&self, path: &str) -> impl std::io::Read + Send + 'static {
        let mut request = self.http.get(format!("{}{path}", self.url)).config().timeout_global(None).build();
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        let response = request.call().unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.into_body().into_reader()
    }

    /// Asks until `holds`; fails after [`PATIENCE`].
    pub async fn eventually(&self, path: &str, holds: impl Fn(u16, &Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, value) = self.get(path).await;
            if holds(status, &value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{path} stays {status} {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An agent's configuration stream.
pub struct Agent {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Agent {
    pub async fn subscribe(&self, kind: Kind, has: &BTreeMap<String, String>) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: has.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// Subscribes and takes the first response.
    pub async fn first(&mut self, kind: Kind, has: &BTreeMap<String, String>) -> DeltaDiscoveryResponse {
        self.subscribe(kind, has).await;
        let response = self.next().await;
        assert_eq!(response.type_url, kind.type_url());
        self.ack(&response).await;
        response
    }

    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.try_next().await.unwrap().expect("a response")
    }

    pub async fn try_next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("nothing came")
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub async fn nack(&self, response: &DeltaDiscoveryResponse, cause: &str) {
        let detail = ErrorDetail { code: 3, message: cause.to_owned() };
        self.answer(response, Some(detail)).await;
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error_detail: Option<ErrorDetail>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

/// Names and versions of a response: what an agent says on reconnect.
pub fn versions(response: &DeltaDiscoveryResponse) -> BTreeMap<String, String> {
    response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
}

pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// A node's session.
pub struct Session {
    messages: mpsc::Sender<SessionUp>,
    answers: Streaming<SessionDown>,
}

impl Session {
    pub async fn send(&self, message: session_up::Message) {
        self.messages.send(SessionUp { message: Some(message) }).await.unwrap();
    }

    pub async fn next(&mut self) -> Result<session_down::Message, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("nothing came")?;
        Ok(answer.expect("an answer").message.expect("a message"))
    }

    pub async fn hello(&mut self, node: &str) -> Result<session_down::Message, Status> {
        self.send(session_up::Message::Hello(Hello { node: node.to_owned(), ..Hello::default() })).await;
        self.next().await
    }

    pub async fn heartbeat(&self) {
        self.send(session_up::Message::Heartbeat(Heartbeat {})).await;
    }

    pub async fn upsert(&mut self, namespace: &str, account: &str, name: &str) -> session_down::Message {
        let workload = Workload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: account.to_owned(),
            addresses: vec!["10.0.0.7".to_owned()],
            ..Workload::default()
        };
        let member =
            Membership { service: "web".to_owned(), target_port: 8080, weight: 1, ..Membership::default() };
        let upsert = WorkloadUpsert {
            request: 7,
            workload: Some(workload),
            memberships: vec![member],
            ..WorkloadUpsert::default()
        };
        self.send(session_up::Message::Upsert(upsert)).await;
        self.next().await.unwrap()
    }
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] },
    })
}

pub fn workload(name: &str, app: &str, weight: u16) -> Value {
    json!({
        "apiVersion": "nodemesh.io/v1", "kind": "Workload",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": app } },
        "spec": { "addresses": ["10.0.0.1"], "weight": weight },
    })
}

//! The port for Envoys: who is let in, as which type, and what is whose.

use mesh_api::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use mesh_envoy::codec::Type;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};

use crate::support::{Control, PATIENCE, request};

struct Envoy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

/// A stream by a token, or by a certificate.
async fn stream(control: &Control, token: &str, identity: Option<Identity>) -> Result<Envoy, Status> {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(control.ca())).domain_name("localhost");
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let address = format!("https://{}", control.running().envoys.unwrap());
    let channel = Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    let (requests, outgoing) = mpsc::channel(16);
    let mut call = Request::new(ReceiverStream::new(outgoing));
    if !token.is_empty() {
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let responses =
        AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(call).await?.into_inner();
    Ok(Envoy { requests, responses })
}

impl Envoy {
    async fn ask(&self, id: &str, of: Type, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: id.to_owned(), ..Node::default() }),
            type_url: of.url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("nothing came");
        next.map(|response| response.expect("a response"))
    }
}

async fn token(control: &Control, node_type: &str) -> (String, String) {
    let body = json!({ "role": "envoy", "node": node_type });
    let (status, answer) = control.admin().post("/v1/tokens", &body).await;
    assert_eq!(status, 201, "{answer}");
    let text = |field: &str| answer[field].as_str().unwrap().to_owned();
    (text("token"), text("id"))
}

fn edge() -> Value {
    json!({
        "apiVersion": "nodemesh.io/v1", "kind": "EnvoyResources", "metadata": { "name": "edge", "namespace": "shop" },
        "spec": { "secrets": [{ "name": "s", "tls_certificate": { "private_key": { "filename": "/k" } } }] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_told_to_their_own_type_alone() {
    let control = Control::up().await;
    control.admin().apply(&edge()).await;
    for (node_type, there) in [("edge", 1), ("core", 0)] {
        let (token, _) = token(&control, node_type).await;
        let mut envoy = stream(&control, &token, None).await.unwrap();
        envoy.ask(&format!("{node_type}-1"), Type::Secret, &["s"]).await;
        let response = envoy.next().await.unwrap();
        assert_eq!((response.resources.len(), response.removed_resources.len()), (there, 1 - there));
    }
    let (token, _) = token(&control, "core").await;
    let mut envoy = stream(&control, &token, None).await.unwrap();
    envoy.ask("edge-1", Type::Secret, &["s"]).await;
    let status = envoy.next().await.unwrap_err();
    assert!(
        status.code() == tonic::Code::PermissionDenied && status.message().contains("\"core\""),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_proof_is_not_let_in_and_a_revoked_token_ends_its_streams() {
    let control = Control::up().await;
    let admin = control.admin();
    let people = std::fs::read_to_string(control.config.data.join("admin.token")).unwrap();
    for (token, code) in [
        ("", tonic::Code::Unauthenticated),
        ("nma.none", tonic::Code::Unauthenticated),
        (people.trim(), tonic::Code::PermissionDenied),
    ] {
        let status = stream(&control, token, None).await.err().expect("refused");
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains("meshctl token create --envoy"), "{status}");
    }
    let (token, id) = token(&control, "edge").await;
    assert_eq!(control.person(&token).get("/v1/status").await.0, 403, "it reads nothing else");
    let mut envoy = stream(&control, &token, None).await.unwrap();
    envoy.ask("edge-1", Type::Cluster, &[]).await;
    envoy.next().await.unwrap();
    admin.delete(&format!("/v1/tokens/{id}")).await;
    assert_eq!(envoy.next().await.unwrap_err().code(), tonic::Code::Unauthenticated);
    admin.eventually("/v1/proxies", |_, answer| answer["items"][0]["streams"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_stands_for_its_type() {
    let control = Control::up().await;
    let (key, csr) = request(&[]);
    let csr = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", csr));
    let (status, answer) = control.admin().post("/v1/envoy/edge/certificate", &json!({ "csr": csr })).await;
    assert_eq!((status, &answer["identity"]), (200, &json!("spiffe://mesh.local/envoy/edge")), "{answer}");
    let identity = Identity::from_pem(answer["certificate"].as_str().unwrap(), key.serialize_pem());
    let mut envoy = stream(&control, "", Some(identity.clone())).await.unwrap();
    envoy.ask("edge-1", Type::Cluster, &[]).await;
    assert!(envoy.next().await.unwrap().resources.is_empty());
    let serial = answer["serial"].as_str().unwrap();
    let (status, said) = control.admin().post("/v1/ca/revoke", &json!({ "serial": serial })).await;
    assert_eq!(status, 200, "{said}");
    assert!(envoy.next().await.is_err(), "its stream ends");
    let (status, answer) = control.admin().post("/v1/envoy/edge/certificate", &json!({ "csr": "no" })).await;
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("openssl"), "{answer}");
}

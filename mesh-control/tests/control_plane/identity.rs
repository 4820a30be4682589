//! Joining, and who gets which certificate.

use std::time::Duration;

use mesh_api::proto::discovery::DeltaDiscoveryRequest;
use mesh_api::proto::v1::signed::Result as Signed;
use mesh_api::proto::v1::{SigningRefusal as Why, SigningRequest, TrustBundle};
use prost::Message;
use serde_json::json;
use tonic::Code;

use crate::support::{Agent, Control, Joined, request};

const CART: &str = "spiffe://mesh.local/ns/shop/sa/cart";

fn why(outcome: &Signed) -> Option<Why> {
    match outcome {
        Signed::Certificate(_) => None,
        Signed::Refused(refused) => Some(refused.reason()),
    }
}

/// A node that may host shop/*, with a session in which it hosts cart.
async fn hosting(control: &Control) -> (Joined, crate::support::Session) {
    let token = control.join_token("n1", &["shop/*"]).await;
    let joined = control.join(&token).await.unwrap();
    let mut session = joined.session().await.unwrap();
    session.hello("n1").await.unwrap();
    session.upsert("shop", "cart", "cart-1").await;
    (joined, session)
}

async fn bundle(agent: &mut Agent) -> TrustBundle {
    let response = agent.next().await;
    agent.ack(&response).await;
    TrustBundle::decode(&*response.resources[0].resource.as_ref().unwrap().value).unwrap()
}

async fn subscribed(joined: &Joined) -> Agent {
    let agent = joined.agent().await.unwrap();
    let request = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/nodemesh.v1.TrustBundle".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    agent.send(request).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_certificates_for_what_it_hosts_and_may_host() {
    let control = Control::up().await;
    let (joined, mut session) = hosting(&control).await;
    let answers = joined
        .sign(&[
            CART,
            "spiffe://mesh.local/node/n1",
            "spiffe://mesh.local/ns/shop/sa/pay",
            "spiffe://mesh.local/ns/bank/sa/pay",
            "spiffe://other/ns/shop/sa/cart",
            "spiffe://mesh.local/node/n2",
            "nobody",
        ])
        .await
        .unwrap();
    let whys: Vec<_> = answers.iter().map(why).collect();
    let foreign = Some(Why::ForeignIdentity);
    let hosted = Some(Why::NotHosted);
    assert_eq!(whys, [None, None, hosted, Some(Why::NotGranted), foreign, foreign, Some(Why::BadRequest)]);
    let Signed::Certificate(certificate) = &answers[0] else { panic!() };
    assert_eq!((certificate.chain.len(), certificate.generation), (2, 1));
    assert_eq!(certificate.not_after - certificate.not_before, 3600 + 120);

    // What it no longer hosts it gets no longer.
    let remove =
        mesh_api::proto::v1::WorkloadRemove { request: 8, namespace: "shop".into(), name: "cart-1".into() };
    session.send(mesh_api::proto::v1::session_up::Message::Remove(remove)).await;
    session.next().await.unwrap();
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while why(&joined.sign(&[CART]).await.unwrap()[0]) != hosted {
        assert!(std::time::Instant::now() < deadline);
    }
    // A request for another identity than its own names.
    let (_, csr) = request(&["spiffe://mesh.local/ns/shop/sa/pay"]);
    let twisted = SigningRequest { identity: "spiffe://mesh.local/node/n1".into(), csr };
    assert_eq!(why(&joined.sign_these(vec![twisted]).await.unwrap()[0]), Some(Why::BadRequest));
    let too_many = vec![SigningRequest::default(); 257];
    assert_eq!(joined.sign_these(too_many).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_single_use_opens_the_door_once() {
    let control = Control::up().await;
    let body = json!({ "role": "node", "node": "n1", "allow": ["shop/*"], "singleUse": true });
    let (_, answer) = control.admin().post("/v1/tokens", &body).await;
    let token = answer["token"].as_str().unwrap();
    let other = control.join_as(token, "n2").await.err().unwrap();
    assert_eq!(other.code(), Code::PermissionDenied);
    let joined = control.join_as(token, "n1").await.unwrap();
    let replayed = control.join_as(token, "n1").await.err().unwrap();
    assert_eq!(replayed.code(), Code::Unauthenticated);
    assert!(replayed.message().contains("used already"), "{replayed}");
    joined.agent().await.expect("the grant outlives the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_valid_is_named() {
    let control = Control::up().await;
    let body = json!({ "role": "node", "node": "n1", "allow": ["shop/*"], "ttl": "1ms" });
    let (_, answer) = control.admin().post("/v1/tokens", &body).await;
    let expired = control.join_as(answer["token"].as_str().unwrap(), "n1").await.err().unwrap();
    assert!(expired.message().contains("has expired"), "{expired}");

    let token = control.join_token("n1", &["shop/*"]).await;
    let id = token.split('.').nth(1).unwrap();
    control.admin().delete(&format!("/v1/tokens/{id}")).await;
    let revoked = control.join(&token).await.err().unwrap();
    assert!(revoked.message().contains("revoked"), "{revoked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_ends_what_it_opened() {
    let control = Control::up_with(|config| config.node_ttl = Duration::from_secs(2)).await;
    let joined = control.join(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    let mut agent = joined.agent().await.unwrap();
    let ended = agent.try_next().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(ended.message().contains("has ended"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_whom_to_believe() {
    let mut control = Control::up().await;
    let joined = control.join(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    let mut agent = subscribed(&joined).await;
    let told = bundle(&mut agent).await;
    assert_eq!(told, joined.bundle);
    assert_eq!((&*told.trust_domain, told.roots.len(), told.generation), ("mesh.local", 1, 1));
    // Its certificate, and what it believes, outlive a restart of the control plane.
    control.restart().await;
    let again = control.join(&control.join_token("n2", &["shop/*"]).await).await.unwrap();
    assert_eq!(again.bundle, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_signs_when_every_connected_agent_has_taken_it() {
    let control = Control::up_with(|config| config.lease = Duration::from_mins(10)).await;
    let (joined, _session) = hosting(&control).await;
    let mut agent = subscribed(&joined).await;
    let old = bundle(&mut agent).await;
    let admin = control.admin();
    assert_eq!(admin.post("/v1/ca/rotate", &json!({ "root": true })).await.0, 200);
    assert_eq!(admin.post("/v1/ca/rotate", &json!({ "root": true })).await.0, 409, "one at a time");
    let announced = agent.next().await;
    let told = TrustBundle::decode(&*announced.resources[0].resource.as_ref().unwrap().value).unwrap();
    assert_eq!((told.roots.len(), &told.roots[0], told.generation), (2, &old.roots[0], 1));
    // Not before it has answered, however long that takes: two looks of the office at least.
    let seen = std::time::Instant::now() + Duration::from_millis(2500);
    while std::time::Instant::now() < seen {
        assert_eq!(admin.get("/v1/ca").await.1["stage"], "announced");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    agent.ack(&announced).await;
    let switched = bundle(&mut agent).await;
    assert_eq!((switched.roots.len(), switched.generation), (2, 2));
    assert_eq!(switched.roots, [told.roots[1].clone(), told.roots[0].clone()]);
    let Signed::Certificate(certificate) = &joined.sign(&[CART]).await.unwrap()[0] else { panic!() };
    assert_eq!(certificate.generation, 2);
    let (_, status) = admin.get("/v1/ca").await;
    assert_eq!((&status["stage"], &status["roots"].as_array().unwrap().len()), (&json!("overlap"), &2));
    // A token of now names the new root, and one of before still opens the door.
    control.join(&control.join_token("n2", &["shop/*"]).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_listed_and_opens_nothing() {
    let control = Control::up().await;
    let (joined, mut session) = hosting(&control).await;
    let mut agent = subscribed(&joined).await;
    assert!(bundle(&mut agent).await.revoked.is_empty());
    let Signed::Certificate(cart) = joined.sign(&[CART]).await.unwrap().remove(0) else { panic!() };
    let admin = control.admin();
    let (_, issued) = admin.get("/v1/ca/issued").await;
    assert_eq!(
        (&issued["items"][0]["serial"], &issued["items"][0]["identity"]),
        (&json!(cart.serial), &json!(CART))
    );
    assert_eq!(issued["valid"], 2);

    let (status, answer) = admin.post("/v1/ca/revoke", &json!({ "identity": CART })).await;
    assert_eq!((status, answer["revoked"].as_array().unwrap().len()), (200, 1));
    let list = bundle(&mut agent).await.revoked;
    let (_, list) = x509_parser::parse_x509_crl(&list[0]).unwrap();
    let serials: Vec<_> = list.iter_revoked_certificates().map(|one| one.raw_serial().to_vec()).collect();
    assert_eq!(serials.iter().map(|raw| mesh_control::ca::hex(raw)).collect::<Vec<_>>(), [cart.serial]);

    // The node's own: its streams end, and it must join again.
    let (_, answer) = admin.post("/v1/ca/revoke", &json!({ "node": "n1" })).await;
    assert_eq!(answer["revoked"].as_array().unwrap().len(), 1, "cart was revoked before");
    assert_eq!(session.next().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(joined.sign(&[CART]).await.unwrap_err().code(), Code::Unauthenticated);
    control.join(&control.join_token("n1", &["shop/*"]).await).await.unwrap();

    // A membership that ends takes the node's tokens along.
    let token = control.join_token("n1", &["shop/*"]).await;
    assert_eq!(admin.post("/v1/nodes/n1/revoke", &json!({})).await.0, 200);
    assert_eq!(admin.post("/v1/nodes/n9/revoke", &json!({})).await.0, 404);
    assert_eq!(control.join(&token).await.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(admin.get("/v1/nodes").await.1["items"][0]["node"], "n1");
    assert_eq!(admin.post("/v1/ca/revoke", &json!({ "everything": 1 })).await.0, 400);
    let viewer = admin.post("/v1/tokens", &json!({ "role": "viewer" })).await.1;
    let viewer = control.person(viewer["token"].as_str().unwrap());
    assert_eq!(viewer.get("/v1/ca").await.0, 200);
    assert_eq!(viewer.post("/v1/ca/rotate", &json!({})).await.0, 403);
}

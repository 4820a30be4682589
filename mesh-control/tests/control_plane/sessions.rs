//! What nodes register, and for how long.

use mesh_api::proto::v1::session_down::Message as Down;
use mesh_api::proto::v1::{Status, WorkloadRemove, session_up::Message as Up};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Control, service};

const WORKLOAD: &str = "/v1/workloads/shop/cart-1";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_what_its_token_grants_and_nothing_else() {
    let control = Control::up().await;
    let admin = control.admin();
    admin.apply(&service("web")).await;
    let token = control.join_token("n1", &["shop/cart"]).await;
    let mut session = control.session(&token).await.unwrap();
    let Down::Welcome(welcome) = session.hello("n1").await.unwrap() else { panic!("no welcome") };
    assert_eq!((welcome.heartbeat_seconds, welcome.lease_seconds), (1, 2));

    for (namespace, account) in [("shop", "pay"), ("bank", "cart"), ("shop", "")] {
        let Down::Refused(refused) = session.upsert(namespace, account, "cart-1").await else { panic!() };
        assert_eq!(refused.request, 7);
        assert!(refused.reason.contains("may not host"), "{}", refused.reason);
    }
    assert_eq!(admin.get(WORKLOAD).await.0, 404);

    let Down::Accepted(accepted) = session.upsert("shop", "cart", "cart-1").await else { panic!() };
    assert_eq!((accepted.request, accepted.conditions.len()), (7, 0));
    let (_, shown) = admin.get(WORKLOAD).await;
    assert_eq!((&shown["spec"]["node"], &shown["observed"]["owner"]), (&json!("n1"), &json!("node:n1")));
    assert_eq!(shown["observed"]["services"], json!(["web:80->8080"]));
    // It runs there: nobody takes it away over the API.
    assert_eq!(admin.delete(WORKLOAD).await.0, 409);

    session
        .send(Up::Status(Status { epoch: 9, conditions: vec!["map full".into()], ..Status::default() }))
        .await;
    let told = |_, status: &Value| status["nodes"]["n1"]["epoch"] == 9;
    let status = admin.eventually("/v1/status", told).await;
    assert_eq!(status["nodes"]["n1"]["conditions"], json!(["map full"]));
    assert_eq!(status["nodes"]["n1"]["workloads"], 1);

    let remove = WorkloadRemove { request: 8, namespace: "shop".into(), name: "cart-1".into() };
    session.send(Up::Remove(remove)).await;
    let Down::Accepted(accepted) = session.next().await.unwrap() else { panic!() };
    assert_eq!(accepted.request, 8);
    admin.eventually(WORKLOAD, |status, _| status == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_join_tokens_open_sessions_and_only_for_their_node() {
    let control = Control::up().await;
    let admin = control.admin();
    let token = control.join_token("n1", &["shop/*"]).await;
    let status = control.session(&token).await.unwrap().hello("n2").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("n2") && status.message().contains("n1"), "{status}");

    let forged = token.replace("nm1.", "nm1.0");
    assert_eq!(control.join_as(&forged, "n1").await.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(control.join_as("", "n1").await.err().unwrap().code(), Code::Unauthenticated);
    let (_, editor) = admin.post("/v1/tokens", &json!({ "role": "editor" })).await;
    let editor = editor["token"].as_str().unwrap();
    assert_eq!(control.join_as(editor, "n1").await.err().unwrap().code(), Code::PermissionDenied);
    // And a join token opens nothing for people.
    assert_eq!(control.person(&token).get("/v1/services").await.0, 403);

    // A revoked token ends what it opened, at once.
    let mut session = control.session(&token).await.unwrap();
    session.hello("n1").await.unwrap();
    let mut agent = control.agent(&token).await.unwrap();
    let id = token.split('.').nth(1).unwrap();
    assert_eq!(admin.delete(&format!("/v1/tokens/{id}")).await.0, 200);
    assert_eq!(session.next().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(agent.try_next().await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_leaves_workloads_until_the_lease_ends() {
    let control = Control::up().await;
    let admin = control.admin();
    let token = control.join_token("n1", &["shop/*"]).await;
    let mut session = control.session(&token).await.unwrap();
    session.hello("n1").await.unwrap();
    session.upsert("shop", "cart", "cart-1").await;
    drop(session);
    admin.eventually("/v1/status", |_, status| status["nodes"]["n1"]["session"] == false).await;
    assert_eq!(admin.get(WORKLOAD).await.0, 200);
    admin.eventually(WORKLOAD, |status, _| status == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_session_does_not_repeat_ends_with_its_first_heartbeat() {
    let control = Control::up_with(|config| config.lease = std::time::Duration::from_mins(10)).await;
    let admin = control.admin();
    let token = control.join_token("n1", &["shop/*"]).await;
    let mut first = control.session(&token).await.unwrap();
    first.hello("n1").await.unwrap();
    first.upsert("shop", "cart", "cart-1").await;
    first.upsert("shop", "cart", "cart-2").await;

    let mut second = control.session(&token).await.unwrap();
    second.hello("n1").await.unwrap();
    second.upsert("shop", "cart", "cart-2").await;
    assert_eq!(admin.get(WORKLOAD).await.0, 200, "until the first heartbeat");
    second.heartbeat().await;
    admin.eventually(WORKLOAD, |status, _| status == 404).await;
    assert_eq!(admin.get("/v1/workloads/shop/cart-2").await.0, 200);
    // The older session is over.
    first.heartbeat().await;
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);
}

//! What an agent is sent.

use std::collections::BTreeMap;

use mesh_api::proto::v1;
use mesh_api::resource::Kind;
use prost::Message;

use crate::support::{Control, names, service, versions, workload};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_sent_all_then_only_what_changes() {
    let control = Control::up().await;
    let admin = control.admin();
    admin.apply(&service("web")).await;
    admin.apply(&workload("w1", "web", 1)).await;
    admin.apply(&workload("w2", "web", 1)).await;

    let mut agent = control.agent(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    let nothing = BTreeMap::new();
    let mut has = BTreeMap::new();
    for (kind, expected) in [
        (Kind::Mesh, vec!["mesh"]),
        (Kind::Service, vec!["shop/web"]),
        (Kind::Workload, vec!["shop/w1", "shop/w2"]),
        (Kind::HttpRoute, vec![]),
        (Kind::GrpcRoute, vec![]),
        (Kind::TlsRoute, vec![]),
        (Kind::TcpRoute, vec![]),
        (Kind::UdpRoute, vec![]),
        (Kind::TrafficPolicy, vec![]),
        (Kind::AuthorizationPolicy, vec![]),
        (Kind::TransportPolicy, vec![]),
        (Kind::ExternalService, vec![]),
    ] {
        let response = agent.first(kind, &nothing).await;
        assert_eq!(names(&response), expected, "{kind}");
        let (store, revision) = response.system_version_info.rsplit_once('/').unwrap();
        assert_eq!(store, control.running().engine.store_id());
        assert!(revision.parse::<u64>().unwrap() >= 4);
        has.insert(kind, versions(&response));
    }

    admin.apply(&workload("w1", "web", 5)).await;
    let change = agent.next().await;
    assert_eq!((names(&change), change.removed_resources.len()), (vec!["shop/w1"], 0));
    let message = v1::Workload::decode(&*change.resources[0].resource.as_ref().unwrap().value).unwrap();
    assert_eq!(message.services[0].weight, 5);
    assert_ne!(change.resources[0].version, has[&Kind::Workload]["shop/w1"]);
    agent.ack(&change).await;
    drop(agent);

    // A returning agent is told the differences: here one change, one removal, nothing of the other types.
    admin.delete("/v1/workloads/shop/w2").await;
    let mut agent = control.agent(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    let workloads = agent.first(Kind::Workload, &has[&Kind::Workload]).await;
    assert_eq!(
        (names(&workloads), &workloads.removed_resources[..]),
        (vec!["shop/w1"], &["shop/w2".into()][..])
    );
    for kind in [Kind::Mesh, Kind::Service] {
        let same = agent.first(kind, &has[&kind]).await;
        assert_eq!((same.resources.len(), same.removed_resources.len()), (0, 0), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_coalesced_and_ends_in_the_last_state() {
    let control = Control::up().await;
    let admin = control.admin();
    let mut agent = control.agent(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    agent.first(Kind::Workload, &BTreeMap::new()).await;
    for weight in 1..=20 {
        admin.apply(&workload("w1", "web", weight)).await;
    }
    let last = admin.apply(&service("web")).await["metadata"]["revision"].as_u64().unwrap();
    let mut responses = 0;
    loop {
        let response = agent.next().await;
        agent.ack(&response).await;
        responses += 1;
        let value = &response.resources[0].resource.as_ref().unwrap().value;
        let message = v1::Workload::decode(&**value).unwrap();
        // The service came last: with it the workload has a membership, and only then.
        if let Some(membership) = message.services.first() {
            assert_eq!(membership.weight, 20);
            assert_eq!(response.system_version_info.rsplit_once('/').unwrap().1, last.to_string());
            break;
        }
    }
    assert!(responses <= 21, "{responses}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_an_agent_shows_in_status_until_it_accepts() {
    let control = Control::up().await;
    let admin = control.admin();
    let mut agent = control.agent(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    agent.first(Kind::Service, &BTreeMap::new()).await;
    admin.apply(&service("web")).await;
    let response = agent.next().await;
    agent.nack(&response, "no room for shop/web").await;
    let refused = |_, status: &serde_json::Value| {
        let node = &status["nodes"]["n1"];
        node["connected"] == true && node["types"]["Service"]["nack"] == "no room for shop/web"
    };
    admin.eventually("/v1/status", refused).await;

    admin.apply(&service("web2")).await;
    let response = agent.next().await;
    assert_eq!(names(&response), ["shop/web2"]);
    agent.ack(&response).await;
    let accepted = |_, status: &serde_json::Value| {
        let service = &status["nodes"]["n1"]["types"]["Service"];
        service["nack"].is_null() && service["acked"] == service["sent"]
    };
    admin.eventually("/v1/status", accepted).await;
    drop(agent);
    admin.eventually("/v1/status", |_, status| status["nodes"]["n1"]["connected"] == false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_types_end_the_stream_with_what_is_known() {
    let control = Control::up().await;
    let mut agent = control.agent(&control.join_token("n1", &["shop/*"]).await).await.unwrap();
    agent
        .send(mesh_api::proto::discovery::DeltaDiscoveryRequest {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".into(),
            ..Default::default()
        })
        .await;
    let status = agent.try_next().await.unwrap_err();
    assert!(status.message().contains("nodemesh.v1.Service"), "{status}");
}

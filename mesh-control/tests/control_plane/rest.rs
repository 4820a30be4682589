//! What people may do, and what they are told.

use serde_json::json;

use crate::support::{Control, service, workload};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_token_sees_more_than_health() {
    let control = Control::up().await;
    let nobody = control.person("");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(nobody.get(path).await.0, 200, "{path}");
    }
    for path in ["/metrics", "/v1/status", "/v1/services", "/v1/mesh", "/v1/tokens"] {
        let (status, answer) = nobody.get(path).await;
        assert_eq!((status, &answer["error"]["reason"]), (401, &json!("unauthenticated")), "{path}");
    }
    let wrong = control.person(&format!("nma.{}.{}", "0".repeat(12), "0".repeat(64)));
    assert_eq!(wrong.post("/v1/apply", &service("web")).await.0, 401);
    assert_eq!(control.admin().get("/v1/services").await.1["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_end_where_they_should() {
    let control = Control::up().await;
    let admin = control.admin();
    let mut people = Vec::new();
    for role in ["viewer", "editor"] {
        let (_, made) = admin.post("/v1/tokens", &json!({ "role": role, "ttl": "1h" })).await;
        people.push(control.person(made["token"].as_str().unwrap()));
    }
    let [viewer, editor] = &people[..] else { panic!() };
    assert_eq!(viewer.get("/v1/status").await.0, 200);
    assert_eq!(viewer.post("/v1/apply", &service("web")).await.0, 403);
    assert_eq!(editor.post("/v1/apply", &service("web")).await.0, 201);
    assert_eq!(viewer.delete("/v1/services/shop/web").await.0, 403);
    assert_eq!(editor.get("/v1/tokens").await.0, 403);
    let (_, tokens) = admin.get("/v1/tokens").await;
    let text = tokens.to_string();
    assert!(!text.contains("hash") && !text.contains("secret"), "{text}");
    for bad in [
        json!({ "role": "root" }),
        json!({ "role": "node", "node": "n1" }),
        json!({ "role": "editor", "ttl": "0s" }),
    ] {
        assert_eq!(admin.post("/v1/tokens", &bad).await.0, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_objects_are_refused_by_field_and_nothing_is_stored() {
    let control = Control::up().await;
    let admin = control.admin();
    let mut bad = service("web");
    bad["spec"]["ports"][0]["port"] = json!(70_000);
    let (status, answer) = admin.post("/v1/apply", &bad).await;
    let error = &answer["error"];
    assert_eq!(
        (status, &error["path"], &error["value"]),
        (400, &json!("spec.ports[0].port"), &json!(70_000))
    );
    assert_eq!((&error["reason"], &error["accepted"]), (&json!("out_of_range"), &json!("1..=65535")));

    let mut unknown = service("web");
    unknown["spec"]["colour"] = json!("red");
    assert_eq!(admin.post("/v1/apply", &unknown).await.1["error"]["reason"], "unknown_field");
    for (text, expected) in [
        ("{".to_owned(), 400),
        ("[".repeat(100_000), 400),
        (format!("{{\"a\": \"{}\"}}", "x".repeat(2 << 20)), 413),
        (json!({ "kind": "Pod", "apiVersion": "v1" }).to_string(), 400),
    ] {
        let (status, answer) = admin.send("POST", "/v1/apply", &[], text).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    let (status, _) = admin.put("/v1/services/shop/other", &service("web")).await;
    assert_eq!(status, 400, "the name in the URL is another");
    assert_eq!(admin.get("/v1/pods").await.0, 404);
    assert_eq!(admin.get("/v1/services").await.1["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_read_and_removed() {
    let control = Control::up().await;
    let admin = control.admin();
    assert_eq!(admin.get("/v1/mesh").await.1["spec"]["trustDomain"], "mesh.local");
    let made = admin.apply(&service("web")).await;
    assert_eq!(made["result"], "created");
    assert_eq!(made["status"]["vips"].as_array().unwrap().len(), 2);
    assert_eq!(admin.apply(&service("web")).await["result"], "unchanged");
    admin.apply(&workload("w1", "web", 1)).await;

    let (_, shown) = admin.get("/v1/services/shop/web").await;
    assert_eq!(shown["observed"]["endpoints"], 1);
    assert_eq!(admin.apply(&shown).await["result"], "unchanged", "what is read may be written");

    let mut changed = service("web");
    changed["spec"]["ports"][0]["protocol"] = json!("http");
    let revision = shown["metadata"]["revision"].as_u64().unwrap();
    let path = "/v1/services/shop/web";
    let stale = format!("\"{}\"", revision + 1);
    assert_eq!(admin.send("PUT", path, &[("if-match", &stale)], changed.to_string()).await.0, 412);
    let fresh = format!("\"{revision}\"");
    let (status, answer) = admin.send("PUT", path, &[("if-match", &fresh)], changed.to_string()).await;
    assert_eq!((status, &answer["result"]), (200, &json!("updated")));
    assert_eq!(answer["status"]["vips"], made["status"]["vips"], "addresses are kept over updates");
    assert_eq!(admin.get(path).await.1["observed"]["proxy"], json!(["80:http"]));

    assert_eq!(admin.delete(path).await.0, 200);
    assert_eq!(admin.get(path).await.0, 404);
    assert_eq!(admin.delete(path).await.0, 404);
    assert_eq!(admin.delete("/v1/mesh/x/mesh").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_workload_lives_as_long_as_its_heartbeats() {
    let control = Control::up().await;
    let admin = control.admin();
    let path = "/v1/workloads/shop/w1";
    assert_eq!(admin.put(&format!("{path}?lease=5x"), &workload("w1", "web", 1)).await.0, 400);
    let begin = std::time::Instant::now();
    assert_eq!(admin.put(&format!("{path}?lease=1s"), &workload("w1", "web", 1)).await.0, 201);
    while begin.elapsed() < std::time::Duration::from_millis(2500) {
        assert_eq!(admin.post(&format!("{path}/heartbeat"), &json!({})).await.0, 200);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(admin.get(path).await.0, 200);
    admin.eventually(path, |status, _| status == 404).await;
    assert_eq!(admin.post(&format!("{path}/heartbeat"), &json!({})).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_what_was_done() {
    let control = Control::up().await;
    let admin = control.admin();
    admin.apply(&service("web")).await;
    let (_, page) = admin.get("/metrics").await;
    let page = page.as_str().unwrap();
    for line in ["mesh_control_resources{kind=\"Service\"} 1", "mesh_control_nodes_connected 0"] {
        assert!(page.lines().any(|have| have == line), "{line} not in\n{page}");
    }
    assert!(page.contains("mesh_control_fsync_seconds{quantile=\"0.99\"}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policies_come_to_can_be_asked() {
    let control = Control::up().await;
    let admin = control.admin();
    let workload = |name: &str, account: &str, address: &str| {
        json!({
            "apiVersion": "nodemesh.io/v1", "kind": "Workload", "metadata": {"name": name},
            "spec": {"addresses": [address], "node": "n1", "serviceAccount": account, "services": [{"service": "db"}]},
        })
    };
    admin
        .apply(&json!({
            "apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": {"name": "db"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
        }))
        .await;
    admin.apply(&workload("db-0", "db", "10.0.0.1")).await;
    admin.apply(&workload("cart", "cart", "10.0.0.2")).await;
    admin
        .apply(&json!({
            "apiVersion": "nodemesh.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"},
            "spec": {"action": "allow", "rules": [{"from": [{"serviceAccounts": ["cart"]}]}]},
        }))
        .await;
    let path = |source: &str| format!("/v1/authz/check?source={source}&destination=default/db");
    let answer =
        admin.eventually(&path("cart"), |status, body| status == 200 && body["items"][1].is_object()).await;
    let db =
        answer["items"].as_array().unwrap().iter().find(|item| item["workload"] == "default/db-0").unwrap();
    assert_eq!(
        (&db["allowed"], &db["port"], &db["policies"]),
        (&json!(true), &json!(8080), &json!(["default/p"]))
    );
    let (status, refused) = admin.get(&path("10.9.9.9")).await;
    assert_eq!((status, &refused["items"][0]["allowed"]), (200, &json!(false)));
    for (path, field) in [
        (path("nobody"), "source"),
        (path("spiffe://x"), "source"),
        ("/v1/authz/check?source=cart&destination=none".to_owned(), "destination"),
    ] {
        let (status, body) = admin.get(&path).await;
        assert_eq!((status, &body["error"]["path"]), (404, &json!(field)), "{path}: {body}");
    }
    let (status, _) = admin.get("/v1/authz/check?source=cart").await;
    assert_eq!(status, 400);
    admin
        .apply(&json!({
            "apiVersion": "nodemesh.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"},
            "spec": {"rules": [{"to": [{"paths": ["/users/*"]}], "headers": [{"name": "x-a", "values": ["1"]}]}]},
        }))
        .await;
    let depends = |body: &serde_json::Value| {
        body["items"].as_array().is_some_and(|items| items.iter().any(|item| item["depends"] == true))
    };
    admin.eventually(&path("cart"), |status, body| status == 200 && depends(body)).await;
    let request = |path: &str, headers: &str| {
        format!("/v1/authz/check?source=cart&destination=db-0&path={path}&headers={headers}")
    };
    for (path, headers, allowed) in [
        ("/users/7", "x-a:1", true),
        ("/users/7", "x-a:2", false),
        ("/users/7", "", false),
        ("/", "X-A:%201", false),
    ] {
        let (status, body) = admin.get(&request(path, headers)).await;
        assert_eq!(
            (status, &body["items"][0]["allowed"]),
            (200, &json!(allowed)),
            "{path} {headers}: {body}"
        );
        assert!(!depends(&body));
    }
    let (status, body) = admin.get(&request("/", "nonsense")).await;
    assert_eq!((status, &body["error"]["path"]), (400, &json!("headers")), "{body}");
}

//! History, watches, pages, discovery, tokens and the audit log, as people use them.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use mesh_control::clock::unix_ms;
use serde_json::{Value, json};

use crate::support::{Control, PATIENCE, Person, service, workload};

const WEB: &str = "/v1/services/shop/web";

fn with_port(port: u16) -> Value {
    let mut object = service("web");
    object["spec"]["ports"][0]["port"] = json!(port);
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_kept_with_who_and_can_be_had_again() {
    let mut control = Control::up().await;
    let admin = control.admin();
    let (_, made) = admin.post("/v1/tokens", &json!({ "role": "editor", "name": "ann" })).await;
    let ann = control.person(made["token"].as_str().unwrap());
    ann.apply(&with_port(80)).await;
    ann.apply(&with_port(81)).await;
    assert_eq!(admin.delete(WEB).await.0, 200);
    control.restart().await;
    let admin = control.admin();
    let (status, history) = admin.get(&format!("{WEB}/history")).await;
    assert_eq!(status, 200, "{history}");
    let items = history["items"].as_array().unwrap();
    let told: Vec<_> = items
        .iter()
        .map(|past| (past["what"].as_str().unwrap(), past["by"]["name"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("deleted", "first"), ("updated", "ann"), ("created", "ann")]);
    assert_eq!(
        items[1]["changes"],
        json!([{ "path": "spec.ports[0].port", "before": 80, "after": 81 }, { "path": "spec.ports[0].targetPort", "before": 80, "after": 81 }])
    );
    assert!(items[0]["atMs"].as_u64().unwrap().abs_diff(unix_ms()) < 60_000);

    let back = format!("{WEB}/rollback");
    let (status, answer) = admin.post(&back, &json!({ "revision": items[2]["revision"] })).await;
    assert_eq!((status, &answer["spec"]["ports"][0]["port"]), (201, &json!(80)), "{answer}");
    let (status, answer) = admin.post(&back, &json!({ "revision": items[0]["revision"] })).await;
    assert_eq!((status, &answer["error"]["reason"]), (409, &json!("conflict")), "a removal: {answer}");
    assert_eq!(admin.post(&back, &json!({ "revision": 9999 })).await.0, 404);
    assert_eq!(admin.get("/v1/services/shop/none/history").await.0, 404);
    let (_, mesh) = admin.get("/v1/mesh/history").await;
    assert_eq!(mesh["items"][0]["by"]["id"], "system");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_is_answered_as_the_write_would_be() {
    let control = Control::up().await;
    let admin = control.admin();
    let (status, answer) = admin.post("/v1/apply?dryRun=true", &service("web")).await;
    assert_eq!((status, &answer["result"], &answer["dryRun"]), (200, &json!("created"), &json!(true)));
    assert_eq!(admin.get(WEB).await.0, 404);
    admin.apply(&service("web")).await;
    assert_eq!(admin.send("DELETE", &format!("{WEB}?dryRun=true"), &[], String::new()).await.0, 200);
    assert_eq!(admin.get(WEB).await.0, 200);
    let (status, answer) = admin.post("/v1/apply?dryRun=maybe", &service("web")).await;
    assert_eq!((status, &answer["error"]["path"]), (400, &json!("query")), "{answer}");
    assert_eq!(admin.get("/v1/services?colour=red").await.0, 400, "unknown fields are named");
    assert_eq!(admin.get("/v1/services/%ff/x").await.1["error"]["path"], "path", "not UTF-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_and_by_label() {
    let control = Control::up().await;
    let admin = control.admin();
    for (number, tier) in ["db", "web", "db", "web", "db"].into_iter().enumerate() {
        let mut object = workload(&format!("w{number}"), "x", 1);
        object["metadata"]["labels"]["tier"] = tier.into();
        object["spec"]["addresses"] = json!([format!("10.0.0.{number}")]);
        admin.apply(&object).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let (_, first) = admin.get("/v1/workloads?limit=2").await;
    assert_eq!((names(&first), &first["continue"]), (vec!["w0".into(), "w1".into()], &json!("shop/w1")));
    let (_, next) = admin.get("/v1/workloads?limit=3&continue=shop/w1").await;
    assert_eq!((names(&next), next.get("continue")), (vec!["w2".into(), "w3".into(), "w4".into()], None));
    let (_, db) = admin.get("/v1/workloads/shop?labelSelector=tier%20in%20(db),app=x&limit=2").await;
    assert_eq!((names(&db), &db["continue"]), (vec!["w0".into(), "w2".into()], &json!("shop/w2")));
    for bad in ["limit=0", "limit=many", "labelSelector=%3D", "continue=x", "watch=true&limit=3"] {
        let (status, answer) = admin.get(&format!("/v1/workloads?{bad}")).await;
        assert!(
            matches!(status, 400 | 409) && answer["error"]["message"].is_string(),
            "{bad}: {status} {answer}"
        );
    }
}

/// A watch under way: its events come out of the channel.
fn events(person: &Person, path: &str) -> std::sync::mpsc::Receiver<(String, Value)> {
    let reader = person.open(path);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut event = String::new();
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if let Some(name) = line.strip_prefix("event: ") {
                name.clone_into(&mut event);
            } else if let Some(data) = line.strip_prefix("data: ")
                && tell.send((event.clone(), serde_json::from_str(data).unwrap())).is_err()
            {
                return;
            }
        }
    });
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_tell_what_there_is_and_what_changes() {
    let control = Control::up().await;
    let admin = control.admin();
    admin.apply(&with_port(80)).await;
    let told = events(&admin, "/v1/services?watch=true");
    let next = || told.recv_timeout(PATIENCE).expect("an event");
    let (event, data) = next();
    assert_eq!((event.as_str(), &data["object"]["metadata"]["name"]), ("put", &json!("web")));
    let (event, synced) = next();
    assert_eq!(event, "synced");
    admin.apply(&with_port(81)).await;
    let (event, data) = next();
    assert_eq!((event.as_str(), &data["object"]["spec"]["ports"][0]["port"]), ("put", &json!(81)));
    admin.apply(&workload("w1", "web", 1)).await;
    admin.delete(WEB).await;
    let (event, data) = next();
    assert_eq!(
        (event.as_str(), &data["key"]["name"]),
        ("delete", &json!("web")),
        "workloads are another kind"
    );

    // From a revision, of one object, by label.
    let from = synced["revision"].as_u64().unwrap();
    let again = events(&admin, &format!("/v1/services?watch=true&from={from}"));
    assert_eq!(
        again.recv_timeout(PATIENCE).unwrap().0,
        "delete",
        "what came to the same object is told at once"
    );
    let one = events(&admin, "/v1/workloads/shop/w1?watch=true");
    assert_eq!(one.recv_timeout(PATIENCE).unwrap().0, "put");
    let labelled = events(&admin, "/v1/workloads?watch=true&labelSelector=app=other");
    assert_eq!(labelled.recv_timeout(PATIENCE).unwrap().0, "synced");

    let engine = control.running().engine.clone();
    engine.store().compact(engine.store().revision().unwrap()).unwrap();
    let (status, answer) = admin.get("/v1/services?watch=true&from=1").await;
    assert_eq!((status, &answer["error"]["reason"]), (410, &json!("gone")), "{answer}");
    assert_eq!(admin.get("/v1/services?watch=true&from=99999").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_outside_find_endpoints_and_hear_of_changes() {
    let control = Control::up().await;
    let admin = control.admin();
    let (_, made) = admin.post("/v1/tokens", &json!({ "role": "viewer" })).await;
    let viewer = control.person(made["token"].as_str().unwrap());
    admin.apply(&service("web")).await;
    admin.apply(&workload("w1", "web", 3)).await;
    let path = "/v1/discover/shop/web";
    let found = viewer.eventually(path, |_, body| body["endpoints"][0].is_object()).await;
    let endpoint = &found["endpoints"][0];
    assert_eq!((&endpoint["addresses"], &endpoint["weight"]), (&json!(["10.0.0.1"]), &json!(3)));
    let index = found["index"].as_str().unwrap().to_owned();
    let begin = Instant::now();
    let (_, same) = viewer.get(&format!("{path}?wait=300ms&index={index}")).await;
    assert!(same["index"] == index.as_str() && begin.elapsed() >= Duration::from_millis(300));
    let waits = {
        let (viewer, path) = (viewer.clone(), format!("{path}?wait=8s&index={index}"));
        tokio::spawn(async move { viewer.get(&path).await })
    };
    let mut second = workload("w2", "web", 1);
    second["spec"]["addresses"] = json!(["10.0.0.2"]);
    admin.apply(&second).await;
    let (_, changed) = waits.await.unwrap();
    assert_eq!(changed["endpoints"].as_array().unwrap().len(), 2, "{changed}");
    for (path, status) in [
        ("/v1/discover/shop/none", 404),
        ("/v1/discover/shop/web?port=99", 404),
        ("/v1/discover/shop/web?port=80", 200),
        ("/v1/discover/shop/web?wait=1h&index=x", 400),
    ] {
        assert_eq!(viewer.get(path).await.0, status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_end_wrong_ones_are_slowed_and_all_of_it_is_written_down() {
    let control = Control::up().await;
    let admin = control.admin();
    let (_, made) =
        admin.post("/v1/tokens", &json!({ "role": "editor", "ttl": "1s", "name": "short" })).await;
    let short = control.person(made["token"].as_str().unwrap());
    short.apply(&service("web")).await;
    let (_, answer) = {
        short.eventually("/v1/services", |status, _| status == 401).await;
        short.get("/v1/services").await
    };
    assert!(answer["error"]["message"].as_str().unwrap().contains("has expired"), "{answer}");
    let (_, made) = admin.post("/v1/tokens", &json!({ "role": "viewer" })).await;
    let viewer = control.person(made["token"].as_str().unwrap());
    assert_eq!(viewer.delete(WEB).await.0, 403);
    for bad in
        [json!({ "role": "viewer", "name": "a\nb" }), json!({ "role": "viewer", "name": "x".repeat(65) })]
    {
        assert_eq!(admin.post("/v1/tokens", &bad).await.0, 400);
    }
    let (status, lines) = admin.get("/v1/audit?limit=50").await;
    assert_eq!((status, viewer.get("/v1/audit").await.0), (200, 403));
    let lines = lines["items"].as_array().unwrap();
    let line = |status: u16, method: &str| {
        lines
            .iter()
            .find(|line| line["status"] == status && line["method"] == method)
            .unwrap_or_else(|| panic!("{status} {method}: {lines:?}"))
    };
    assert_eq!(
        (&line(403, "DELETE")["by"]["role"], &line(403, "DELETE")["refused"]),
        (&json!("viewer"), &json!("forbidden"))
    );
    let applied = lines.iter().find(|line| line["object"] == "Service shop/web").unwrap();
    assert_eq!(
        (&applied["by"]["name"], &applied["what"], &applied["from"]),
        (&json!("short"), &json!("created"), &json!("127.0.0.1"))
    );
    assert!(
        lines.iter().all(|line| line["method"] != "GET" || line["status"] == 401),
        "reads are not written down"
    );

    let wrong = control.person(&format!("nma.{}.{}", "0".repeat(12), "0".repeat(64)));
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(wrong.get("/v1/services").await.0);
    }
    assert!(statuses.starts_with(&[401]) && statuses.ends_with(&[429]), "{statuses:?}");
    // The address is let in again a little later.
    admin.eventually("/v1/services", |status, _| status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_fills_an_empty_control_plane_and_no_other() {
    let control = Control::up().await;
    let admin = control.admin();
    for number in 0..30 {
        admin.apply(&service(&format!("s{number}"))).await;
    }
    let token = control.join_token("n1", &["shop/*"]).await;
    drop(control.session(&token).await.unwrap());
    let mut mesh = admin.get("/v1/mesh").await.1;
    mesh["spec"]["http"] = json!("kernel");
    admin.apply(&mesh).await;
    let mut backup = String::new();
    admin.open("/v1/backup").read_to_string(&mut backup).unwrap();
    assert!(backup.lines().count() > 60 && !backup.contains("/history/"), "{backup}");

    let empty = Control::up().await;
    let other = empty.admin();
    let restore = async |text: &str| other.send("POST", "/v1/restore", &[], text.to_owned()).await;
    let cut = backup.lines().take(20).collect::<Vec<_>>().join("\n");
    let (status, answer) = restore(&cut).await;
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("was cut"), "{answer}");
    assert_eq!(other.get("/v1/services").await.1["items"], json!([]));
    let (status, answer) = restore(&backup).await;
    assert_eq!(status, 200, "{answer}");
    let spec = |list: Value| -> Vec<Value> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| {
                json!([
                    item["metadata"]["name"],
                    item["spec"],
                    item["status"]["vips"],
                    item["metadata"]["uid"]
                ])
            })
            .collect()
    };
    assert_eq!(spec(other.get("/v1/services").await.1), spec(admin.get("/v1/services").await.1));
    assert_eq!(other.get("/v1/mesh").await.1["spec"]["http"], "kernel");
    assert_eq!(other.get("/v1/nodes").await.1["items"][0]["node"], "n1");
    // Tokens of the other are good here, and history begins with the restore.
    let old = empty.person(std::fs::read_to_string(control.config.data.join("admin.token")).unwrap().trim());
    let (_, history) = old.get("/v1/services/shop/s3/history").await;
    assert_eq!(history["items"][0]["what"], "restored", "{history}");
    old.apply(&with_port(99)).await;
    let (status, answer) = restore(&backup).await;
    assert!(status == 409 && answer["error"]["message"].as_str().unwrap().contains("not empty"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_described_is_what_is_taken() {
    let control = Control::up().await;
    let nobody = control.person("");
    let (status, page) = nobody.get("/openapi.json").await;
    assert_eq!(status, 200);
    for (path, methods) in page["paths"].as_object().unwrap() {
        let path = path
            .replace("{namespace}", "a")
            .replace("{name}", "b")
            .replace("{service}", "b")
            .replace("{id}", "c")
            .replace("{node}", "n");
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            let (status, answer) = nobody.send(method, &path, &[], String::new()).await;
            let described = methods.get(method.to_lowercase()).is_some();
            assert_eq!(status != 405, described, "{method} {path}: {status} {answer}");
        }
    }
}

//! A watched directory: what it says is so, what it leaves out goes, and what others own stays theirs.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Control, service};

fn yaml(name: &str, port: u16) -> String {
    format!(
        "apiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_followed_and_conflicts_are_visible() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().to_owned();
    let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
    write("web.yaml", &yaml("web", 80));
    let control = Control::up_with(|config| config.files = Some(path.clone())).await;
    let admin = control.admin();
    let web = "/v1/services/shop/web";
    let port =
        |status: u16, body: &Value, port: u16| status == 200 && body["spec"]["ports"][0]["port"] == port;
    admin.eventually(web, |status, body| port(status, body, 80)).await;

    // Others may not write it.
    for (status, answer) in [admin.post("/v1/apply", &service("web")).await, admin.delete(web).await] {
        let said = answer["error"]["message"].as_str().unwrap();
        assert!(status == 409 && said.contains(&format!("file:{}", path.display())), "{answer}");
    }

    // A broken file: nothing changes, and it is said.
    write("web.yaml", &yaml("web", 81));
    write("broken.yaml", "kind: [");
    let problem = |body: &Value| body["files"]["problems"][0].as_str().unwrap_or_default().to_owned();
    let status = admin.eventually("/v1/status", |_, body| problem(body).contains("broken.yaml:1")).await;
    assert_eq!(status["files"]["objects"], 1);
    assert!(port(200, &admin.get(web).await.1, 80) || port(200, &admin.get(web).await.1, 81));
    write("web.yaml", &yaml("web", 82));
    admin.eventually("/v1/status", |_, body| problem(body).contains("broken.yaml")).await;
    std::fs::remove_file(path.join("broken.yaml")).unwrap();
    admin.eventually(web, |status, body| port(status, body, 82)).await;

    // Of two that claim a name the first keeps it, until it lets go.
    admin.apply(&service("mine")).await;
    write("mine.yaml", &yaml("mine", 7));
    let mine = "/v1/services/shop/mine";
    let conflicted = |body: &Value| {
        body["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Conflicted"))
    };
    let shown = admin.eventually(mine, |_, body| conflicted(body)).await;
    assert!(shown.to_string().contains("also claimed by file:"), "{shown}");
    assert_eq!(shown["spec"]["ports"][0]["port"], 80);
    assert_eq!(admin.delete(mine).await.0, 200);
    admin.eventually(mine, |status, body| port(status, body, 7) && !conflicted(body)).await;

    // What vanishes is removed, and nothing else.
    admin.apply(&service("other")).await;
    std::fs::remove_file(path.join("web.yaml")).unwrap();
    admin.eventually(web, |status, _| status == 404).await;
    assert_eq!(admin.get("/v1/services/shop/other").await.0, 200);
    let (_, history) = admin.get(&format!("{web}/history")).await;
    assert_eq!(
        (&history["items"][0]["what"], &history["items"][0]["owner"]),
        (&json!("deleted"), &json!(format!("file:{}", path.display())))
    );
}

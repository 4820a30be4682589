//! Starts, restarts, and starts that must not succeed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use mesh_api::resource::Kind;
use mesh_control::server::{StartError, start};

use crate::support::{Control, config, service, versions, workload};

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_leaves_what_is_needed_with_the_right_modes() {
    let control = Control::up().await;
    for (file, mode) in
        [("ca.pem", 0o644), ("authority.json", 0o600), ("admin.token", 0o600), ("store.redb", 0o600)]
    {
        let found = std::fs::metadata(control.config.data.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() {
    let mut control = Control::up_with(|config| config.lease = std::time::Duration::from_mins(10)).await;
    let admin = control.admin();
    let made = admin.apply(&service("web")).await;
    admin.apply(&workload("w1", "web", 1)).await;
    let token = control.join_token("n1", &["shop/*"]).await;
    let mut session = control.session(&token).await.unwrap();
    session.hello("n1").await.unwrap();
    session.upsert("shop", "cart", "cart-1").await;
    let mut agent = control.agent(&token).await.unwrap();
    let before = agent.first(Kind::Workload, &BTreeMap::new()).await;
    assert_eq!(before.resources.len(), 2);
    let (ca, store) = (control.ca(), control.running().engine.store_id().to_owned());

    control.restart().await;
    assert_eq!((control.ca(), control.running().engine.store_id()), (ca, store.as_str()));
    let admin = control.admin();
    let (_, shown) = admin.get("/v1/services/shop/web").await;
    assert_eq!(shown["metadata"], made["metadata"]);
    assert_eq!(shown["status"]["vips"], made["status"]["vips"]);
    // The agent has everything already, its own registration included; only the revision may be newer.
    let mut agent = control.agent(&token).await.unwrap();
    let after = agent.first(Kind::Workload, &versions(&before)).await;
    assert_eq!((after.resources.len(), after.removed_resources.len()), (0, 0));
    let revision = |text: &str| text.rsplit_once('/').unwrap().1.parse::<u64>().unwrap();
    assert!(revision(&after.system_version_info) >= revision(&before.system_version_info));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_says_why_and_what_to_do() {
    let control = Control::up().await;
    let refused = async |change: &dyn Fn(&mut mesh_control::config::Serve)| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path().to_owned());
        change(&mut config);
        start(&config).await.err().expect("it must not start").to_string()
    };
    let api = control.running().api;
    let port = refused(&|config| config.api = api).await;
    assert!(port.contains("--api") && port.contains("in use"), "{port}");
    let locked = refused(&|config| config.data.clone_from(&control.config.data)).await;
    assert!(locked.contains("in use by another process"), "{locked}");
    let file = refused(&|config| config.data = "/proc/version".into()).await;
    assert!(file.contains("--data"), "{file}");
    let times = refused(&|config| config.lease = config.heartbeat).await;
    assert!(times.contains("--lease"), "{times}");
    let name = refused(&|config| config.name = vec!["not a name".into()]).await;
    assert!(name.contains("--name"), "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.redb"), "not a store").unwrap();
    let error = start(&config(dir.path().to_owned())).await.err().unwrap();
    assert!(matches!(error, StartError::Store(_)), "{error}");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
}

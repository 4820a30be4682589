//! Splicing: who asks for it is served whether this kernel can do it or not; where it can't, the reason is shown.

use std::time::Duration;

use mesh_common::{maps, verdict::Verdict};
use mesh_tests::{
    Mesh, Node, Pod,
    eventually::until,
    load::Load,
    resources::{Service, at, transport, vip4, vip6},
};
use serde_json::Value;

use crate::words::{settled, web};

/// The trial takes some tenths of a second; where a kernel stalls, seconds.
const TRIED: Duration = Duration::from_mins(1);

fn status(node: &Node) -> Value {
    serde_json::from_str(&node.meshctl(&["status", "--kernel", "-o", "json"]).unwrap()).unwrap()
}

fn named<'a>(status: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    status[list].as_array().unwrap().iter().find(|one| one["name"] == name)
}

/// Is splicing on, and if not, why?
fn splicing(node: &Node) -> Result<(), String> {
    let status = status(node);
    let feature = named(&status, "features", "splicing").expect("the feature is named");
    if feature["on"] == true { Ok(()) } else { Err(feature["why"].as_str().unwrap().to_owned()) }
}

/// Requests through the proxy over both families, none of which fails.
#[track_caller]
fn served(pod: &Pod) {
    let before = pod.node().verdict(Verdict::Captured);
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        let report = Load::to(to).count(200).run(pod);
        assert_eq!(report.failed(), 0, "{to}: {report:?}");
    }
    assert!(pod.node().verdict(Verdict::Captured) >= before + 2);
}

#[test]
fn who_asks_is_served_and_told_what_the_kernel_can_do() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("web", 1).http("http", 80).yaml());
    let _a = web(&mesh, 1, "a", "web", "http", 1);
    let client = mesh.pod(1, "client").label("app", "client").up();
    let other = mesh.pod(1, "other").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let node = mesh.node(1);

    // Nobody has asked: nothing is loaded or tried, and what is allocated is small.
    assert!(splicing(node).unwrap_err().starts_with("nobody asked"));
    let before = status(node);
    assert!(named(&before, "programs", "mesh_splice").is_none(), "{before}");
    let bytes = |map: maps::Spec| named(&before, "maps", map.name).unwrap()["bytes"].as_u64().unwrap();
    let held = bytes(maps::SPLICE) + bytes(maps::SPLICE_ENDS);
    assert!(held > 0 && held < 100_000, "{held} bytes");

    let ask = |app: &str, splice: bool| {
        let selector = format!("selector: {{matchLabels: {{app: {app}}}}}");
        mesh.apply(&transport("fast", &[&selector, &format!("splice: {splice}")]));
    };
    ask("client", true);
    until(
        TRIED,
        "it is being tried",
        || splicing(node),
        |state| state.as_ref().err().is_none_or(|why| !why.starts_with("nobody asked")),
    )
    .err();
    // An agent that ends in the middle of that leaves nothing that the next one minds.
    node.kill_agent();
    node.start_agent();
    node.wait_ready();
    let state = until(
        TRIED,
        "it was tried",
        || splicing(node),
        |state| {
            state
                .as_ref()
                .err()
                .is_none_or(|why| !why.starts_with("nobody asked") && !why.starts_with("it is being"))
        },
    );
    served(&client);
    served(&other);
    let conditions = || mesh.meshctl(&["status"], "");
    let of = |pod: &str| format!("TransportPolicy default/fast for workload default/{pod}: not spliced: ");
    let logged = |line: &str| node.log().matches(line).count();
    match state {
        Ok(()) => {
            assert!(named(&status(node), "programs", "mesh_splice").is_some());
            assert_eq!(logged("splicing is on"), 1);
            assert!(!conditions().contains("not spliced"));
        }
        Err(why) => {
            assert!(named(&status(node), "programs", "mesh_splice").is_none());
            until(TRIED, "the condition has the reason", conditions, |text| {
                text.contains(&format!("{}{why}", of("client")))
            });
            assert!(!conditions().contains(&of("other")), "who has not asked is under no condition");
            // One more who asks: not tried again, and not said again.
            let third = mesh.pod(1, "third").label("app", "client").up();
            until(TRIED, "so has the other's", conditions, |text| text.contains(&of("third")));
            served(&third);
            assert_eq!(logged("splicing is off"), 1);
        }
    }

    ask("client", false);
    until(TRIED, "who asks no more is under no condition", conditions, |text| !text.contains("not spliced"));
    served(&client);
}

//! What was written can be seen, and had again: one object, or all of it from a backup.

use std::fs;

use mesh_tests::{
    Mesh, eventually,
    load::Load,
    resources::{Service, at, l4_route, vip4},
};

use crate::words::{lines, settled, silent};

/// The revision in the line of `meshctl history` that holds `word`.
#[track_caller]
fn revision(history: &str, word: &str) -> String {
    let line = history.lines().find(|line| line.starts_with("revision") && line.contains(word));
    let line = line.unwrap_or_else(|| panic!("no {word:?} in:\n{history}"));
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_change_and_a_removal_are_taken_back_and_traffic_follows() {
    let mesh = Mesh::builder().up();
    for (name, number) in [("raw", 1), ("blue", 2), ("green", 3)] {
        mesh.apply(&Service::vip(name, number).tcp("tcp", 80).yaml());
    }
    let _servers = [lines(&mesh, 1, "b", "blue"), lines(&mesh, 1, "g", "green")];
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 80);
    mesh.apply(&l4_route("TCPRoute", "raw", &[("blue", 1)]));
    crate::words::answered(&client, to, &["b"]);
    let token = mesh.meshctl(&["token", "create", "--role", "editor", "--name", "ann"], "");
    let file = mesh.place().work.join("ann.token");
    fs::write(&file, &token).unwrap();
    let by_ann = |args: &[&str], stdin: &str| {
        let mut command = mesh.meshctl_as(&file, args);
        mesh.fabric().netns.with(|| mesh_tests::shell::run(&mut command, stdin)).unwrap()
    };
    by_ann(&["apply", "-f", "-"], &l4_route("TCPRoute", "raw", &[("green", 1)]));
    crate::words::answered(&client, to, &["g"]);

    let history = mesh.meshctl(&["history", "tcproute", "raw"], "");
    assert!(history.contains("updated by ann (") && history.contains("created by first ("), "{history}");
    assert!(history.contains("- spec.rules[0].backendRefs[0].name: \"blue\""), "{history}");
    assert!(history.contains("+ spec.rules[0].backendRefs[0].name: \"green\""), "{history}");
    by_ann(&["rollback", "tcproute", "raw", "--to", &revision(&history, "created")], "");
    crate::words::answered(&client, to, &["b"]);

    // What was removed comes back with the address that it had, also after the control plane was killed.
    let before = mesh.meshctl(&["get", "service", "blue", "-o", "yaml"], "");
    by_ann(&["delete", "service", "blue"], "");
    silent(&client, at(vip4(2), 80));
    mesh.kill_control();
    mesh.start_control();
    let history = mesh.meshctl(&["history", "service", "blue"], "");
    by_ann(&["rollback", "service", "blue", "--to", &revision(&history, "created")], "");
    crate::words::answered(&client, at(vip4(2), 80), &["b"]);
    let after = mesh.meshctl(&["get", "service", "blue", "-o", "yaml"], "");
    assert!(before.contains("240.240.0.2") && after.contains("240.240.0.2"));
    let audit = mesh.meshctl(&["audit"], "");
    assert!(audit.contains("deleted Service default/blue") && audit.contains("ann"), "{audit}");
}

#[test]
fn a_lost_store_comes_back_from_a_backup_and_agents_with_it() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _a = crate::words::web(&mesh, 2, "a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let file = mesh.place().work.join("mesh.backup");
    let name = file.to_string_lossy().into_owned();
    assert!(mesh.meshctl(&["backup", &name], "").contains("entries in"));
    let error = format!("{:#}", mesh.try_meshctl(&["restore", &name], "").unwrap_err());
    assert!(error.contains("not empty"), "{error}");

    // The disk with the store is lost; the authority's file was kept.
    let load = Load::to(at(vip4(1), 80)).rate(100).start(&client);
    mesh.kill_control();
    fs::remove_file(mesh.fabric().data().join("store.redb")).unwrap();
    mesh.start_control();
    assert!(!mesh.meshctl(&["get", "services"], "").contains("raw"));
    assert!(mesh.meshctl(&["restore", &name], "").contains("entries restored"));
    assert!(mesh.meshctl(&["get", "services"], "").contains("raw"));
    load.go_on(100);
    let report = load.stop();
    // The backup holds no registrations: a node that is told before another has said its workloads again refuses for
    // that moment.
    assert!(report.failed() < 200 && report.errors.keys().all(|why| why.contains("Refused")), "{report:?}");

    // Agents follow the new store without being told anything.
    mesh.apply(&Service::vip("new", 2).tcp("tcp", 80).yaml());
    let _b = lines(&mesh, 2, "b", "new");
    crate::words::answered(&client, at(vip4(2), 80), &["b"]);
    settled_names(&mesh);
}

/// Both nodes are members and ready.
#[track_caller]
fn settled_names(mesh: &Mesh) {
    eventually("both nodes are ready", || {
        let status = mesh.meshctl(&["status"], "");
        status.lines().filter(|line| line.contains("  ready  ")).count() == 2
    });
}

#[test]
fn an_edit_that_somebody_else_was_faster_with_is_kept_in_its_file() {
    let mesh = Mesh::builder().lay();
    mesh.start_control();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let edit = |editor: &str| {
        let mut command = mesh.meshctl_command(&["edit", "service", "raw"]);
        command.env("EDITOR", editor).env_remove("VISUAL").env("TMPDIR", &mesh.place().work);
        mesh.fabric().netns.with(|| mesh_tests::shell::run(&mut command, ""))
    };
    assert!(edit("sed -i 's/port: 80/port: 81/'").unwrap().contains("updated"));
    assert!(mesh.meshctl(&["get", "service", "raw"], "").contains("81"));
    assert!(edit("true").unwrap().contains("unchanged"));
    let error = format!("{:#}", edit("sed -i 's/port: 81/port: 70000/'").unwrap_err());
    assert!(error.contains("spec.ports[0].port") && error.contains("70000"), "{error}");

    // Somebody else writes while the editor is open.
    let other = mesh.place().work.join("other.yaml");
    fs::write(&other, Service::vip("raw", 1).tcp("tcp", 90).yaml()).unwrap();
    let mut meanwhile = mesh.meshctl_command(&["apply", "-f", &other.to_string_lossy()]);
    let script = mesh.place().work.join("editor.sh");
    let args: Vec<_> = std::iter::once(meanwhile.get_program()).chain(meanwhile.get_args()).collect();
    let line = args.iter().map(|arg| format!("'{}'", arg.to_string_lossy())).collect::<Vec<_>>().join(" ");
    fs::write(&script, format!("{line}\nsed -i 's/port: 81/port: 82/' \"$1\"\n")).unwrap();
    meanwhile.env_clear();
    let error = format!("{:#}", edit(&format!("sh {}", script.display())).unwrap_err());
    assert!(
        error.contains("somebody else wrote it meanwhile") && error.contains("the text is in"),
        "{error}"
    );
    let kept = error.split("the text is in ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    assert!(fs::read_to_string(kept.trim()).unwrap().contains("port: 82"));
    assert!(mesh.meshctl(&["get", "service", "raw"], "").contains("90"), "theirs stands");
    let diff = mesh.meshctl(&["diff", "-f", "-"], &Service::vip("raw", 1).tcp("tcp", 91).yaml());
    assert!(diff.contains("- spec.ports[0].port: 90") && diff.contains("+ spec.ports[0].port: 91"), "{diff}");
    let described = mesh.meshctl(&["describe", "service", "raw"], "");
    assert!(described.contains("Service default/raw") && described.contains("written:"), "{described}");
    assert!(mesh.meshctl(&["completion", "bash"], "").contains("rollback"));
}

#[test]
fn traffic_does_not_notice_a_rollback_that_changes_nothing() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _a = crate::words::web(&mesh, 1, "a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let load = Load::to(at(vip4(1), 80)).rate(200).start(&client);
    let history = mesh.meshctl(&["history", "service", "raw"], "");
    let same = mesh.meshctl(&["rollback", "service", "raw", "--to", &revision(&history, "created")], "");
    assert!(same.contains("is so already"), "{same}");
    load.go_on(100);
    assert_eq!(load.stop().failed(), 0);
}

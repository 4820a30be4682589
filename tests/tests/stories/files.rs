//! A watched directory is part of the mesh: traffic follows its files.

use std::{fs, path::PathBuf};

use mesh_tests::{
    Mesh, eventually,
    resources::{Service, at, vip4},
};

use crate::words::{answered, lines, silent};

/// A directory that is there before the mesh is, and goes with it.
struct Watched(PathBuf);

impl Watched {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("nm-watched-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.0.join(name)).unwrap();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn traffic_follows_the_files_of_a_directory() {
    let files = Watched::new();
    files.write("raw.yaml", &Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let mesh = Mesh::builder().control_args(&["--files", &files.0.to_string_lossy()]).up();
    let _a = lines(&mesh, 1, "a", "raw");
    let client = mesh.pod(1, "client").up();
    answered(&client, at(vip4(1), 80), &["a"]);

    // A file that is broken changes nothing, and is named with its line and field.
    files.write("raw.yaml", &Service::vip("raw", 2).tcp("tcp", 80).yaml());
    files.write("broken.yaml", &Service::vip("more", 3).tcp("tcp", 80).yaml().replace("port: 80", "port: 0"));
    eventually("status names the broken file", || {
        let status = mesh.meshctl(&["status"], "");
        status.contains("broken.yaml:8: spec.ports[0].port: 0 is not accepted")
    });
    files.remove("broken.yaml");
    answered(&client, at(vip4(2), 80), &["a"]);
    silent(&client, at(vip4(1), 80));

    // Nobody else may write what the files say; what they leave out goes.
    let error = mesh.try_meshctl(&["delete", "service", "raw"], "").unwrap_err();
    assert!(format!("{error:#}").contains(&format!("belongs to file:{}", files.0.display())), "{error:#}");
    mesh.apply(&Service::vip("mine", 4).tcp("tcp", 80).yaml());
    files.write("mine.yaml", &Service::vip("mine", 5).tcp("tcp", 80).yaml());
    eventually("the conflict is visible", || {
        mesh.meshctl(&["describe", "service", "mine"], "").contains("also claimed by file:")
    });
    files.remove("raw.yaml");
    silent(&client, at(vip4(2), 80));
    let listed = mesh.meshctl(&["get", "services", "-o", "wide"], "");
    assert!(listed.contains("mine") && listed.contains("240.240.0.4") && !listed.contains("raw"), "{listed}");
    let history = mesh.meshctl(&["history", "service", "raw"], "");
    assert!(history.contains(&format!("deleted by file:{}", files.0.display())), "{history}");
}

//! The control plane's API, asked by curl from the fabric.

use std::process::{Command, Output};

use serde_json::Value;

use crate::mesh::{CONTROL, Mesh};

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP's number.
    pub status: u16,
    /// The body; text where it is no JSON.
    pub body: Value,
}

impl Answer {
    /// What a refusal says.
    pub fn said(&self) -> String {
        self.body["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// The text of the first administrator's token.
#[track_caller]
pub fn admin_token(mesh: &Mesh) -> String {
    let text = std::fs::read_to_string(mesh.fabric().data().join("admin.token")).expect("the admin's token");
    text.trim().to_owned()
}

/// One request with a token (empty: none); `args` are curl's.
#[track_caller]
pub fn ask(mesh: &Mesh, token: &str, path: &str, args: &[&str]) -> Answer {
    let output = curl(mesh, token, path, &[&["-w", "\n%{http_code}"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    let status = status.parse().unwrap_or(0);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(status != 0, "{path}: {error}");
    Answer { status, body: serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())) }
}

/// Runs curl to its end, in the fabric.
#[track_caller]
pub fn curl(mesh: &Mesh, token: &str, path: &str, args: &[&str]) -> Output {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "--cacert"]).arg(mesh.fabric().data().join("ca.pem"));
    if !token.is_empty() {
        command.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    command.args(args).arg(format!("https://{CONTROL}:15080{path}"));
    mesh.fabric().netns.with(|| command.output()).expect("run curl")
}

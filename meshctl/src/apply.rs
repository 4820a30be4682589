//! `meshctl apply`: objects of files to the control plane, one by one; `meshctl diff`: what that would change.

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::diff::{Change, changes};
use serde_json::{Value, json};

use crate::client::Client;
use crate::manifest::Files;
use crate::object::path;

/// Writes the objects of YAML or JSON files.
#[derive(Args)]
pub struct Apply {
    #[command(flatten)]
    files: Files,
    /// Let the control plane check everything, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Shows what applying files would change.
#[derive(Args)]
pub struct Diff {
    #[command(flatten)]
    files: Files,
    /// Fail where something would change
    #[arg(long)]
    exit_code: bool,
}

impl Apply {
    pub fn run(&self, client: &Client) -> Result<()> {
        let (to, note) =
            if self.dry_run { ("/v1/apply?dryRun=true", " (dry run)") } else { ("/v1/apply", "") };
        for object in self.files.read()? {
            let answer = client.post(to, &object.json).with_context(|| object.place.clone())?;
            println!("{} {}{note}", object.key, answer["result"].as_str().unwrap_or("applied"));
            for condition in answer["conditions"].as_array().into_iter().flatten() {
                println!("  note: {}", condition["message"].as_str().unwrap_or_default());
            }
        }
        Ok(())
    }
}

impl Diff {
    pub fn run(&self, client: &Client) -> Result<()> {
        let mut differ = 0;
        for object in self.files.read()? {
            let place = || object.place.clone();
            let after = client.post("/v1/apply?dryRun=true", &object.json).with_context(place)?;
            let before = client.find(&path(&object.key)).with_context(place)?;
            let new = if before.is_none() { " is new" } else { "" };
            let before = before.as_ref().map_or(json!({}), written);
            let changes = changes(&before, &written(&after));
            if changes.is_empty() {
                continue;
            }
            differ += 1;
            println!("{} ({}){new}", object.key, object.place);
            changes.iter().for_each(show);
        }
        match differ {
            0 => println!("nothing would change"),
            n if self.exit_code => bail!("{n} objects would change"),
            _ => {}
        }
        Ok(())
    }
}

/// What people write of an object.
pub fn written(object: &Value) -> Value {
    json!({ "labels": object["metadata"]["labels"], "spec": object["spec"] })
}

/// One difference, a line for each side.
pub fn show(change: &Change) {
    let Change { path, before, after } = change;
    if !before.is_null() {
        println!("  - {path}: {before}");
    }
    if !after.is_null() {
        println!("  + {path}: {after}");
    }
}

//! `meshctl edit`: an object in an editor, written back if nobody else wrote it meanwhile.
//!
//! Invariant: what was edited is never lost: where it is not taken, it stays in its file, which the error names.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::manifest;
use mesh_api::resource::Key;
use serde_json::Value;

use crate::client::{Client, Refused};
use crate::object::{Which, path};

/// Edits an object with $VISUAL or $EDITOR.
#[derive(Args)]
pub struct Edit {
    #[command(flatten)]
    which: Which,
}

impl Edit {
    pub fn run(&self, client: &Client) -> Result<()> {
        let key = self.which.key();
        let object = client.get(&path(&key))?;
        let revision = object["metadata"]["revision"].as_u64().unwrap_or(0);
        let before = serde_saphyr::to_string(&editable(object))?;
        let file = std::env::temp_dir().join(format!("meshctl-{}-{}.yaml", key.name, std::process::id()));
        let mut options = fs::OpenOptions::new();
        let cannot =
            || format!("cannot write {}; set TMPDIR to a directory that can be written", file.display());
        let mut made = options.write(true).create_new(true).mode(0o600).open(&file).with_context(cannot)?;
        made.write_all(before.as_bytes()).with_context(cannot)?;
        drop(made);
        let done = edited(&file).and_then(|after| {
            if after == before {
                println!("{key} unchanged");
                return Ok(());
            }
            write(client, &key, revision, &file, &after)
        });
        match done {
            Ok(()) => {
                // It is a copy of what is stored now.
                let _ = fs::remove_file(&file);
                Ok(())
            }
            Err(error) => Err(error.context(format!("not written; the text is in {}", file.display()))),
        }
    }
}

fn edited(file: &Path) -> Result<String> {
    let editor =
        std::env::var("VISUAL").or_else(|_| std::env::var("EDITOR")).unwrap_or_else(|_| "vi".to_owned());
    // As a shell reads it: editors come with arguments.
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .with_context(|| format!("cannot start {editor:?}; set EDITOR"))?;
    if !status.success() {
        bail!("{editor:?} ended with {status}");
    }
    fs::read_to_string(file).context("cannot read what was edited")
}

fn write(client: &Client, key: &Key, revision: u64, file: &Path, text: &str) -> Result<()> {
    let objects = manifest::parse(&file.display().to_string(), text)?;
    let [object] = &objects[..] else { bail!("one object is edited, {} are in the file", objects.len()) };
    if object.key != *key {
        bail!(
            "{key} became {}: kind, namespace and name stay; `meshctl apply` writes another object",
            object.key
        );
    }
    let answer = client.put(&path(key), &object.json, Some(revision)).map_err(|error| {
        match error.downcast_ref::<Refused>() {
            Some(refused) if refused.status == 412 => error.context(
                "somebody else wrote it meanwhile: edit again, and take over what you want of your text",
            ),
            _ => error,
        }
    })?;
    println!("{key} {}", answer["result"].as_str().unwrap_or("updated"));
    Ok(())
}

/// Without what only the server says.
fn editable(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        for field in ["status", "observed"] {
            fields.remove(field);
        }
    }
    if let Some(fields) = object["metadata"].as_object_mut() {
        for field in ["uid", "revision", "createdMs"] {
            fields.remove(field);
        }
    }
    object
}

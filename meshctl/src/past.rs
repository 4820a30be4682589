//! `meshctl history`: what was written to an object, by whom, what it changed; `meshctl rollback`: back to it.

use anyhow::{Context, Result};
use clap::Args;
use mesh_api::diff::Change;
use serde_json::{Value, json};

use crate::apply::show;
use crate::client::Client;
use crate::moment::utc;
use crate::object::{Which, path};

/// Shows what was written to an object, the newest first; of one that is gone as well.
#[derive(Args)]
pub struct History {
    #[command(flatten)]
    which: Which,
    /// How to show it
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

/// Writes an object as it was at a revision.
#[derive(Args)]
pub struct Rollback {
    #[command(flatten)]
    which: Which,
    /// The revision, as `history` shows it
    #[arg(long, value_name = "REVISION")]
    to: u64,
    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,
}

impl History {
    pub fn run(&self, client: &Client) -> Result<()> {
        let answer = client.get(&format!("{}/history", path(&self.which.key())))?;
        if self.output == "json" {
            println!("{answer:#}");
            return Ok(());
        }
        for past in answer["items"].as_array().into_iter().flatten() {
            println!("{}", line(past));
            let changes: Vec<Change> =
                serde_json::from_value(past["changes"].clone()).context("the history is not readable")?;
            if past["what"] != "deleted" {
                changes.iter().for_each(show);
            }
        }
        Ok(())
    }
}

/// One write in one line.
pub fn line(past: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (id, name) = (text(&past["by"]["id"]), text(&past["by"]["name"]));
    let by = if name.is_empty() { id } else { format!("{name} ({id})") };
    let what = match (past["what"].as_str().unwrap_or_default(), past["to"].as_u64()) {
        ("rolledBack", Some(to)) => format!("rolled back to {to}"),
        (what, _) => what.to_owned(),
    };
    format!("revision {}  {}  {what} by {by}", past["revision"], utc(past["atMs"].as_u64().unwrap_or(0)))
}

impl Rollback {
    pub fn run(&self, client: &Client) -> Result<()> {
        let key = self.which.key();
        let dry = if self.dry_run { "?dryRun=true" } else { "" };
        let answer =
            client.post(&format!("{}/rollback{dry}", path(&key)), &json!({ "revision": self.to }))?;
        let result = match answer["result"].as_str().unwrap_or_default() {
            "created" => "is back",
            "unchanged" => "is so already",
            _ => "rolled back",
        };
        println!(
            "{key} {result}, as of revision {}{}",
            self.to,
            if self.dry_run { " (dry run)" } else { "" }
        );
        Ok(())
    }
}

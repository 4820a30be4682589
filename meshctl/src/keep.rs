//! `meshctl backup`, `meshctl restore`, `meshctl audit`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::client::Client;
use crate::moment::utc;
use crate::table::{self, or_dash};

/// Writes all that people wrote, tokens (as hashes) and nodes included, to a file.
#[derive(Args)]
pub struct Backup {
    /// Where to; - for standard output
    file: PathBuf,
}

/// Fills a control plane that was just started on an empty data directory from a backup.
#[derive(Args)]
pub struct Restore {
    /// A file of `meshctl backup`
    file: PathBuf,
}

/// Shows who wrote what, and who was refused; the newest first.
#[derive(Args)]
pub struct Audit {
    /// How many lines
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// How to show them
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

impl Backup {
    pub fn run(&self, client: &Client) -> Result<()> {
        let text = client.get_bytes("/v1/backup")?;
        if self.file == Path::new("-") {
            std::io::stdout().write_all(&text)?;
            return Ok(());
        }
        let cannot = || format!("cannot write {}; give another file", self.file.display());
        // Beside it first: what was there before is not lost half way. Hashes of tokens are in it: for the owner only.
        let fresh = self.file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).with_context(cannot)?;
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(cannot)?;
        fs::rename(&fresh, &self.file).with_context(cannot)?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        println!("{} entries in {}", lines.saturating_sub(1), self.file.display());
        println!("not in it: the authority's key (authority.json of the data directory, or --ca-key)");
        Ok(())
    }
}

impl Restore {
    pub fn run(&self, client: &Client) -> Result<()> {
        let text = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let answer = client.post_bytes("/v1/restore", &text)?;
        println!("{} entries restored, revision {}", answer["entries"], answer["revision"]);
        println!("tokens of the backup are good again; so is the one that this was done with");
        Ok(())
    }
}

impl Audit {
    pub fn run(&self, client: &Client) -> Result<()> {
        let answer = client.get(&format!("/v1/audit?limit={}", self.limit))?;
        let items = answer["items"].as_array().cloned().unwrap_or_default();
        if self.output == "json" {
            for line in &items {
                println!("{line}");
            }
            return Ok(());
        }
        let row = |line: &serde_json::Value| {
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            let by = &line["by"];
            let name = by["name"].as_str().filter(|name| !name.is_empty()).or(by["id"].as_str());
            let what = match line["object"].as_str() {
                Some(object) => format!("{} {object}", text("what")),
                None => format!("{} {}", text("method"), text("path")),
            };
            let result = line["message"]
                .as_str()
                .map_or(line["status"].to_string(), |message| format!("{}: {message}", line["status"]));
            vec![
                utc(line["atMs"].as_u64().unwrap_or(0)),
                or_dash(name.unwrap_or_default()),
                text("from"),
                what,
                result,
            ]
        };
        table::print(&["WHEN", "WHO", "FROM", "WHAT", "RESULT"], &items.iter().map(row).collect::<Vec<_>>());
        Ok(())
    }
}

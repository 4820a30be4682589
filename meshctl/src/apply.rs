//! `meshctl apply`: objects of files to the control plane, one by one.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::client::Client;
use crate::manifest;

/// Writes the objects of YAML or JSON files.
#[derive(Args)]
pub struct Apply {
    /// File, directory of .yaml, .yml and .json files, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
}

impl Apply {
    pub fn run(&self, client: &Client) -> Result<()> {
        let mut objects = Vec::new();
        for path in &self.filename {
            objects.extend(manifest::read(path)?);
        }
        objects.sort_by_key(|object| object.key.kind);
        for object in objects {
            let answer = client.post("/v1/apply", &object.json).with_context(|| object.place.clone())?;
            println!("{} {}", object.key, answer["result"].as_str().unwrap_or("applied"));
            for condition in answer["conditions"].as_array().into_iter().flatten() {
                println!("  note: {}", condition["message"].as_str().unwrap_or_default());
            }
        }
        Ok(())
    }
}

//! `meshctl describe`: all that is known of an object: what was asked for, what holds of it, who serves it, what was
//! last written.

use anyhow::Result;
use clap::Args;
use mesh_api::resource::Kind;
use serde_json::{Value, json};

use crate::client::Client;
use crate::moment::utc;
use crate::object::{Which, path};
use crate::past::line;
use crate::table;

/// Writes of an object that are shown.
const PAST: usize = 5;

/// Shows all that is known of an object.
#[derive(Args)]
pub struct Describe {
    #[command(flatten)]
    which: Which,
}

impl Describe {
    pub fn run(&self, client: &Client) -> Result<()> {
        let key = self.which.key();
        let object = client.get(&path(&key))?;
        let metadata = &object["metadata"];
        println!("{key}");
        println!(
            "made {}, at revision {}",
            utc(metadata["createdMs"].as_u64().unwrap_or(0)),
            metadata["revision"]
        );
        section("labels", &metadata["labels"])?;
        section("spec", &object["spec"])?;
        let mut status = object["status"].clone();
        let conditions = status["conditions"].take();
        section("addresses", &status["vips"])?;
        section("observed", &object["observed"])?;
        for condition in conditions.as_array().into_iter().flatten() {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            println!("{}={} {}", text("type"), text("status"), text("message"));
        }
        if key.kind == Kind::Service {
            let found = client.get(&format!("/v1/discover/{}/{}", key.namespace, key.name))?;
            endpoints(&found);
        }
        if let Some(history) = client.find(&format!("{}/history", path(&key)))? {
            println!("written:");
            let items = history["items"].as_array().into_iter().flatten();
            items.take(PAST).for_each(|past| println!("  {}", line(past)));
        }
        Ok(())
    }
}

fn section(name: &str, value: &Value) -> Result<()> {
    let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    if !empty {
        print!("{}", serde_saphyr::to_string(&json!({ name: value }))?);
    }
    Ok(())
}

fn endpoints(found: &Value) {
    let row = |one: &Value| {
        let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let address = one["addresses"][0].as_str().unwrap_or("?");
        vec![
            text("workload"),
            text("node"),
            one["port"].to_string(),
            format!("{address}:{}", one["targetPort"]),
            one["weight"].to_string(),
        ]
    };
    let rows: Vec<_> = found["endpoints"].as_array().into_iter().flatten().map(row).collect();
    table::print(&["ENDPOINT", "NODE", "PORT", "ADDRESS", "WEIGHT"], &rows);
}

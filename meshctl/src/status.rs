//! `meshctl status`: the nodes, how far each is, and what it refused; `--kernel`: see [`crate::kernel`],
//! `--identities`: [`crate::identities`].

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::agent::RunDir;
use crate::client::Client;
use crate::identities;
use crate::kernel;
use crate::replicas;
use crate::table::{self, or_dash};

/// Shows the nodes, and how far each is.
#[derive(Args)]
pub struct Status {
    /// How to show it
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// The kernel's side of this node instead: programs, features, maps, verdicts
    #[arg(long)]
    kernel: bool,
    /// Count for a second what the programs cost
    #[arg(long, requires = "kernel")]
    measure: bool,
    /// The certificates of this node and its workloads instead
    #[arg(long, conflicts_with = "kernel")]
    identities: bool,
    #[command(flatten)]
    agent: RunDir,
}

impl Status {
    /// Is it this node's agent that is to be asked?
    pub fn of_node(&self) -> bool {
        self.kernel || self.identities
    }

    pub fn show_node(&self) -> Result<()> {
        if self.identities {
            return identities::show(&self.agent, self.output == "json");
        }
        kernel::show(&self.agent, self.measure, self.output == "json")
    }

    pub fn run(&self, client: &Client) -> Result<()> {
        let status = client.get("/v1/status")?;
        if self.output == "json" {
            println!("{status:#}");
            return Ok(());
        }
        println!("store {}, revision {}", status["storeId"].as_str().unwrap_or("?"), status["revision"]);
        replicas::show(&status);
        if let Some(files) = status["files"].as_object() {
            println!("files of {}: {} objects", files["directory"].as_str().unwrap_or("?"), files["objects"]);
            for problem in files["problems"].as_array().into_iter().flatten() {
                println!("  {}", problem.as_str().unwrap_or_default());
            }
        }
        let nodes = status["nodes"].as_object().into_iter().flatten();
        let rows: Vec<_> = nodes.clone().map(|(name, node)| row(name, node)).collect();
        if rows.is_empty() {
            println!(
                "no node has connected; make a join token with `meshctl token create --node NAME --allow NS/*`"
            );
            return Ok(());
        }
        table::print(&["NODE", "STATE", "ACKED", "EPOCH", "WORKLOADS", "AGENT", "PROBLEMS"], &rows);
        for (name, node) in nodes {
            for problem in problems(node) {
                println!("{name}: {problem}");
            }
        }
        Ok(())
    }
}

fn row(name: &str, node: &Value) -> Vec<String> {
    let state = match (node["connected"] == true, node["session"] == true) {
        (true, true) => "ready",
        (true, false) => "no session",
        (false, true) => "no configuration stream",
        (false, false) if node["replica"].is_string() => "elsewhere",
        (false, false) => "away",
    };
    // How far the slowest type is.
    let acked =
        node["types"].as_object().and_then(|types| types.values().filter_map(|t| t["acked"].as_u64()).min());
    vec![
        name.to_owned(),
        state.to_owned(),
        or_dash(acked.map(|revision| revision.to_string()).unwrap_or_default()),
        node["epoch"].as_u64().unwrap_or(0).to_string(),
        node["workloads"].as_u64().unwrap_or(0).to_string(),
        or_dash(node["agentVersion"].as_str().unwrap_or_default()),
        problems(node).len().to_string(),
    ]
}

fn problems(node: &Value) -> Vec<String> {
    let nacks =
        node["types"].as_object().into_iter().flatten().filter_map(|(kind, status)| {
            status["nack"].as_str().map(|cause| format!("refused {kind}: {cause}"))
        });
    let conditions =
        node["conditions"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    nacks.chain(conditions).collect()
}

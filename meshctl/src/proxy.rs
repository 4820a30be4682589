//! `meshctl proxy`: the Envoys and clients of gRPC, what each has taken and refused; certificates for them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::Client;
use crate::table::{self, or_dash};

/// Looks at Envoys and clients of gRPC.
#[derive(Subcommand)]
pub enum Proxy {
    /// Shows what each has taken, and what it refused, in its own words
    Status {
        /// One node, by its id
        node: Option<String>,
        /// How to show it
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Has a certificate made by which nodes of a type are known at the port for Envoys
    Certificate {
        /// The type: what the ids of its nodes begin with, up to the first '-'
        node_type: String,
        /// Request of `openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj /`
        #[arg(long)]
        csr: PathBuf,
        /// Where the certificate goes; ca.pem is written beside it
        #[arg(long, default_value = "cert.pem")]
        out: PathBuf,
    },
}

impl Proxy {
    pub fn run(&self, client: &Client) -> Result<()> {
        match self {
            Proxy::Status { node, output } => {
                let answer = client.get("/v1/proxies")?;
                let all = answer["items"].as_array().into_iter().flatten();
                let of = |item: &&Value| node.as_ref().is_none_or(|node| item["node"] == node.as_str());
                let items: Vec<&Value> = all.filter(of).collect();
                if output == "json" {
                    println!("{:#}", json!(items));
                } else {
                    show(&items, &answer["problems"]);
                }
            }
            Proxy::Certificate { node_type, csr, out } => {
                let text = std::fs::read_to_string(csr)
                    .with_context(|| format!("cannot read the request {}; check --csr", csr.display()))?;
                let answer =
                    client.post(&format!("/v1/envoy/{node_type}/certificate"), &json!({ "csr": text }))?;
                let ca = out.with_file_name("ca.pem");
                for (path, field) in [(out, "certificate"), (&ca, "ca")] {
                    let text = answer[field].as_str().unwrap_or_default();
                    std::fs::write(path, text)
                        .with_context(|| format!("cannot write {}; check --out", path.display()))?;
                }
                let identity = answer["identity"].as_str().unwrap_or_default();
                println!("{identity}: {} and {}", out.display(), ca.display());
            }
        }
        Ok(())
    }
}

const TYPES: [&str; 5] = ["clusters", "endpoints", "listeners", "routes", "secrets"];

fn show(items: &[&Value], problems: &Value) {
    if items.is_empty() {
        println!(
            "no Envoy has connected; make a token with `meshctl token create --envoy TYPE`, and start mesh-control with --envoys"
        );
    }
    let rows: Vec<_> = items.iter().map(|item| row(item)).collect();
    if !rows.is_empty() {
        let head = ["NODE", "CLIENT", "STATE", "CLUSTERS", "ENDPOINTS", "LISTENERS", "ROUTES", "SECRETS"];
        table::print(&head, &rows);
    }
    for item in items {
        for (of, status) in item["types"].as_object().into_iter().flatten() {
            if let Some(nack) = status["nack"].as_str() {
                println!("{} refused {of}: {nack}", item["node"].as_str().unwrap_or_default());
            }
        }
    }
    for (node_type, problems) in problems.as_object().into_iter().flatten() {
        for problem in problems.as_array().into_iter().flatten().filter_map(Value::as_str) {
            println!("type {node_type}: {problem}");
        }
    }
}

fn row(item: &Value) -> Vec<String> {
    let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
    let state = if item["streams"].as_u64().unwrap_or(0) > 0 { text("variant") } else { "away".to_owned() };
    let mut row = vec![text("node"), or_dash(text("client")), state];
    row.extend(TYPES.map(|of| progress(&item["types"][of]).to_owned()));
    row
}

fn progress(status: &Value) -> &'static str {
    match (status["nack"].is_string(), status["version"].as_str(), status["acked"].as_str()) {
        (true, _, _) => "refused",
        (_, None, _) => "-",
        (_, version, acked) if version == acked => "synced",
        _ => "sent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_a_word() {
        assert_eq!(progress(&Value::Null), "-");
        assert_eq!(progress(&json!({ "version": "a", "acked": "a" })), "synced");
        assert_eq!(progress(&json!({ "version": "b", "acked": "a" })), "sent");
        assert_eq!(progress(&json!({ "version": "b", "acked": "a", "nack": "no" })), "refused");
    }
}

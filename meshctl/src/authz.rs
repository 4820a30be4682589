//! `meshctl authz check`: who would be let in where, and which rule decides.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::Client;
use crate::table;

/// What policies come to.
#[derive(Subcommand)]
pub enum Authz {
    /// Says whether a connection would be let in, and which rule decides
    Check(Check),
}

/// A connection that might be.
#[derive(Args)]
pub struct Check {
    /// Who calls: a workload [NAMESPACE/]NAME, an identity spiffe://…, or an IP address
    source: String,
    /// Who is called: a workload or a service, [NAMESPACE/]NAME
    destination: String,
    /// Port of the workload, or of the service; without, the only one that it serves, or all of a service's
    #[arg(short, long)]
    port: Option<u16>,
    /// How to show it
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

impl Authz {
    pub fn run(&self, client: &Client) -> Result<()> {
        let Authz::Check(check) = self;
        let port = check.port.map_or_else(String::new, |port| format!("&port={port}"));
        let (source, destination) = (query(&check.source), query(&check.destination));
        let path = format!("/v1/authz/check?source={source}&destination={destination}{port}");
        let answer = client.get(&path)?;
        if check.output == "json" {
            println!("{answer:#}");
            return Ok(());
        }
        let rows: Vec<_> = answer["items"].as_array().into_iter().flatten().map(row).collect();
        table::print(&["WORKLOAD", "PORT", "ANSWER", "DECIDED BY", "PROOF"], &rows);
        Ok(())
    }
}

fn row(item: &Value) -> Vec<String> {
    let text = |field: &str| item[field].as_str().unwrap_or("?").to_owned();
    let answer = if item["allowed"] == true { "allowed" } else { "refused" };
    vec![text("workload"), item["port"].to_string(), answer.to_owned(), text("decided"), text("proof")]
}

/// Text as a value of a query: what is not plain is escaped.
fn query(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~/:".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn what_is_not_plain_is_escaped() {
        assert_eq!(query("spiffe://a/ns/b/sa/c"), "spiffe://a/ns/b/sa/c");
        assert_eq!(query("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}

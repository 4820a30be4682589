//! `meshctl authz check`: who would be let in where, and which rule decides.

use anyhow::Result;
use clap::{Args, Subcommand};
use mesh_api::local::Elsewhere;
use serde_json::Value;

use crate::client::{Client, query};
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
    /// Method of a request to ask about
    #[arg(short = 'X', long)]
    method: Option<String>,
    /// Its path
    #[arg(long)]
    path: Option<String>,
    /// Its host
    #[arg(long)]
    host: Option<String>,
    /// A header of it, NAME:VALUE; may be repeated
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// How to show it
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

impl Authz {
    pub fn run(&self, client: &Client) -> Result<()> {
        let Authz::Check(check) = self;
        let answer = client.get(&check.asks())?;
        if check.output == "json" {
            println!("{answer:#}");
            return Ok(());
        }
        let rows: Vec<_> = answer["items"].as_array().into_iter().flatten().map(row).collect();
        table::print(&["WORKLOAD", "PORT", "ANSWER", "DECIDED BY", "PROOF"], &rows);
        Ok(())
    }
}

impl Check {
    /// The same of a request that another node decides about.
    pub fn of(one: Elsewhere) -> Self {
        let Elsewhere { source, workload, port, method, path, host, headers } = one;
        Self {
            source,
            destination: workload,
            port: Some(port),
            method: Some(method),
            path: Some(path),
            host: Some(host),
            headers,
            output: String::new(),
        }
    }

    /// The path and query that ask.
    pub fn asks(&self) -> String {
        let (source, destination) = (query(&self.source), query(&self.destination));
        let mut asks = format!("/v1/authz/check?source={source}&destination={destination}");
        let headers = (!self.headers.is_empty()).then(|| self.headers.join("\n"));
        let more = [
            ("port", self.port.map(|port| port.to_string())),
            ("method", self.method.clone()),
            ("path", self.path.clone()),
            ("host", self.host.clone()),
            ("headers", headers),
        ];
        for (name, value) in more {
            if let Some(value) = value {
                asks.extend(["&", name, "=", &query(&value)]);
            }
        }
        asks
    }
}

fn row(item: &Value) -> Vec<String> {
    let text = |field: &str| item[field].as_str().unwrap_or("?").to_owned();
    let answer = match (item["allowed"] == true, item["depends"] == true) {
        (true, _) => "allowed",
        (false, true) => "depends",
        (false, false) => "refused",
    };
    vec![text("workload"), item["port"].to_string(), answer.to_owned(), text("decided"), text("proof")]
}

#[cfg(test)]
mod tests {
    use crate::client::query;

    #[test]
    fn a_request_is_asked_about_where_one_is_given() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            check: super::Check,
        }
        let asks = |line: &str| Line::parse_from(line.split(' ')).check.asks();
        assert_eq!(asks("check a b -p 80"), "/v1/authz/check?source=a&destination=b&port=80");
        assert_eq!(
            asks("check a b -X PUT --path /x?y --host h -H k:v -H l:w"),
            "/v1/authz/check?source=a&destination=b&method=PUT&path=/x%3Fy&host=h&headers=k:v%0Al:w"
        );
    }

    #[test]
    fn what_is_not_plain_is_escaped() {
        assert_eq!(query("spiffe://a/ns/b/sa/c"), "spiffe://a/ns/b/sa/c");
        assert_eq!(query("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}

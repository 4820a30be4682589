//! `meshctl ca`: the certificate authority; `meshctl node`: who has joined.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::replicas;
use crate::table::{self, or_dash};
use crate::token::human;

/// Looks at the certificate authority, and rotates its keys.
#[derive(Subcommand)]
pub enum Ca {
    /// Shows roots, intermediate, and how much was issued
    Status {
        /// How to show it
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Makes a new intermediate; with --root, a new root
    Rotate {
        /// A new root: it begins to sign when every connected agent believes it, and the old one is believed until
        /// the last certificate under it has ended
        #[arg(long)]
        root: bool,
    },
    /// Revokes certificates: peers refuse them from then on
    Revoke(Revoke),
    /// Lists the certificates that were issued, the newest first
    Issued {
        /// How many
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// How to show them
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
}

/// Which certificates.
#[derive(Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["serial", "identity", "node"])))]
pub struct Revoke {
    /// One, by its serial number
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// All of an identity
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<String>,
    /// All that a node was given; it stays a member (see `meshctl node revoke`)
    #[arg(long)]
    node: Option<String>,
}

/// Lists the nodes that have joined, and ends memberships.
#[derive(Subcommand)]
pub enum Node {
    /// Lists them, with what each may host
    List,
    /// Ends a membership: its sessions end, its tokens and certificates are revoked
    Revoke {
        /// The node
        node: String,
    },
}

impl Ca {
    pub fn run(&self, client: &Client) -> Result<()> {
        match self {
            Self::Status { output } => {
                let status = client.get("/v1/ca")?;
                if output == "json" { println!("{status:#}") } else { show(&status) }
            }
            Self::Rotate { root } => {
                let status = client.post("/v1/ca/rotate", &json!({ "root": root }))?;
                show(&status);
            }
            Self::Revoke(revoke) => {
                let answer = client.post("/v1/ca/revoke", &revoke.request())?;
                revoked(&answer);
            }
            Self::Issued { limit, output } => {
                let answer = client.get(&format!("/v1/ca/issued?limit={limit}"))?;
                if output == "json" {
                    println!("{answer:#}");
                } else {
                    let rows: Vec<_> = answer["items"].as_array().into_iter().flatten().map(row).collect();
                    table::print(&["SERIAL", "IDENTITY", "NODE", "GENERATION", "NOT AFTER"], &rows);
                }
            }
        }
        Ok(())
    }
}

impl Revoke {
    fn request(&self) -> Value {
        match (&self.serial, &self.identity, &self.node) {
            (Some(serial), ..) => json!({ "serial": serial }),
            (_, Some(identity), _) => json!({ "identity": identity }),
            (.., node) => json!({ "node": node }),
        }
    }
}

impl Node {
    pub fn run(&self, client: &Client) -> Result<()> {
        match self {
            Self::List => {
                let answer = client.get("/v1/nodes")?;
                let rows: Vec<_> = answer["items"].as_array().into_iter().flatten().map(member).collect();
                table::print(&["NODE", "TOKEN", "ALLOW", "STATE"], &rows);
            }
            Self::Revoke { node } => {
                let answer = client.post(&format!("/v1/nodes/{node}/revoke"), &json!({}))?;
                println!("node {node} revoked");
                revoked(&answer);
            }
        }
        Ok(())
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn show(status: &Value) {
    let stage = match status["stage"].as_str().unwrap_or_default() {
        "announced" if status["taken"] == true => "a new root is believed by every agent, and about to sign",
        "announced" => "a new root waits until every connected agent believes it",
        "overlap" => "a new root signs; the old one is believed until its last certificate has ended",
        _ => "steady",
    };
    println!("trust domain {}: {stage}", text(status, "trustDomain"));
    let roots = status["roots"].as_array().into_iter().flatten().map(|one| ("root", one));
    let all = roots.chain([("intermediate", &status["intermediate"])]);
    let row = |(what, one): (&str, &Value)| {
        let ends = human(one["endsInSeconds"].as_i64().unwrap_or(0));
        vec![what.to_owned(), text(one, "name"), format!("in {ends}"), text(one, "sha256")]
    };
    table::print(&["WHAT", "NAME", "ENDS", "SHA-256"], &all.map(row).collect::<Vec<_>>());
    replicas::show(status);
    let issued = &status["issued"];
    let revoked = status["revoked"].as_array().map_or(0, Vec::len);
    println!(
        "generation {}; {} certificates valid, {revoked} revoked",
        status["generation"], issued["valid"]
    );
}

fn row(one: &Value) -> Vec<String> {
    let number = |field: &str| one[field].to_string();
    vec![
        text(one, "serial"),
        text(one, "identity"),
        text(one, "node"),
        number("generation"),
        number("notAfter"),
    ]
}

fn revoked(answer: &Value) {
    for one in answer["revoked"].as_array().into_iter().flatten() {
        println!("revoked {} of {}", text(one, "serial"), text(one, "identity"));
    }
}

fn member(one: &Value) -> Vec<String> {
    let allow: Vec<_> = one["grants"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let state = if one["revokedMs"].is_null() { "member" } else { "revoked" };
    vec![text(one, "node"), text(one, "token"), or_dash(allow.join(",")), state.to_owned()]
}

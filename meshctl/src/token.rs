//! `meshctl token`: who may talk to the control plane.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::table::{self, or_dash};

/// Makes, lists and revokes tokens.
#[derive(Subcommand)]
pub enum Token {
    /// Makes a token and prints it: the only time that it is shown
    Create(Create),
    /// Lists the tokens, without their secrets
    List,
    /// Ends a token, and the membership of the node that joined by it
    Revoke {
        /// As `list` shows it
        id: String,
    },
}

/// Makes a token.
#[derive(Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["node", "role", "envoy"])))]
pub struct Create {
    /// Join token of the agent of this node
    #[arg(long, requires = "allow")]
    node: Option<String>,
    /// Service accounts that the node may host: NAMESPACE/SERVICEACCOUNT or NAMESPACE/*
    #[arg(long, value_name = "NS/SA", value_delimiter = ',', requires = "node")]
    allow: Vec<String>,
    /// API token of this role
    #[arg(long, value_parser = ["admin", "editor", "viewer"])]
    role: Option<String>,
    /// Token of the Envoys and clients of gRPC of this node type
    #[arg(long, value_name = "TYPE")]
    envoy: Option<String>,
    /// What people call it, for history and the audit log
    #[arg(long)]
    name: Option<String>,
    /// Life of the token, such as 24h; without, it ends when it is revoked. A node that has joined stays
    #[arg(long)]
    ttl: Option<String>,
    /// Good for one join: whoever comes with it again is refused
    #[arg(long, requires = "node")]
    single_use: bool,
}

impl Token {
    pub fn run(&self, client: &Client) -> Result<()> {
        match self {
            Token::Create(create) => {
                let answer = client.post("/v1/tokens", &create.request())?;
                println!("{}", answer["token"].as_str().unwrap_or_default());
            }
            Token::List => {
                let answer = client.get("/v1/tokens")?;
                let rows: Vec<_> = answer["items"].as_array().into_iter().flatten().map(row).collect();
                table::print(&["ID", "NAME", "ROLE", "NODE", "ALLOW", "EXPIRES", "USES"], &rows);
            }
            Token::Revoke { id } => {
                client.delete(&format!("/v1/tokens/{id}"))?;
                println!("token {id} revoked");
            }
        }
        Ok(())
    }
}

impl Create {
    fn request(&self) -> Value {
        let mut request = match (&self.node, &self.envoy) {
            (Some(node), _) => json!({ "role": "node", "node": node, "allow": self.allow }),
            (None, Some(of)) => json!({ "role": "envoy", "node": of }),
            (None, None) => json!({ "role": self.role }),
        };
        if self.single_use {
            request["singleUse"] = json!(true);
        }
        if let Some(name) = &self.name {
            request["name"] = json!(name);
        }
        if let Some(ttl) = &self.ttl {
            request["ttl"] = json!(ttl);
        }
        request
    }
}

fn row(token: &Value) -> Vec<String> {
    let text = |field: &str| token[field].as_str().unwrap_or_default().to_owned();
    let allow: Vec<_> = token["grants"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let expires = token["expiresInSeconds"].as_i64().map_or("never".to_owned(), |left| {
        if left <= 0 { "expired".to_owned() } else { format!("in {}", human(left)) }
    });
    let uses = match (token["singleUse"] == true, token["used"] == true) {
        (false, _) => "any",
        (true, false) => "one",
        (true, true) => "used",
    };
    let node = or_dash(text("node"));
    vec![
        text("id"),
        or_dash(text("name")),
        text("role"),
        node,
        or_dash(allow.join(",")),
        expires,
        uses.to_owned(),
    ]
}

pub fn human(seconds: i64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{}d", s / 86_400),
        s if s >= 2 * 3_600 => format!("{}h", s / 3_600),
        s if s >= 120 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

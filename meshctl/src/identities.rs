//! `meshctl status --identities`: the certificates that this node's agent holds.

use anyhow::Result;
use mesh_api::local::{IdentityStatus, Request, VERSION};
use serde_json::json;

use crate::agent::RunDir;
use crate::table::{self, or_dash};
use crate::token::human;

/// Asks the agent, and shows them.
pub fn show(agent: &RunDir, as_json: bool) -> Result<()> {
    let request = Request { v: VERSION, op: "status".to_owned(), ..Request::default() };
    let status = agent.connect()?.ask(&request, &[])?.status.unwrap_or_default();
    if as_json {
        println!("{:#}", json!({ "identities": status.identities, "more": status.more_identities }));
        return Ok(());
    }
    let rows: Vec<_> = status.identities.iter().map(row).collect();
    table::print(&["IDENTITY", "SERIAL", "ENDS", "PROBLEM"], &rows);
    if status.more_identities > 0 {
        println!("and {} more", status.more_identities);
    }
    Ok(())
}

fn row(one: &IdentityStatus) -> Vec<String> {
    let ends = match one.ends_in_seconds {
        None => "no certificate yet".to_owned(),
        Some(left) if left <= 0 => "ended".to_owned(),
        Some(left) => format!("in {}", human(left)),
    };
    vec![one.identity.clone(), or_dash(&*one.serial), ends, or_dash(&*one.failure)]
}

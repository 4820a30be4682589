//! `meshctl health SERVICE`: how each endpoint is, by its checks and by what nodes saw of it, and what was done.

use anyhow::Result;
use clap::Args;
use mesh_api::duration;
use mesh_api::resource::DEFAULT_NAMESPACE;
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::client::Client;
use crate::table::{self, or_dash};

/// Shows how the endpoints of a service are, and why.
#[derive(Args)]
pub struct Health {
    /// The service, as NAMESPACE/NAME or NAME
    service: String,
    /// Its namespace, where the name has none
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// How to show it
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

impl Health {
    pub fn run(&self, client: &Client) -> Result<()> {
        let (namespace, name) = self.service.split_once('/').unwrap_or((&self.namespace, &self.service));
        let page = client.get(&format!("/v1/health/{namespace}/{name}"))?;
        if self.output == "json" {
            println!("{page:#}");
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let rows: Vec<_> = list(&page["endpoints"]).map(|endpoint| row(endpoint, now)).collect();
        table::print(&["WORKLOAD", "NODE", "PORT", "WEIGHT", "HEALTH", "FOR", "EJECTED BY", "REASON"], &rows);
        for event in list(&page["recoveries"]) {
            let at = ago(&event["atMs"], now);
            let (workload, action, reason) =
                (text(&event["workload"]), text(&event["action"]), text(&event["reason"]));
            println!("{at} ago: {workload}: {action}: {reason}");
        }
        for condition in list(&page["conditions"]).filter(|condition| condition["status"] == "False") {
            println!("{}: {}", text(&page["service"]), text(&condition["message"]));
        }
        if page["checked"] == false {
            println!("{}: nobody checks its endpoints: give it a spec.healthCheck", text(&page["service"]));
        }
        Ok(())
    }
}

fn row(endpoint: &Value, now: Duration) -> Vec<String> {
    let udp = if endpoint["udp"] == true { "/udp" } else { "" };
    let out: Vec<String> = list(&endpoint["ejectedBy"]).map(text).collect();
    vec![
        text(&endpoint["workload"]),
        or_dash(text(&endpoint["node"])),
        format!("{}{udp}->{}", endpoint["port"], endpoint["targetPort"]),
        text(&endpoint["weight"]),
        text(&endpoint["health"]),
        ago(&endpoint["sinceMs"], now),
        or_dash(out.join(",")),
        or_dash(text(&endpoint["reason"])),
    ]
}

/// Whole seconds since then.
fn ago(at_ms: &Value, now: Duration) -> String {
    let Some(at) = at_ms.as_u64() else { return "-".to_owned() };
    let past = now.saturating_sub(Duration::from_millis(at));
    duration::format(Duration::from_secs(past.as_secs()))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

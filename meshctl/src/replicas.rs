//! The replicas of the control plane, in `status` and `ca status`. Nothing is shown where there is one.

use serde_json::Value;

use crate::moment::date;
use crate::table::{self, or_dash};

/// Prints a table of them, if there are any.
pub fn show(status: &Value) {
    let rows: Vec<_> = status["replicas"].as_array().into_iter().flatten().map(row).collect();
    if !rows.is_empty() {
        table::print(&["REPLICA", "ROLE", "ZONE", "API", "AGENTS", "INTERMEDIATE ENDS"], &rows);
    }
}

fn row(one: &Value) -> Vec<String> {
    let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let roles = [("leads", "leads"), ("holdsRoot", "holds the root"), ("self", "asked")];
    let roles: Vec<_> =
        roles.into_iter().filter(|(field, _)| one[*field] == true).map(|(_, role)| role).collect();
    let ends = one["intermediateEnds"].as_u64().filter(|end| *end > 0).map(date).unwrap_or_default();
    vec![
        text("name"),
        or_dash(roles.join(", ")),
        or_dash(text("zone")),
        text("api"),
        text("agents"),
        or_dash(ends),
    ]
}

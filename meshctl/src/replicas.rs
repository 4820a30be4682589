//! The replicas of the control plane, in `status` and `ca status`. Nothing is shown where there is one.

use serde_json::Value;

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

/// A day, UTC.
fn date(unix: u64) -> String {
    let days = i64::try_from(unix / 86_400).unwrap_or(0) + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix, want) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_795_304_029, "2026-11-22")] {
            assert_eq!(date(unix), want);
        }
    }
}

//! What differs between two objects, field by field, for people: history, dry runs, `meshctl diff`.
//!
//! Invariant: at most [`CHANGES_MAX`] differences are told; what is left off is told as one more, of path `…`.
//! Not here: which fields count (the caller passes what it compares).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most differences that are told one by one.
pub const CHANGES_MAX: usize = 256;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where, as `spec.ports[0].port`.
    pub path: String,
    /// What was there; `null`: nothing.
    pub before: Value,
    /// What is there; `null`: nothing.
    pub after: Value,
}

/// All differences, in the order of the fields' names.
pub fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let (mut out, mut left_off) = (Vec::new(), 0);
    walk(String::new(), before, after, &mut |change| {
        if out.len() < CHANGES_MAX {
            out.push(change);
        } else {
            left_off += 1;
        }
    });
    if left_off > 0 {
        out.push(Change { path: "…".to_owned(), before: Value::Null, after: left_off.into() });
    }
    out
}

fn walk(path: String, before: &Value, after: &Value, tell: &mut dyn FnMut(Change)) {
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(old), Value::Object(new)) => {
            let fields: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for field in fields {
                let inner = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(field).cloned().unwrap_or_default();
                walk(inner, &of(old), &of(new), tell);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for i in 0..old.len().max(new.len()) {
                let of = |list: &[Value]| list.get(i).cloned().unwrap_or_default();
                walk(format!("{path}[{i}]"), &of(old), &of(new), tell);
            }
        }
        (before, after) => tell(Change { path, before: before.clone(), after: after.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_entries_and_their_absence_are_told_by_path() {
        let before = json!({"spec": {"ports": [{"port": 80}], "headless": true}, "same": 1});
        let after = json!({"spec": {"ports": [{"port": 81}, {"port": 90}]}, "same": 1});
        let told: Vec<_> = changes(&before, &after)
            .into_iter()
            .map(|c| format!("{}: {} -> {}", c.path, c.before, c.after))
            .collect();
        assert_eq!(
            told,
            [
                "spec.headless: true -> null",
                "spec.ports[0].port: 80 -> 81",
                "spec.ports[1]: null -> {\"port\":90}"
            ]
        );
        assert_eq!(changes(&before, &before), []);
    }

    #[test]
    fn a_long_list_of_differences_ends() {
        let many = |n: i32| (0..1000).map(|i| i + n).collect::<Value>();
        let told = changes(&many(0), &many(1));
        assert_eq!(told.len(), CHANGES_MAX + 1);
        assert_eq!(told[CHANGES_MAX].after, json!(1000 - CHANGES_MAX));
    }
}

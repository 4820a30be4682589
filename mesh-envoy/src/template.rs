//! Places in raw resources that the registry fills in.
//!
//! | in a text | becomes |
//! |---|---|
//! | `{{endpoints NAMESPACE/SERVICE PORT}}`, the whole text | the list of `LocalityLbEndpoints` of that port |
//! | `{{vip NAMESPACE/SERVICE}}` | its first virtual address |
//! | `{{port NAMESPACE/SERVICE NAME}}` | the number of its port of that name; the whole text: a number |
//!
//! What is not there leaves an empty list; a virtual address or port that is not there leaves the resource out.

use std::collections::BTreeSet;
use std::fmt;

use mesh_api::resource::{Key, Kind};
use serde_json::Value;

use crate::endpoints;
use crate::look::{Look, Target};

/// Why a text can't be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Where, within the resource.
    pub path: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.why)
    }
}

/// Who knows what stands in a place.
pub trait Fill {
    /// The endpoints of a port.
    fn endpoints(&mut self, target: &Target) -> Vec<Value>;
    /// The first virtual address of a service.
    fn vip(&mut self, namespace: &str, service: &str) -> Option<String>;
    /// The number of a port.
    fn port(&mut self, namespace: &str, service: &str, name: &str) -> Option<u16>;
}

/// For looking at a template before anything is known: everything is there.
pub struct Sample;

impl Fill for Sample {
    fn endpoints(&mut self, _: &Target) -> Vec<Value> {
        Vec::new()
    }

    fn vip(&mut self, _: &str, _: &str) -> Option<String> {
        Some("192.0.2.1".to_owned())
    }

    fn port(&mut self, _: &str, _: &str, _: &str) -> Option<u16> {
        Some(80)
    }
}

/// The registry, and what was asked of it.
pub struct Known<'l, 'a> {
    /// The registry.
    pub look: &'l Look<'a>,
    /// Services that were asked for.
    pub services: BTreeSet<(String, String)>,
    /// Workloads that were told.
    pub workloads: BTreeSet<String>,
}

impl Fill for Known<'_, '_> {
    fn endpoints(&mut self, target: &Target) -> Vec<Value> {
        self.services.insert((target.namespace.clone(), target.service.clone()));
        let found = endpoints::endpoints(self.look, target);
        self.workloads.extend(found.workloads);
        found.groups
    }

    fn vip(&mut self, namespace: &str, service: &str) -> Option<String> {
        self.services.insert((namespace.to_owned(), service.to_owned()));
        let given = self.look.service(namespace, service)?.vips.first();
        let status = &self.look.registry.get(&Key::new(Kind::Service, namespace, service))?.status;
        given.or(status.vips.first()).map(ToString::to_string)
    }

    fn port(&mut self, namespace: &str, service: &str, name: &str) -> Option<u16> {
        self.services.insert((namespace.to_owned(), service.to_owned()));
        Some(self.look.service(namespace, service)?.port_by_name(name)?.port)
    }
}

/// Whether anything is to be filled in.
pub fn is_template(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("{{"),
        Value::Array(list) => list.iter().any(is_template),
        Value::Object(map) => map.values().any(is_template),
        _ => false,
    }
}

/// Fills everything in.
pub fn fill(value: &Value, with: &mut dyn Fill) -> Result<Value, Bad> {
    filled(value, "", with)
}

fn filled(value: &Value, path: &str, with: &mut dyn Fill) -> Result<Value, Bad> {
    let dot = if path.is_empty() { "" } else { "." };
    match value {
        Value::String(text) if text.contains("{{") => text_of(text, path, with),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, inner)| filled(inner, &format!("{path}[{i}]"), with))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
        Value::Object(map) => map
            .iter()
            .map(|(field, inner)| Ok((field.clone(), filled(inner, &format!("{path}{dot}{field}"), with)?)))
            .collect::<Result<serde_json::Map<_, _>, _>>()
            .map(Value::Object),
        other => Ok(other.clone()),
    }
}

fn text_of(text: &str, path: &str, with: &mut dyn Fill) -> Result<Value, Bad> {
    let bad = |why: String| Bad { path: path.to_owned(), why };
    let whole = text.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
    if let Some(inside) = whole.filter(|inside| !inside.contains("}}")) {
        return one(inside, with).map_err(bad);
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((inside, after)) = after.split_once("}}") else {
            return Err(bad("\"{{\" without \"}}\"".to_owned()));
        };
        out.push_str(before);
        match one(inside, with).map_err(bad)? {
            Value::String(text) => out.push_str(&text),
            Value::Number(number) => out.push_str(&number.to_string()),
            _ => return Err(bad(format!("{{{{{inside}}}}} must be the whole text: it is a list"))),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(Value::String(out))
}

fn one(inside: &str, with: &mut dyn Fill) -> Result<Value, String> {
    const FORMS: &str =
        "{{endpoints NAMESPACE/SERVICE PORT}}, {{vip NAMESPACE/SERVICE}} or {{port NAMESPACE/SERVICE NAME}}";
    let refused = || format!("{{{{{inside}}}}} is not one of {FORMS}");
    let words: Vec<&str> = inside.split_whitespace().collect();
    let (what, rest) = words.split_first().ok_or_else(refused)?;
    let (of, rest) = rest.split_first().ok_or_else(refused)?;
    let (namespace, service) = of.split_once('/').ok_or_else(refused)?;
    match (*what, rest) {
        ("endpoints", [port]) => {
            let port = port.parse().map_err(|_| format!("{port} is no port number; accepted: {FORMS}"))?;
            Ok(with.endpoints(&Target::new(namespace, service, port)).into())
        }
        ("vip", []) => {
            let vip = with.vip(namespace, service);
            vip.map(Value::from)
                .ok_or_else(|| format!("Service {of} has no virtual address, or does not exist"))
        }
        ("port", [name]) => {
            let port = with.port(namespace, service, name);
            port.map(Value::from).ok_or_else(|| format!("Service {of} has no port {name}, or does not exist"))
        }
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(text: &str) -> Result<Value, String> {
        fill(&json!({ "a": [text] }), &mut Sample)
            .map(|value| value["a"][0].clone())
            .map_err(|bad| bad.to_string())
    }

    #[test]
    fn places_are_filled_in_where_they_stand() {
        assert_eq!(sample("plain"), Ok(json!("plain")));
        assert_eq!(sample("{{endpoints a/b 80}}"), Ok(json!([])));
        assert_eq!(sample("{{port a/b http}}"), Ok(json!(80)));
        assert_eq!(sample("http://{{vip a/b}}:{{port a/b http}}/"), Ok(json!("http://192.0.2.1:80/")));
    }

    #[test]
    fn what_is_no_place_is_named() {
        for bad in ["{{vip}}", "{{vip a}}", "{{endpoints a/b http}}", "x{{vip a/b", "{{nodes a/b}}", "{{}}"] {
            let said = sample(bad).unwrap_err();
            assert!(said.starts_with("a[0]: "), "{bad}: {said}");
        }
        assert!(sample("x {{endpoints a/b 80}}").unwrap_err().contains("the whole text"));
    }
}

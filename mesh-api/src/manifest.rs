//! Texts of objects: YAML (several documents a text) or JSON, which is YAML too.
//!
//! text ─▶ documents ─▶ **[`Object`]s**; `meshctl -f` and watched directories read with it.
//!
//! Invariants: every object of a text is parsed or none is; a mistake names place and line of the field that it is
//! about; nesting, aliases and sizes are bounded (by the YAML reader's budget), so that a text costs what it is long.
//! Not here: reading files.

mod lines;

use std::fmt;

use serde_json::Value;
use serde_saphyr::Spanned;

use crate::resource::{Key, MAX_BYTES, Resource};

/// Largest text that callers should read, in bytes.
pub const TEXT_MAX: usize = 64 << 20;

/// One object of a text.
#[derive(Clone, Debug)]
pub struct Object {
    /// `NAME:LINE`.
    pub place: String,
    /// What it is.
    pub key: Key,
    /// As it was written.
    pub json: Value,
    /// As it was understood.
    pub resource: Resource,
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// `NAME:LINE`, or the name alone.
    pub place: String,
    /// One sentence.
    pub cause: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)
    }
}

impl std::error::Error for Mistake {}

/// Whether a file of this ending holds objects.
pub fn is_manifest(ending: Option<&str>) -> bool {
    matches!(ending, Some("yaml" | "yml" | "json"))
}

/// All objects of a text called `name`, in its order.
pub fn parse(name: &str, text: &str) -> Result<Vec<Object>, Mistake> {
    let read = serde_saphyr::from_multiple_with_options(text, options());
    let documents: Vec<Spanned<Value>> = read.map_err(|error| {
        let line = error.location().map_or(String::new(), |at| format!(":{}", at.line()));
        let cause = format!("not valid YAML: {}", first_line(&error.without_snippet().to_string()));
        Mistake { place: format!("{name}{line}"), cause }
    })?;
    let mut objects = Vec::new();
    for (number, document) in documents.into_iter().enumerate() {
        if document.value.is_null() {
            continue;
        }
        let line = document.referenced.line();
        objects.push(object(format!("{name}:{line}"), document.value).map_err(|(path, cause)| {
            let line = lines::of(text, number, &path).unwrap_or(line);
            Mistake { place: format!("{name}:{line}"), cause }
        })?);
    }
    Ok(objects)
}

fn options() -> serde_saphyr::Options {
    // `mode: off` is a word: of YAML 1.2 `true` and `false` alone are not.
    serde_saphyr::options! { strict_booleans: true }
}

/// The error with its path.
fn object(place: String, mut json: Value) -> Result<Object, (String, String)> {
    // What `get` shows beside the object may be applied again.
    if let Some(fields) = json.as_object_mut() {
        fields.remove("observed");
    }
    let length = json.to_string().len();
    if length > MAX_BYTES {
        let cause = format!("the object has {length} bytes; accepted: up to {MAX_BYTES}");
        return Err((String::new(), cause));
    }
    let resource = Resource::parse(&json).map_err(|error| (error.path.clone(), error.to_string()))?;
    Ok(Object { place, key: resource.key(), json, resource })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;

    const SHOP: &str = "# the shop\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {name: a}\nspec:\n  \
                        addresses: [10.0.0.1]\n---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata:\n  \
                        name: web\nspec:\n  ports:\n  - {name: http, port: 80, protocol: http}\n---\n";

    fn told(text: &str) -> String {
        parse("x.yaml", text).expect_err("refused").to_string()
    }

    #[test]
    fn documents_are_read_with_their_lines() {
        let objects = parse("shop.yaml", SHOP).unwrap();
        let places: Vec<_> = objects.iter().map(|object| object.place.as_str()).collect();
        assert_eq!(places, ["shop.yaml:2", "shop.yaml:8"]);
        assert_eq!(objects[1].key, Key::new(Kind::Service, "default", "web"));
    }

    #[test]
    fn off_is_a_word() {
        let off =
            "apiVersion: nodemesh.io/v1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {mtls: {mode: off}}\n";
        assert_eq!(parse("mesh.yaml", off).unwrap()[0].json["spec"]["mtls"]["mode"], "off");
    }

    #[test]
    fn mistakes_name_file_line_and_field() {
        let error = told(&SHOP.replace("port: 80,", "port: 70000,"));
        assert!(error.starts_with("x.yaml:14: spec.ports[0].port: 70000"), "{error}");
        let error = told(&SHOP.replace("  name: web", "  labels: {a: b}\n  nome: web"));
        assert!(error.starts_with("x.yaml:12: metadata.nome: unknown field"), "{error}");
        let error = told(&SHOP.replace("  name: web", "  labels: {a: b}"));
        assert!(error.starts_with("x.yaml:11: metadata.name: missing"), "{error}");
        let error = told("a: [1,\nb: }");
        assert!(
            error.starts_with("x.yaml:1: not valid YAML") || error.starts_with("x.yaml:2: not valid YAML"),
            "{error}"
        );
    }

    #[test]
    fn bombs_are_refused_and_cost_little() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let list = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.extend([format!("a{n}: &a{n} [{list}]\n")]);
        }
        for text in [
            bomb,
            format!("a: {}1{}", "[".repeat(50_000), "]".repeat(50_000)),
            "- ".repeat(50_000),
            "---\n1\n".repeat(5000),
        ] {
            let begin = std::time::Instant::now();
            assert!(told(&text).contains("not valid YAML"), "{}", told(&text));
            assert!(begin.elapsed() < std::time::Duration::from_secs(5));
        }
        assert!(told("kind: Pod\napiVersion: v1\n").contains("kind"));
        assert!(told("just text").contains("the object"));
        assert!(told("a: \u{0}").contains("not valid YAML"));
    }
}

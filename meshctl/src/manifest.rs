//! Files of objects: YAML (several documents a file) or JSON, which is YAML too.
//!
//! Every object is parsed here before anything is sent, so that a mistake in the last document does not
//! leave the first ones applied; errors name file, line and field.
//!
//! Not here: what the control plane alone can know.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use mesh_api::resource::{Key, MAX_BYTES, Resource};
use serde_json::Value;
use serde_saphyr::Spanned;

/// Largest file that is read.
const FILE_MAX: u64 = 64 << 20;

/// One object of a file.
pub struct Object {
    /// `FILE:LINE`.
    pub place: String,
    /// What it is.
    pub key: Key,
    /// As it was written.
    pub json: Value,
}

/// All objects of a file, of a directory's `.yaml`, `.yml` and `.json` files, or of standard input (`-`);
/// in the order in which they are best written.
pub fn read(path: &Path) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    if path == Path::new("-") {
        objects.extend(parse("standard input", &read_all(std::io::stdin(), "standard input")?)?);
    } else if path.is_dir() {
        for file in files(path)? {
            objects.extend(read_file(&file)?);
        }
        if objects.is_empty() {
            bail!("{} has no objects in .yaml, .yml or .json files", path.display());
        }
    } else {
        objects.extend(read_file(path)?);
    }
    if objects.is_empty() {
        bail!("{} has no objects", path.display());
    }
    // Stable: what a kind refers to is written before it, files keep their order.
    objects.sort_by_key(|object| object.key.kind);
    Ok(objects)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read the directory {}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        if known && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Vec<Object>> {
    let name = path.display().to_string();
    let file = fs::File::open(path).with_context(|| format!("cannot open {name}; check -f"))?;
    parse(&name, &read_all(file, &name)?)
}

fn read_all(from: impl Read, name: &str) -> Result<String> {
    let mut text = String::new();
    let read = from.take(FILE_MAX + 1).read_to_string(&mut text);
    let length = read.with_context(|| format!("cannot read {name} as UTF-8 text"))?;
    if length as u64 > FILE_MAX {
        bail!("{name} is larger than {FILE_MAX} bytes; split it");
    }
    Ok(text)
}

fn parse(name: &str, text: &str) -> Result<Vec<Object>> {
    // `mode: off` is a word: of YAML 1.2 `true` and `false` alone are not.
    let options = serde_saphyr::options! { strict_booleans: true };
    let read = serde_saphyr::from_multiple_with_options(text, options);
    let documents: Vec<Spanned<Value>> = read.map_err(|error| {
        let line = error.location().map_or(String::new(), |at| format!(":{}", at.line()));
        anyhow!("{name}{line}: not valid YAML: {}", first_line(&error.without_snippet().to_string()))
    })?;
    documents
        .into_iter()
        .filter(|document| !document.value.is_null())
        .map(|document| {
            let place = format!("{name}:{}", document.referenced.line());
            object(place, document.value)
        })
        .collect()
}

fn object(place: String, mut json: Value) -> Result<Object> {
    // What `get` shows beside the object may be applied again.
    if let Some(fields) = json.as_object_mut() {
        fields.remove("observed");
    }
    let length = json.to_string().len();
    if length > MAX_BYTES {
        bail!("{place}: the object has {length} bytes; accepted: up to {MAX_BYTES}");
    }
    let resource = Resource::parse(&json).map_err(|error| anyhow!("{place}: {error}"))?;
    Ok(Object { place, key: resource.key(), json })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::resource::Kind;

    const SHOP: &str = "# the shop\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {name: a}\nspec:\n  \
                        addresses: [10.0.0.1]\n---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata:\n  \
                        name: web\nspec:\n  ports:\n  - {name: http, port: 80, protocol: http}\n---\n";

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
        let error = parse("x.yaml", &SHOP.replace("port: 80,", "port: 70000,")).err().unwrap().to_string();
        assert!(error.starts_with("x.yaml:8: spec.ports[0].port: 70000"), "{error}");
        let error = parse("x.yaml", "a: [1,\nb: }").err().unwrap().to_string();
        assert!(error.starts_with("x.yaml:1: not valid YAML"), "{error}");
    }
}

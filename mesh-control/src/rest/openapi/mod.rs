//! `GET /openapi.json`: all that is served, as OpenAPI 3.1.
//!
//! Kinds come from `mesh_api::schema`, which says what the parsers take; [`paths`] says what can be asked, [`schemas`]
//! what is answered beside objects. A path of `{plural}` is described once for each kind, with its schema.
//!
//! Invariant: the router's paths are the described ones (a test); answers conform (a story sends made-up requests).

mod paths;
mod schemas;

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use mesh_api::resource::Kind;
use serde_json::{Map, Value, json};

use paths::{Operation, operations};

static PAGE: LazyLock<String> = LazyLock::new(|| document().to_string());

pub async fn page() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], PAGE.as_str()).into_response()
}

/// The whole document.
fn document() -> Value {
    let mut paths = Map::new();
    for operation in operations() {
        if !operation.path.contains("{plural}") {
            add(&mut paths, &operation, None);
            continue;
        }
        for kind in Kind::ALL.into_iter().filter(|kind| kind.namespaced()) {
            // Only a Workload has a lease.
            if kind == Kind::Workload || operation.name != "heartbeat" {
                add(&mut paths, &operation, Some(kind));
            }
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Nodemesh control plane",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Objects of the mesh, their history, tokens, certificates, discovery. Refusals are \
                            `{\"error\": {reason, path, value, accepted, message}}`.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas::all(),
            "responses": { "Refused": schemas::refused() },
        },
    })
}

fn add(paths: &mut Map<String, Value>, operation: &Operation, kind: Option<Kind>) {
    let (path, text) = match kind {
        Some(kind) => (operation.path.replace("{plural}", kind.plural()), operation.of(kind)),
        None => (operation.path.to_owned(), operation.plain()),
    };
    let entry = paths.entry(path).or_insert_with(|| json!({}));
    entry[operation.method] = text;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_that_is_served_is_described_and_no_other() {
        let served: BTreeSet<&str> = super::super::api().paths.into_iter().collect();
        let described: BTreeSet<&str> = operations().iter().map(|operation| operation.path).collect();
        assert_eq!(served, described, "describe it in rest/openapi/paths.rs");
    }

    #[test]
    fn references_lead_somewhere_and_names_are_unique() {
        let page = document();
        let mut names = BTreeSet::new();
        for methods in page["paths"].as_object().unwrap().values() {
            for operation in methods.as_object().unwrap().values() {
                assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
            }
        }
        let text = page.to_string();
        for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(page.pointer(pointer).is_some(), "{reference}");
        }
        assert!(names.len() > 100, "{}", names.len());
    }
}

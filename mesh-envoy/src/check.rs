//! Looks at an `EnvoyResources` before it is stored: does Envoy's API know what it says?
//!
//! Templates are filled in with samples. What passes here may still be refused by an Envoy (NACK).

use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{EnvoyResourcesSpec, Resource, Spec};
use serde_json::Value;

use crate::codec::{Type, encode};
use crate::template::{self, Sample};

/// The raw resources of a type.
pub fn raw(spec: &EnvoyResourcesSpec, of: Type) -> &[Value] {
    match of {
        Type::Cluster => &spec.clusters,
        Type::Endpoints => &spec.endpoints,
        Type::Listener => &spec.listeners,
        Type::Route => &spec.routes,
        Type::Secret => &spec.secrets,
    }
}

/// Refuses what Envoy's API does not know, with its place.
pub fn check(resource: &Resource) -> Result<(), ApiError> {
    let Spec::EnvoyResources(spec) = &resource.spec else { return Ok(()) };
    for of in Type::ALL {
        for (i, json) in raw(spec, of).iter().enumerate() {
            let place = format!("spec.{}[{i}]", of.plural());
            let filled = template::fill(json, &mut Sample)
                .map_err(|bad| refused(&place, &bad.path, &bad.why, json, of))?;
            encode(of, filled).map_err(|bad| refused(&place, &bad.path, &bad.why, json, of))?;
        }
    }
    Ok(())
}

fn refused(place: &str, within: &str, why: &str, json: &Value, of: Type) -> ApiError {
    let dot = if within.is_empty() || within.starts_with('[') || within == "." { "" } else { "." };
    let path = format!("{place}{dot}{}", within.trim_start_matches('.'));
    let value = json.pointer(&pointer(within)).cloned().unwrap_or(Value::Null);
    let message = of.url().rsplit('/').next().unwrap_or_default();
    let accepted = format!("{message} of Envoy's API v3 in JSON");
    let sentence = format!("{path}: {why}; accepted: {accepted}");
    ApiError::new(Reason::BadFormat, path, value, accepted).saying(sentence)
}

/// `a.b[0].c` as a JSON pointer.
fn pointer(path: &str) -> String {
    let mut out = String::new();
    for part in path.split(['.', '[']).filter(|part| !part.is_empty()) {
        out.push('/');
        out.push_str(part.trim_end_matches(']'));
    }
    out
}

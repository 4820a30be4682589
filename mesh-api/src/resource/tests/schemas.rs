//! The schema that people are shown says what the parser takes: every example conforms, every field is there.

use super::*;
use crate::schema::schema;

/// Every field of an example, and of what it is written as, stands in the schema; and the parser takes no
/// field that the schema lacks.
#[test]
fn schemas_and_parsers_agree() {
    for example in examples() {
        let resource = Resource::parse(&example).unwrap();
        let schema = schema(resource.kind());
        for value in [example, resource.to_json()] {
            conforms(&value["spec"], &schema["properties"]["spec"], "spec");
        }
        covers(&schema["properties"]["spec"], "spec", &mut |pointer| {
            let mut spec = json!({});
            spec[pointer] = json!({"no": ["such", "value"]});
            let error = Resource::parse(&object(resource.kind().name(), &spec)).expect_err("refused");
            let unknown = error.reason == Reason::UnknownField && error.path == format!("spec.{pointer}");
            assert!(!unknown, "{}: the schema knows {pointer}, the parser does not", resource.kind());
        });
    }
}

fn conforms(value: &Value, schema: &Value, at: &str) {
    if *schema == json!({}) {
        return;
    }
    match value {
        Value::Object(map) => {
            assert_eq!(schema["type"], "object", "{at}: {schema}");
            for (field, value) in map {
                let inner = &schema["properties"][field];
                let inner = if inner.is_null() { &schema["additionalProperties"] } else { inner };
                assert!(inner.is_object(), "{at}.{field} is not in the schema");
                conforms(value, inner, &format!("{at}.{field}"));
            }
        }
        Value::Array(list) => list.iter().for_each(|value| conforms(value, &schema["items"], at)),
        Value::String(text) => {
            assert!(is_of(schema, "string"), "{at}");
            let words = schema["enum"].as_array();
            assert!(words.is_none_or(|words| words.contains(value)), "{at}: {text} is not of {words:?}");
        }
        Value::Number(_) => assert!(is_of(schema, "integer"), "{at}"),
        Value::Bool(_) => assert_eq!(schema["type"], "boolean", "{at}"),
        Value::Null => {}
    }
}

/// Is this the type of it, or one of several?
fn is_of(schema: &Value, kind: &str) -> bool {
    let of = &schema["type"];
    of == kind || of.as_array().is_some_and(|several| several.contains(&kind.into()))
}

fn covers(schema: &Value, at: &str, check: &mut dyn FnMut(&str)) {
    let fields = schema["properties"].as_object().unwrap_or_else(|| panic!("{at} has fields"));
    fields.keys().for_each(|field| check(field));
}

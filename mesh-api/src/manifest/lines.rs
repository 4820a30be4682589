//! On which line a field stands: for mistakes alone, so a text is read again.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Fields and entries with their lines; scalars say nothing more.
enum Node {
    Map(Vec<(String, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

/// The line of `path` in a document of a text, or of the nearest of what it is in.
pub(super) fn of(text: &str, document: usize, path: &str) -> Option<u64> {
    let documents: Vec<Spanned<Node>> =
        serde_saphyr::from_multiple_with_options(text, super::options()).ok()?;
    let mut at = documents.get(document)?;
    let mut line = at.referenced.line();
    for step in path.replace('[', ".[").split('.').filter(|step| !step.is_empty()) {
        let inner = match (&at.value, step.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))) {
            (Node::List(list), Some(index)) => index.parse::<usize>().ok().and_then(|i| list.get(i)),
            // Keys of labels and the like stand in brackets, quoted.
            (Node::Map(fields), Some(quoted)) => find(fields, quoted.trim_matches('"')),
            (Node::Map(fields), None) => find(fields, step),
            _ => None,
        };
        let Some(inner) = inner else { break };
        at = inner;
        line = at.referenced.line();
    }
    Some(line)
}

fn find<'a>(fields: &'a [(String, Spanned<Node>)], name: &str) -> Option<&'a Spanned<Node>> {
    fields.iter().find(|(field, _)| field == name).map(|(_, node)| node)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reads)
    }
}

struct Reads;

impl<'de> Visitor<'de> for Reads {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            fields.push((name, map.next_value()?));
        }
        Ok(Node::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            entries.push(entry);
        }
        Ok(Node::List(entries))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        Node::deserialize(from)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Node::Scalar)
    }
}

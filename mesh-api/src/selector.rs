//! Label selectors as text: `app=cart,tier!=db,zone in (a, b),!canary`. All terms must hold.
//!
//! Not here: selectors of resources (they are objects: `spec.selector`).

use std::collections::BTreeMap;

use crate::error::{ApiError, Reason};
use crate::name::{LABEL_KEY, LABEL_VALUE};

/// Most terms of a selector, and most values of a term.
const TERMS_MAX: usize = 64;
const ACCEPTED: &str = "terms joined by ',': KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY, !KEY";

/// Terms that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: String,
    /// `None`: any value.
    values: Option<Vec<String>>,
    /// Whether the label is to be so, or not.
    wanted: bool,
}

impl LabelSelector {
    /// Reads a selector; empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let refuse = || ApiError::new(Reason::BadFormat, "labelSelector", text.into(), ACCEPTED);
        let terms = split(text).into_iter().map(str::trim).filter(|term| !term.is_empty());
        let terms: Vec<Term> = terms.map(Term::parse).collect::<Option<_>>().ok_or_else(refuse)?;
        if terms.len() > TERMS_MAX {
            return Err(ApiError::new(Reason::OutOfRange, "labelSelector", text.into(), "64 terms at most"));
        }
        Ok(Self(terms))
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| {
            let found = labels.get(&term.key);
            let holds = match &term.values {
                None => found.is_some(),
                Some(values) => found.is_some_and(|found| values.contains(found)),
            };
            holds == term.wanted
        })
    }
}

/// At commas outside of brackets.
fn split(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|c: char| {
        inside = (inside || c == '(') && c != ')';
        c == ',' && !inside
    })
    .collect()
}

impl Term {
    fn parse(text: &str) -> Option<Self> {
        let checked = |key: &str, values: Option<Vec<String>>, wanted| {
            let key = key.trim();
            let values_hold = values.iter().flatten().all(|value| (LABEL_VALUE.holds)(value));
            let few = values.as_ref().is_none_or(|values| (1..=TERMS_MAX).contains(&values.len()));
            ((LABEL_KEY.holds)(key) && values_hold && few).then(|| Self {
                key: key.to_owned(),
                values,
                wanted,
            })
        };
        if let Some(rest) = text.strip_suffix(')') {
            let (head, list) = rest.split_once('(')?;
            let values = list.split(',').map(|value| value.trim().to_owned()).collect();
            let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
            return match word {
                "in" => checked(key, Some(values), true),
                "notin" => checked(key, Some(values), false),
                _ => None,
            };
        }
        if let Some((key, value)) = text.split_once("!=") {
            return checked(key, Some(vec![value.trim().to_owned()]), false);
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return checked(key, Some(vec![value.trim().to_owned()]), true);
        }
        match text.strip_prefix('!') {
            Some(key) => checked(key, None, false),
            None => checked(text, None, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], want: bool) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(
            LabelSelector::parse(selector).unwrap().matches(&labels),
            want,
            "{selector} of {labels:?}"
        );
    }

    #[test]
    fn every_term_must_hold() {
        let cart = [("app", "cart"), ("tier", "web")];
        check("", &cart, true);
        check("app=cart", &cart, true);
        check("app==cart,tier!=db", &cart, true);
        check("app=cart,tier=db", &cart, false);
        check("tier in (db, web), app", &cart, true);
        check("tier notin (db,web)", &cart, false);
        check("tier notin (db)", &[], true);
        check("!canary", &cart, true);
        check("!app", &cart, false);
        check("app=", &[("app", "")], true);
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["a=b=c", "=x", "a in b", "a in ()x", "a among (b)", "a b", "a in (b", "ü=1"] {
            let error = LabelSelector::parse(text).expect_err(text);
            assert_eq!((error.path.as_str(), error.reason), ("labelSelector", Reason::BadFormat), "{text}");
        }
    }
}

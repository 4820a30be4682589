//! Why a table's rules take a request, or do not: for people, never on the request path.
//!
//! Who takes it is [`RouteTable::find`]'s to say. Of each other claim it is said what of it does not hold, part by part,
//! by the same conditions.

use super::{Claims, Condition, Head, Paths, Pattern, RouteTable, Rule, host_of};

/// A claim of a rule on requests.
#[derive(Clone, Debug)]
pub struct Considered<'t> {
    /// Whose.
    pub rule: &'t Rule,
    /// On what: hosts and paths.
    pub claims: String,
    /// What became of it.
    pub why: Why,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It takes the request.
    Taken,
    /// This of it does not hold.
    Fails(String),
    /// It holds, and so does one that comes before it.
    Behind,
}

impl RouteTable {
    /// Every claim in the order in which they are asked, and what becomes of it.
    pub fn consider(&self, head: &impl Head) -> Vec<Considered<'_>> {
        let host = host_of(head.authority()).to_ascii_lowercase();
        let mut all = Vec::new();
        for (name, paths) in &self.exact {
            paths.consider(self, head, name, **name == *host, &mut all);
        }
        let mut suffixes: Vec<_> = self.wildcard.iter().collect();
        suffixes.sort_by_key(|(suffix, _)| usize::MAX - suffix.len());
        for (suffix, paths) in suffixes {
            let is = host.len() > suffix.len() && host.ends_with(&**suffix);
            paths.consider(self, head, &format!("*{suffix}"), is, &mut all);
        }
        self.any.consider(self, head, "any host", true, &mut all);
        let taken = self.find(head).map(|found| std::ptr::from_ref(found.rule));
        let first =
            all.iter().position(|one| one.why == Why::Behind && taken == Some(std::ptr::from_ref(one.rule)));
        if let Some(first) = first {
            all[first].why = Why::Taken;
        }
        all
    }
}

impl Paths {
    fn consider<'t>(
        &self,
        table: &'t RouteTable,
        head: &impl Head,
        host: &str,
        is: bool,
        all: &mut Vec<Considered<'t>>,
    ) {
        let path = head.path();
        let mut add = |text: String, holds: bool, claims: &Claims| {
            for claim in &claims.0 {
                let Some(rule) = table.rules.get(claim.rule) else { continue };
                let why = match (is, holds) {
                    (false, _) => Why::Fails(format!("the host is {:?}", head.authority())),
                    (_, false) => Why::Fails(format!("the path is {path:?}")),
                    _ => claim.condition.fails(head).map_or(Why::Behind, Why::Fails),
                };
                all.push(Considered {
                    rule,
                    claims: format!("{host}, {text}{}", claim.condition.says()),
                    why,
                });
            }
        };
        for (exact, claims) in &self.exact {
            add(format!("path {exact}"), **exact == *path, claims);
        }
        for (pattern, claims) in &self.regexes {
            add(format!("path ~ {}", Pattern::text(pattern)), pattern.holds(path.as_bytes()), claims);
        }
        let longest_first = self
            .lengths
            .iter()
            .flat_map(|length| self.prefixes.iter().filter(move |(prefix, _)| prefix.len() == *length));
        for (prefix, claims) in longest_first {
            let rest = path.strip_prefix(&**prefix);
            let holds =
                rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'));
            add(format!("paths below {prefix}/"), holds, claims);
        }
    }
}

impl Condition {
    /// Its single parts, in words.
    fn parts(&self) -> Vec<(String, Condition)> {
        let method = self.method.iter().map(|method| {
            (format!("method {method}"), Condition { method: Some(method.clone()), ..Condition::default() })
        });
        let header = self.headers.iter().map(|one| {
            (
                format!("header {} {:?}", one.name, one.value),
                Condition { headers: [one.clone()].into(), ..Condition::default() },
            )
        });
        let query = self.query.iter().map(|one| {
            (
                format!("parameter {} {:?}", one.name, one.value),
                Condition { query: [one.clone()].into(), ..Condition::default() },
            )
        });
        method.chain(header).chain(query).collect()
    }

    fn says(&self) -> String {
        self.parts().iter().flat_map(|(text, _)| [", ", text]).collect()
    }

    /// What of it does not hold; `None`: all does.
    fn fails(&self, head: &impl Head) -> Option<String> {
        if self.holds(head) {
            return None;
        }
        let failing = self.parts().into_iter().find(|(_, part)| !part.holds(head));
        Some(
            failing
                .map_or_else(|| "its condition does not hold".to_owned(), |(text, _)| format!("not {text}")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Request;
    use super::super::{FieldMatch, MatchSpec, PathMatch, RouteSpec, RuleSpec, ValueMatch};
    use super::*;

    fn table() -> RouteTable {
        let canary = FieldMatch { name: "x-canary".into(), value: ValueMatch::Exact("yes".into()) };
        let on = |path: PathMatch, condition: Condition| RuleSpec {
            matches: vec![MatchSpec { path, condition }],
            ..RuleSpec::default()
        };
        let prefix = |path: &str| PathMatch::Prefix(path.into());
        let rules = vec![
            on(prefix("/"), Condition::default()),
            on(prefix("/api"), Condition { headers: [canary].into(), ..Condition::default() }),
            on(prefix("/api"), Condition { method: Some("PUT".into()), ..Condition::default() }),
        ];
        let other = RouteSpec {
            name: "d/other".into(),
            created_ms: 1,
            hostnames: vec!["*.example.com".into()],
            rules: vec![RuleSpec::default()],
        };
        RouteTable::new(&[RouteSpec { name: "d/r".into(), created_ms: 0, hostnames: vec![], rules }, other])
    }

    fn told(request: &Request<'_>) -> Vec<(String, Why)> {
        table().consider(request).into_iter().map(|one| (one.rule.name.to_string(), one.why)).collect()
    }

    #[test]
    fn each_claim_says_what_of_it_does_not_hold() {
        let fails = |text: &str| Why::Fails(text.into());
        assert_eq!(
            told(&Request::get("shop", "/api/x")),
            [
                ("d/other/0".to_owned(), fails("the host is \"shop\"")),
                ("d/r/2".into(), fails("not method PUT")),
                ("d/r/1".into(), fails("not header x-canary Exact(\"yes\")")),
                ("d/r/0".into(), Why::Taken),
            ]
        );
        let canary = Request { headers: &[("X-Canary", "yes")], ..Request::get("a.example.com", "/api") };
        let all = told(&canary);
        assert_eq!(all[0], ("d/other/0".to_owned(), Why::Taken));
        assert_eq!(all[2].1, Why::Behind);
    }

    #[test]
    fn whoever_is_found_is_the_one_that_takes_it() {
        let table = table();
        for host in ["shop", "a.example.com", "example.com", ".example.com"] {
            for path in ["/", "/api", "/apiary", "/api/x", "", "*"] {
                for method in ["GET", "PUT"] {
                    let request = Request { method, ..Request::get(host, path) };
                    let taken: Vec<_> =
                        table.consider(&request).into_iter().filter(|one| one.why == Why::Taken).collect();
                    let found = table.find(&request).map(|found| &found.rule.name);
                    assert_eq!(taken.first().map(|one| &one.rule.name), found, "{host} {path} {method}");
                }
            }
        }
    }
}

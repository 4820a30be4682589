//! The table's choice, by example and against a reference that compares every match.

mod calls;

use super::*;
use proptest::prelude::*;

/// A request as routes see it.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub method: &'a str,
    pub authority: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
}

impl<'a> Request<'a> {
    pub fn get(authority: &'a str, path: &'a str) -> Self {
        Self { method: "GET", authority, path, query: "", headers: &[] }
    }
}

impl Head for Request<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> Option<&str> {
        Some(self.query).filter(|query| !query.is_empty())
    }

    fn authority(&self) -> &str {
        self.authority
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let named = |(header, _): &&(&str, &str)| header.eq_ignore_ascii_case(name);
        self.headers.iter().find(named).map(|(_, value)| value.as_bytes())
    }

    fn any_header(&self, name: &str, holds: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let named = |(header, _): &&(&str, &str)| header.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).any(|(_, value)| holds(value.as_bytes()))
    }
}

fn name_of(table: &RouteTable, request: &Request<'_>) -> Option<String> {
    table.find(request).map(|found| found.rule.name.to_string())
}

fn route(name: &str, created_ms: u64, hostnames: &[&str], rules: &[&[PathMatch]]) -> RouteSpec {
    let rule = |matches: &&[PathMatch]| RuleSpec {
        matches: matches.iter().cloned().map(MatchSpec::from).collect(),
        backends: vec![Backend { service: Some(1), weight: 1, edits: None }],
        ..RuleSpec::default()
    };
    RouteSpec {
        name: name.into(),
        created_ms,
        hostnames: hostnames.iter().map(|h| (*h).to_owned()).collect(),
        rules: rules.iter().map(rule).collect(),
    }
}

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.to_owned())
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

#[track_caller]
fn check(table: &RouteTable, host: &str, path: &str, want: &str) {
    let found = name_of(table, &Request::get(host, path)).unwrap_or_default();
    assert_eq!(found, want, "{host} {path}");
}

#[test]
fn exact_paths_then_the_longest_prefix_of_whole_segments() {
    let table = RouteTable::new(&[route(
        "r",
        0,
        &[],
        &[
            &[prefix("/")],
            &[prefix("/api")],
            &[prefix("/api/v2/")],
            &[exact("/api/v2")],
            &[exact("/x"), prefix("/y")],
        ],
    )]);
    check(&table, "a", "/", "r/0");
    check(&table, "a", "/apiary", "r/0");
    check(&table, "a", "/api", "r/1");
    check(&table, "a", "/api/v1", "r/1");
    check(&table, "a", "/api/v22", "r/1");
    check(&table, "a", "/api/v2", "r/3");
    check(&table, "a", "/api/v2/", "r/2");
    check(&table, "a", "/api/v2/users", "r/2");
    check(&table, "a", "/x", "r/4");
    check(&table, "a", "/x/", "r/0");
    check(&table, "a", "/y/z", "r/4");
    check(&table, "a", "/API", "r/0");
    check(&table, "a", "*", "r/0");
    check(&table, "a", "", "r/0");
}

#[test]
fn exact_hosts_then_the_longest_wildcard_then_any() {
    let table = RouteTable::new(&[
        route("any", 0, &[], &[&[prefix("/")]]),
        route("wide", 0, &["*.example.com"], &[&[]]),
        route("narrow", 0, &["*.Shop.example.com"], &[&[prefix("/only")]]),
        route("one", 0, &["WWW.example.com", "[::1]"], &[&[exact("/")]]),
    ]);
    check(&table, "www.example.com", "/", "one/0");
    check(&table, "Www.Example.Com.:8080", "/", "one/0");
    check(&table, "[::1]:80", "/", "one/0");
    check(&table, "www.example.com", "/a", "wide/0");
    check(&table, "a.b.example.com", "/", "wide/0");
    check(&table, "a.shop.example.com:1", "/only/x", "narrow/0");
    check(&table, "a.shop.example.com", "/", "wide/0");
    check(&table, "shop.example.com", "/only", "wide/0");
    check(&table, "example.com", "/", "any/0");
    check(&table, ".example.com", "/", "any/0");
    check(&table, "xexample.com", "/", "any/0");
    check(&table, "", "/", "any/0");
    check(&table, &"a.".repeat(5000), "/", "any/0");
}

#[test]
fn the_older_route_wins_then_the_name_then_the_rules_order() {
    let rules: &[&[PathMatch]] = &[&[prefix("/")], &[prefix("/")], &[exact("/a")]];
    let (old, young) = (route("z", 1, &[], rules), route("a", 2, &[], &[&[exact("/a"), exact("/b")]]));
    let table = RouteTable::new(&[young.clone(), old.clone()]);
    check(&table, "h", "/", "z/0");
    check(&table, "h", "/a", "z/2");
    check(&table, "h", "/b", "a/0");
    assert_eq!(table, RouteTable::new(&[old, young]), "order of the input does not matter");
    let same = RouteTable::new(&[route("b", 1, &[], rules), route("a", 1, &[], rules)]);
    check(&same, "h", "/", "a/0");
}

#[test]
fn what_nothing_matches_has_no_rule() {
    check(&RouteTable::default(), "a", "/", "");
    let table = RouteTable::new(&[route("r", 0, &["a"], &[&[prefix("/x")]])]);
    check(&table, "a", "/", "");
    check(&table, "b", "/x", "");
}

#[test]
fn among_matches_of_one_path_the_narrower_comes_first() {
    let on = |path: PathMatch, method: Option<&str>, headers: &[&str], query: &[&str]| {
        let field = |name: &&str| FieldMatch { name: (*name).into(), value: ValueMatch::Exact("1".into()) };
        let condition = Condition {
            method: method.map(Into::into),
            headers: headers.iter().map(field).collect(),
            query: query.iter().map(field).collect(),
        };
        RuleSpec { matches: vec![MatchSpec { path, condition }], ..RuleSpec::default() }
    };
    let rules = vec![
        on(prefix("/"), None, &[], &[]),
        on(prefix("/"), None, &[], &["q"]),
        on(prefix("/"), None, &["a"], &[]),
        on(prefix("/"), None, &["a", "b"], &[]),
        on(prefix("/"), Some("POST"), &[], &[]),
        on(prefix("/p"), Some("PUT"), &[], &[]),
        on(exact("/x"), None, &["a"], &[]),
        on(PathMatch::Regex(Pattern::new("/[0-9]+").unwrap()), None, &[], &[]),
    ];
    let spec = RouteSpec { name: "r".into(), created_ms: 0, hostnames: vec![], rules };
    let table = RouteTable::new(&[spec]);
    let find = |method: &str, path: &str, query: &str, headers: &[(&str, &str)]| {
        let request = Request { method, path, query, headers, authority: "h" };
        name_of(&table, &request).unwrap_or_default()
    };
    assert_eq!(find("GET", "/", "", &[]), "r/0");
    assert_eq!(find("GET", "/", "q=1", &[]), "r/1");
    assert_eq!(find("GET", "/", "q=1", &[("A", "1")]), "r/2", "a header before a parameter");
    assert_eq!(find("GET", "/", "", &[("b", "1"), ("a", "1")]), "r/3");
    assert_eq!(find("POST", "/", "q=1", &[("a", "1"), ("b", "1")]), "r/4", "a method before headers");
    assert_eq!(
        find("GET", "/p/q", "", &[("a", "1")]),
        "r/2",
        "a path whose condition fails leaves it to others"
    );
    assert_eq!(find("PUT", "/p/q", "", &[("a", "1")]), "r/5");
    assert_eq!(find("GET", "/x", "", &[]), "r/0");
    assert_eq!(find("POST", "/x", "", &[("a", "1")]), "r/6", "an exact path before everything");
    assert_eq!(find("POST", "/17", "", &[]), "r/7");
    assert_eq!(find("GET", "/17/x", "", &[]), "r/0", "expressions match whole paths");
}

#[test]
fn what_was_matched_of_a_path_is_told() {
    let table = RouteTable::new(&[route("r", 0, &[], &[&[prefix("/a/b/")], &[prefix("/")], &[exact("/x")]])]);
    let matched = |path: &str| table.find(&Request::get("h", path)).map(|found| found.matched);
    assert_eq!(
        [matched("/a/b/c"), matched("/a/b"), matched("/c"), matched("/x")],
        [Some(4), Some(4), Some(0), Some(0)]
    );
}

fn rule(backends: &[(Option<ServiceId>, u32)]) -> Rule {
    let backend = |&(service, weight): &_| Backend { service, weight, edits: None };
    let backends = backends.iter().map(backend).collect();
    let spec = RouteSpec {
        name: "r".into(),
        created_ms: 0,
        hostnames: vec![],
        rules: vec![RuleSpec { backends, ..RuleSpec::default() }],
    };
    RouteTable::new(&[spec]).rules()[0].clone()
}

#[test]
fn backends_are_picked_by_weight() {
    let rule = rule(&[(Some(7), 9), (Some(8), 0), (None, 2), (Some(9), 5)]);
    let mut seen = [0; 4];
    for step in 0..16u64 {
        match rule.pick(step << 60) {
            Ok((id, _)) => seen[id as usize - 7] += 1,
            Err(error) => {
                assert_eq!((error, error.status()), (ProxyError::NoBackend, 500));
                seen[3] += 1;
            }
        }
    }
    assert_eq!(seen, [9, 0, 5, 2]);
    assert_eq!(rule.pick(u64::MAX).map(|(id, _)| id), Ok(9));
}

#[test]
fn a_rule_with_nowhere_to_send_refuses() {
    assert_eq!(rule(&[]).pick(0).map(|(id, _)| id), Err(ProxyError::NoBackend));
    assert_eq!(
        rule(&[(Some(1), 0), (Some(2), 0)]).pick(u64::MAX).map(|(id, _)| id),
        Err(ProxyError::NoBackend)
    );
    assert_eq!(rule(&[(Some(1), u32::MAX), (Some(2), u32::MAX)]).pick(u64::MAX).map(|(id, _)| id), Ok(2));
}

/// Rank of one match of one rule, best first: the Gateway API's precedence as it is written.
type Rank<'a> = (bool, usize, bool, usize, u64, &'a str, usize);

/// The rule's name by comparing every match of every rule.
fn reference(routes: &[RouteSpec], host: &str, path: &str) -> Option<String> {
    let segments = |text: &str| text.trim_end_matches('/').to_owned();
    let under = |prefix: &str| prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/"));
    let any_host = ["*".to_owned()];
    let any_path = [MatchSpec::from(prefix("/"))];
    let mut best: Option<Rank<'_>> = None;
    for route in routes {
        for host_match in if route.hostnames.is_empty() { &any_host } else { &route.hostnames[..] } {
            let suffix = host_match.strip_prefix('*');
            if !suffix
                .map_or(host == host_match, |suffix| host.len() > suffix.len() && host.ends_with(suffix))
            {
                continue;
            }
            for (number, rule) in route.rules.iter().enumerate() {
                for path_match in if rule.matches.is_empty() { &any_path } else { &rule.matches[..] } {
                    let (is_exact, length) = match &path_match.path {
                        PathMatch::Exact(exact) if exact == path => (true, 0),
                        PathMatch::Prefix(prefix) if under(&segments(prefix)) => {
                            (false, segments(prefix).len())
                        }
                        _ => continue,
                    };
                    let rank = (
                        suffix.is_some(),
                        usize::MAX - host_match.len(),
                        !is_exact,
                        usize::MAX - length,
                        route.created_ms,
                        &*route.name,
                        number,
                    );
                    best = Some(best.map_or(rank, |best| best.min(rank)));
                }
            }
        }
    }
    best.map(|(.., name, number)| format!("{name}/{number}"))
}

fn paths() -> impl Strategy<Value = String> {
    "(/[ab]{1,2}){0,3}/?".prop_map(|path| if path.is_empty() { "/".to_owned() } else { path })
}

fn hosts() -> impl Strategy<Value = String> {
    "([ab]\\.){0,3}[ab]"
}

fn routes() -> impl Strategy<Value = Vec<RouteSpec>> {
    let path = (any::<bool>(), paths())
        .prop_map(|(exact, path)| if exact { PathMatch::Exact(path) } else { PathMatch::Prefix(path) });
    let rule = prop::collection::vec(path, 0..3).prop_map(|paths| RuleSpec {
        matches: paths.into_iter().map(MatchSpec::from).collect(),
        ..RuleSpec::default()
    });
    let host =
        (any::<bool>(), hosts()).prop_map(|(wild, host)| if wild { format!("*.{host}") } else { host });
    let route = (0..3u64, prop::collection::vec(host, 0..3), prop::collection::vec(rule, 0..4));
    prop::collection::vec(route, 0..6).prop_map(|routes| {
        let spec = |(n, (created_ms, hostnames, rules))| RouteSpec {
            name: format!("ns/{n}").into(),
            created_ms,
            hostnames,
            rules,
        };
        routes.into_iter().enumerate().map(spec).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_table_finds_what_the_precedence_says(
        routes in routes(),
        requests in prop::collection::vec((hosts(), paths()), 1..8),
    ) {
        let table = RouteTable::new(&routes);
        for (host, path) in requests {
            let found = name_of(&table, &Request::get(&host, &path));
            prop_assert_eq!(found, reference(&routes, &host, &path), "{} {}", host, path);
        }
    }
}

//! The order among what gRPC calls, by example and against a reference that compares every match.

use super::*;

fn call(service: &str, method: &str) -> PathMatch {
    PathMatch::Call(CallPattern::new(service, method).unwrap())
}

/// As compile reads a route: service, method, expressions or not.
fn of(service: &str, method: &str, regex: bool) -> PathMatch {
    match (regex, service, method) {
        (_, "", "") => prefix("/"),
        (false, service, "") => prefix(&format!("/{service}")),
        (false, service, method) if !service.is_empty() => exact(&format!("/{service}/{method}")),
        (_, service, method) => call(service, method),
    }
}

#[test]
fn a_service_comes_before_a_method_and_names_before_expressions() {
    let table = RouteTable::new(&[route(
        "r",
        0,
        &[],
        &[
            &[of("", "", false)],
            &[of("", "Get", false)],
            &[of("", "G.*", true)],
            &[of("shop\\.Cart", "", true)],
            &[of("shop\\..*", "Get", true)],
            &[of("shop.Cart", "", false)],
            &[of("shop.Cart", "Put", false)],
        ],
    )]);
    check(&table, "a", "/shop.Cart/Put", "r/6");
    check(&table, "a", "/shop.Cart/Get", "r/5");
    check(&table, "a", "/shop.Cart/List", "r/5");
    check(&table, "a", "/shop.Cartoon/Get", "r/4");
    check(&table, "a", "/shop.Pay/Put", "r/0");
    check(&table, "a", "/bank.Pay/Get", "r/1");
    check(&table, "a", "/bank.Pay/Give", "r/2");
    check(&table, "a", "/bank.Pay/Put", "r/0");
    check(&table, "a", "/", "r/0");
    // A name is a whole one, of a call that has both.
    check(&table, "a", "/a/b/Get", "r/0");
    check(&table, "a", "/Get", "r/0");
}

fn names() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "a.b", "ab"]).prop_map(str::to_owned)
}

type Called = (String, String, bool);

/// The rule's number by comparing every match: exact and longer services first, then methods.
fn called(rules: &[Vec<Called>], service: &str, method: &str) -> Option<usize> {
    let named = |own: &str, name: &str, regex: bool| {
        own.is_empty() || if regex { Pattern::new(own).unwrap().holds(name.as_bytes()) } else { own == name }
    };
    let every = vec![(String::new(), String::new(), false)];
    let ranks = rules.iter().enumerate().flat_map(|(number, matches)| {
        let matches = if matches.is_empty() { &every } else { matches };
        let holds = |m: &&Called| named(&m.0, service, m.2) && named(&m.1, method, m.2);
        matches.iter().filter(holds).map(move |(service, method, regex)| {
            let exact = !regex && !service.is_empty();
            (!exact, usize::MAX - service.len(), usize::MAX - method.len(), number)
        })
    });
    ranks.min().map(|(.., number)| number)
}

proptest! {
    #[test]
    fn the_table_finds_what_the_order_says(
        rules in prop::collection::vec(prop::collection::vec((names(), names(), any::<bool>()), 0..3), 0..6),
        requests in prop::collection::vec((names(), names()), 1..6),
    ) {
        // Dots of names are no expressions, and a call names a method without any.
        let plain = |text: &str| text.replace('.', "_");
        let rules: Vec<Vec<Called>> = rules
            .into_iter()
            .map(|rule| rule.into_iter().map(|(s, m, regex)| (plain(&s), plain(&m), regex)).collect())
            .collect();
        let matches: Vec<Vec<PathMatch>> =
            rules.iter().map(|rule| rule.iter().map(|(s, m, regex)| of(s, m, *regex)).collect()).collect();
        let matches: Vec<&[PathMatch]> = matches.iter().map(Vec::as_slice).collect();
        let table = RouteTable::new(&[route("r", 0, &[], &matches)]);
        for (service, method) in requests {
            let (service, method) = (format!("x{}", plain(&service)), format!("y{}", plain(&method)));
            for (service, method) in [(&service[..], &method[..]), (&service[1..], &method[1..])] {
                if service.is_empty() || method.is_empty() {
                    continue;
                }
                let found = name_of(&table, &Request::get("h", &format!("/{service}/{method}")));
                let want = called(&rules, service, method).map(|number| format!("r/{number}"));
                prop_assert_eq!(found, want, "{} {}", service, method);
            }
        }
    }
}

//! Requests that try to be taken for others, as bytes: read, written as they are passed on, and then decided, as the
//! proxy does it. Each is asked of a rule that denies and of one that allows the same.

use super::*;
use crate::http1::{Limits, RequestEdits, parse_request, write_request};

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Let in.
    In,
    /// Refused by policy.
    Out,
    /// Refused because servers may read it differently.
    Unclear,
    /// No HTTP that is passed on: 400.
    Bad,
}
use End::{Bad, In, Out, Unclear};

fn end(set: &PolicySet, raw: &str) -> End {
    let mut out = Vec::new();
    match parse_request(raw.as_bytes(), &Limits::default()) {
        Ok(head) => write_request(&head, &RequestEdits::default(), &mut out),
        Err(_) => return Bad,
    }
    let head = parse_request(&out, &Limits::default()).expect("what was written can be read");
    match set.refuses(&Asked::connection(CART, 80).seeing(Seen::Request(&head.request()))) {
        None => In,
        Some(Refusal::Unclear { .. }) => Unclear,
        Some(_) => Out,
    }
}

/// Asks a policy that denies and one that allows this.
#[track_caller]
fn check(target: &Target, when: &[Term], cases: &[(&str, End, End)]) {
    let denies = set(&[&about(Action::Deny, target.clone(), when)]);
    let allows = set(&[&about(Action::Allow, target.clone(), when)]);
    for (raw, deny, allow) in cases {
        let raw = raw.replace('\n', "\r\n");
        assert_eq!((end(&denies, &raw), end(&allows, &raw)), (*deny, *allow), "{raw:?}");
    }
}

#[test]
fn paths() {
    let get = |path: &str| format!("GET {path} HTTP/1.1\nhost: a\n\n");
    let cases = [
        ("/admin", Out, In),
        ("/admin?x=1", Out, In),
        ("/admin?/../public", Out, In),
        ("/%61dmin", Out, In),
        ("/adm%69n", Out, In),
        ("/public", In, Out),
        ("/publicadmin", In, Out),
        // One way to write it that servers with loose ideas take for the same.
        ("/admin/", Out, Out),
        ("/ADMIN", Out, Out),
        ("/%41dmin", Out, Out),
        // Servers differ.
        ("//admin", Unclear, Unclear),
        ("/./admin", Unclear, Unclear),
        ("/x/../admin", Unclear, Unclear),
        ("/admin/..", Unclear, Unclear),
        ("/x/%2e%2e/admin", Unclear, Unclear),
        ("/x/.%2E/admin", Unclear, Unclear),
        ("/%2e/admin", Unclear, Unclear),
        ("/admin/.", Unclear, Unclear),
        ("/x/..;/admin", Unclear, Unclear),
        ("/admin;x=1", Unclear, Unclear),
        ("/admin%3bx", Unclear, Unclear),
        ("/x\\..\\admin", Unclear, Unclear),
        ("/%5cadmin", Unclear, Unclear),
        ("/%2fadmin", Unclear, Unclear),
        ("/x%2f..%2fadmin", Unclear, Unclear),
        ("/%2Fadmin", Unclear, Unclear),
        ("/%252fadmin", Unclear, Unclear),
        ("/%2561dmin", Unclear, Unclear),
        ("/admin%00", Unclear, Unclear),
        ("/admin%00.jpg", Unclear, Unclear),
        ("/admin%0a", Unclear, Unclear),
        ("/admin%3f", Unclear, Unclear),
        ("/admin%23", Unclear, Unclear),
        ("/admin%", Unclear, Unclear),
        ("/admin%g1", Unclear, Unclear),
        ("/%c0%afadmin", Unclear, Unclear),
        ("/%u0061dmin", Unclear, Unclear),
        // No path of a request.
        ("/admin#x", Bad, Bad),
        ("admin", Bad, Bad),
        ("/ad min", Bad, Bad),
        ("/admin\u{1}", Bad, Bad),
        ("/\u{e1}dmin", Bad, Bad),
        // Targets of other forms.
        ("http://a/admin", Out, In),
        ("HTTP://A:80/admin?x", Out, In),
        ("http://a", In, Out),
        ("http://a?/admin", In, Out),
        ("http://a//admin", Unclear, Unclear),
        ("http://u@a/admin", Bad, Bad),
        ("ftp://a/admin", Bad, Bad),
        ("a:80", Bad, Bad),
    ];
    let cases: Vec<_> = cases.iter().map(|(path, deny, allow)| (get(path), *deny, *allow)).collect();
    let cases: Vec<_> = cases.iter().map(|(raw, deny, allow)| (raw.as_str(), *deny, *allow)).collect();
    check(&super::paths(&["/admin"]), &[], &cases);
}

#[test]
fn below_a_path_and_in_a_template() {
    let below = super::paths(&["/admin/*", "/users/{id}/orders"]);
    check(
        &below,
        &[],
        &[
            ("GET /admin/x HTTP/1.1\nhost: a\n\n", Out, In),
            ("GET /admin/ HTTP/1.1\nhost: a\n\n", Out, In),
            ("GET /admin HTTP/1.1\nhost: a\n\n", Out, Out),
            ("GET /Admin/x HTTP/1.1\nhost: a\n\n", Out, Out),
            ("GET /adminx/y HTTP/1.1\nhost: a\n\n", In, Out),
            ("GET /users/7/orders HTTP/1.1\nhost: a\n\n", Out, In),
            ("GET /users/a%20b/orders HTTP/1.1\nhost: a\n\n", Out, In),
            ("GET /users/7/8/orders HTTP/1.1\nhost: a\n\n", In, Out),
            ("GET /users//orders HTTP/1.1\nhost: a\n\n", Unclear, Unclear),
            ("GET /users/7%2f8/orders HTTP/1.1\nhost: a\n\n", Unclear, Unclear),
            ("GET /users/../orders HTTP/1.1\nhost: a\n\n", Unclear, Unclear),
        ],
    );
}

#[test]
fn requests_without_a_path_match_what_denies_paths_and_nothing_that_allows_them() {
    check(
        &super::paths(&["/admin"]),
        &[],
        &[
            ("OPTIONS * HTTP/1.1\nhost: a\n\n", Out, Out),
            ("OPTIONS http://a HTTP/1.1\nhost: a\n\n", Out, Out),
            ("CONNECT a:80 HTTP/1.1\nhost: a\n\n", Out, Out),
            ("CONNECT /admin HTTP/1.1\nhost: a\n\n", Bad, Bad),
            ("GET * HTTP/1.1\nhost: a\n\n", Bad, Bad),
        ],
    );
}

#[test]
fn methods() {
    check(
        &super::methods(&["DELETE"]),
        &[],
        &[
            ("DELETE / HTTP/1.1\nhost: a\n\n", Out, In),
            ("delete / HTTP/1.1\nhost: a\n\n", Out, Out),
            ("Delete / HTTP/1.1\nhost: a\n\n", Out, Out),
            ("DELETEX / HTTP/1.1\nhost: a\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nx-http-method-override: DELETE\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nDELETE: 1\n\n", In, Out),
            ("\nDELETE / HTTP/1.1\nhost: a\n\n", Out, In),
            (" DELETE / HTTP/1.1\nhost: a\n\n", Bad, Bad),
            ("DELETE  / HTTP/1.1\nhost: a\n\n", Bad, Bad),
            ("DELETE\t/ HTTP/1.1\nhost: a\n\n", Bad, Bad),
            ("DELETE / HTTP/2.0\nhost: a\n\n", Bad, Bad),
            ("PRI * HTTP/2.0\n\n", Bad, Bad),
            // Paths are not asked for, so they may be what they are.
            ("DELETE /a/../b HTTP/1.1\nhost: a\n\n", Out, In),
        ],
    );
    check(&super::methods(&["CONNECT"]), &[], &[("CONNECT a:80 HTTP/1.1\nhost: a\n\n", Out, In)]);
}

#[test]
fn hosts() {
    let hosts = |all: &[&str]| Target {
        hosts: all.iter().map(|h| HostPattern::new(h)).collect(),
        ..Target::default()
    };
    check(
        &hosts(&["shop.example", "*.shop.example", "::1"]),
        &[],
        &[
            ("GET / HTTP/1.1\nhost: shop.example\n\n", Out, In),
            ("GET / HTTP/1.1\nHOST: SHOP.example\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: shop.example:8080\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: shop.example.\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: shop.example..\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a.b.Shop.example\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: .shop.example\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: xshop.example\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: shop.example.evil\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: [::1]:80\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: sh%6fp.example\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: u@shop.example\n\n", Bad, Bad),
            ("GET / HTTP/1.1\nhost: shop.example, a\n\n", Bad, Bad),
            ("GET / HTTP/1.1\nhost: a\nhost: shop.example\n\n", Bad, Bad),
            ("GET / HTTP/1.1\nhost : shop.example\n\n", Bad, Bad),
            ("GET / HTTP/1.1\n\n", Bad, Bad),
            ("GET / HTTP/1.0\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost:\n\n", Out, Out),
            // The target's comes before Host, and is what is passed on.
            ("GET http://shop.example/ HTTP/1.1\nhost: a\n\n", Out, In),
            ("GET http://a/ HTTP/1.1\nhost: shop.example\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nx-forwarded-host: shop.example\n\n", In, Out),
            ("CONNECT shop.example:80 HTTP/1.1\nhost: a\n\n", Out, In),
        ],
    );
}

fn header(is: HeaderValue) -> [Term; 1] {
    [Term::Header(HeaderTerm { name: "x-role".into(), is })]
}

#[test]
fn values_of_headers() {
    check(
        &Target::default(),
        &header(HeaderValue::OneOf(["admin".into(), "root".into()].into())),
        &[
            ("GET / HTTP/1.1\nhost: a\nx-role: admin\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: a\nX-ROLE:  root \n\n", Out, In),
            ("GET / HTTP/1.1\nhost: a\nx-role: ADMIN\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role: user\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role:\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role: user\nx-role: admin\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role: admin\nx-role: root\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: a\nx-role: user, admin\n\n", Out, Out),
            // Names that become one variable of a CGI.
            ("GET / HTTP/1.1\nhost: a\nx_role: admin\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role: admin\nx_role: user\n\n", Out, Out),
            // What belongs to the connection is not passed on, and nobody sees it.
            ("GET / HTTP/1.1\nhost: a\nconnection: x-role\nx-role: admin\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role\t: admin\n\n", Bad, Bad),
            ("GET / HTTP/1.1\nhost: a\nx-role: user\n admin\n\n", Bad, Bad),
            ("GET / HTTP/1.1\nhost: a\nx-r\u{f6}le: admin\n\n", Bad, Bad),
        ],
    );
    check(
        &Target::default(),
        &header(HeaderValue::Prefix("team-".into())),
        &[
            ("GET / HTTP/1.1\nhost: a\nx-role: team-a\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: a\nx-role: Team-a\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a\nx-role: xteam-a\n\n", In, Out),
        ],
    );
}

#[test]
fn presence_of_headers() {
    check(
        &Target::default(),
        &header(HeaderValue::Present),
        &[
            ("GET / HTTP/1.1\nhost: a\nx-role:\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: a\nx_role: 1\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a\nx-roles: 1\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nconnection: x-role\nx-role: 1\n\n", In, Out),
        ],
    );
    check(
        &Target::default(),
        &header(HeaderValue::Absent),
        &[
            ("GET / HTTP/1.1\nhost: a\n\n", Out, In),
            ("GET / HTTP/1.1\nhost: a\nx-role: 1\n\n", In, Out),
            ("GET / HTTP/1.1\nhost: a\nx_role: 1\n\n", Out, Out),
            ("GET / HTTP/1.1\nhost: a\nconnection: x-role\nx-role: 1\n\n", Out, In),
        ],
    );
}

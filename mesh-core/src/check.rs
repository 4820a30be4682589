//! What would become of a connection: who the caller would be to the workload that it calls, and which rule decides.
//!
//! `meshctl authz check` ──▶ mesh-control ──[`Question`]──▶ **check** ──[`Answer`]──▶ the person who asks
//!
//! The same compiler and the same [`PolicySet`] decide that decide on the node of the workload that is called, so
//! the answer is theirs. Invariant: asks no kernel and no agent; whether the caller would get as far (routes, limits,
//! a proxy that is gone) is not said. Not here: who may ask.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::proto::v1;
use mesh_api::spiffe::SpiffeId;
use mesh_common::policy::{Caller, UNPROVED};

use crate::authorise::{Asked, Decision, Headers, Network, PolicySet, Request, Seen};
use crate::compile::Compiler;
use crate::head::Head;
use crate::ids::{IdLimits, IdTable};
use crate::model::{Batch, Resource, join};
use crate::mtls::MtlsMode;
use crate::snapshot::{Revision, Snapshot, Workload};

/// Who calls.
#[derive(Clone, Debug)]
pub enum Source {
    /// A workload of the mesh.
    Workload(Box<v1::Workload>),
    /// Whoever shows a certificate of this identity.
    Identity(SpiffeId),
    /// Somebody of whom no more is known than the address.
    Address(IpAddr),
}

/// A connection that might be.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who calls.
    pub source: Source,
    /// Who is called.
    pub called: v1::Workload,
    /// At which of its ports.
    pub port: u16,
    /// With which request; `None`: nothing is said of that.
    pub request: Option<Sample>,
    /// The mesh, and the policies that may be for either.
    pub resources: Vec<Resource>,
}

/// A request that might be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Its method.
    pub method: String,
    /// Its path, and perhaps a query.
    pub path: String,
    /// Its host, and perhaps a port; empty: none.
    pub host: String,
    /// Its header fields.
    pub headers: Vec<(String, String)>,
}

impl Head for Sample {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    fn query(&self) -> Option<&str> {
        self.path.split_once('?').map(|(_, query)| query)
    }

    fn authority(&self) -> &str {
        &self.host
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let named = |(own, _): &&(String, String)| own.eq_ignore_ascii_case(name);
        self.headers.iter().find(named).map(|(_, value)| value.trim_ascii().as_bytes())
    }

    fn any_header(&self, name: &str, holds: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let named = |(own, _): &&(String, String)| own.eq_ignore_ascii_case(name);
        self.headers.iter().filter(named).any(|(_, value)| holds(value.trim_ascii().as_bytes()))
    }
}

impl Sample {
    fn with<T>(&self, look: impl FnOnce(&Request<'_>) -> T) -> T {
        look(&Request {
            method: &self.method,
            path: Head::path(self),
            authority: &self.host,
            headers: self,
            claims: None,
        })
    }
}

impl Headers for Sample {
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
        for (name, value) in &self.headers {
            show(name.as_bytes(), value.trim_ascii().as_bytes());
        }
    }
}

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It would be let in.
    pub allowed: bool,
    /// Some requests would be, and some not: none was given, or a service outside decides.
    pub depends: bool,
    /// The rule or the lack of one that decides, in words.
    pub decided: String,
    /// How the workload that is called would know the caller, in words.
    pub proof: &'static str,
    /// The policies that select the workload that is called, in order of their names.
    pub policies: Vec<String>,
}

/// The kernel of the node that both live on.
const BY_KERNEL: &str = "the kernel of their node proves who calls";
/// A tunnel between two nodes.
const BY_CERTIFICATE: &str = "the caller's certificate proves who calls";
/// Neither.
const BY_NOTHING: &str = "nothing proves who calls: an address is all that is known";

/// Name under which an identity without a workload is asked for: no workload can have it.
const NOBODY: &str = "?";

/// Answers; an error says why nobody can.
pub fn check(question: Question) -> Result<Answer, String> {
    let Question { source, called, port, request, mut resources } = question;
    if called.node.is_empty() {
        return Err(format!(
            "workload {}/{} runs on no node of the mesh: no policy is asked there",
            called.namespace, called.name
        ));
    }
    let mut compiler = Compiler::new(&called.node, IdTable::default(), IdLimits::default());
    let full = join(&called.namespace, &called.name);
    resources.push(called.into());
    let (mut caller, mut from) = (None, None);
    match source {
        Source::Workload(workload) => {
            caller = Some(join(&workload.namespace, &workload.name));
            from = workload.addresses.iter().find_map(|text| text.parse().ok());
            resources.push((*workload).into());
        }
        Source::Identity(id) => {
            let (namespace, account) = (id.namespace(), id.service_account());
            compiler.enrol(namespace, NOBODY, account).map_err(|full| full.to_string())?;
            let foreign = v1::Workload {
                namespace: namespace.into(),
                name: NOBODY.into(),
                service_account: account.into(),
                node: NOBODY.into(),
                hbone: true,
                ..v1::Workload::default()
            };
            caller = Some(join(namespace, NOBODY));
            resources.push(foreign.into());
        }
        Source::Address(address) => from = Some(address),
    }
    let outcome = compiler.apply(Batch { upserts: resources, removes: Vec::new() }, Revision::default());
    let snapshot = &outcome.snapshot;
    let find = |name: &str| snapshot.workloads.values().find(|w| *w.full_name == *name).map(|w| &**w);
    let called = find(&full).ok_or_else(|| format!("workload {full} cannot be compiled"))?;
    let caller = caller.as_deref().and_then(find);
    Ok(answer(snapshot, caller, called, &What { from, port, request: request.as_ref() }))
}

/// What would become of a request from one workload of this node to another, as the snapshot has both.
pub fn would(
    snapshot: &Snapshot,
    caller: &Workload,
    called: &Workload,
    from: Option<IpAddr>,
    port: u16,
    request: &Sample,
) -> Answer {
    answer(snapshot, Some(caller), called, &What { from, port, request: Some(request) })
}

/// What is asked, but for who asks whom.
struct What<'a> {
    from: Option<IpAddr>,
    port: u16,
    request: Option<&'a Sample>,
}

fn answer(snapshot: &Snapshot, caller: Option<&Workload>, called: &Workload, what: &What<'_>) -> Answer {
    let (who, proof) = known(caller, called, what.port);
    let set = snapshot.policies.get(&called.policy_set).map(Arc::as_ref);
    let policies = set.iter().flat_map(|set| set.policies().iter().map(|p| p.name.to_string())).collect();
    let (end, decided) = decide(set, caller, called, who, what);
    Answer { allowed: end == End::Allowed, depends: end == End::Depends, decided, proof, policies }
}

/// Who the caller is to the workload that is called, and by what.
fn known(caller: Option<&Workload>, called: &Workload, port: u16) -> (Caller, &'static str) {
    let Some(caller) = caller else { return (UNPROVED, BY_NOTHING) };
    let own = Caller { identity: caller.identity, namespace: caller.mesh_ns };
    let tunnel = called.takes_tunnels()
        && called.mtls.at(port) != MtlsMode::Off
        && caller.hbone
        && caller.mtls.mode != MtlsMode::Off;
    match (caller.local, tunnel) {
        (true, _) => (own, BY_KERNEL),
        (false, true) => (own, BY_CERTIFICATE),
        (false, false) => (UNPROVED, BY_NOTHING),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Allowed,
    Refused,
    Depends,
}

fn decide(
    set: Option<&PolicySet>,
    caller: Option<&Workload>,
    called: &Workload,
    who: Caller,
    what: &What<'_>,
) -> (End, String) {
    let port = what.port;
    if caller.is_some_and(|caller| caller.id == called.id) {
        return (End::Allowed, "a workload may always call itself".to_owned());
    }
    if who == UNPROVED && called.mtls.at(port) == MtlsMode::Strict {
        return (End::Refused, format!("mTLS is strict at port {port}, and plaintext proves nobody"));
    }
    let Some(set) = set else { return (End::Allowed, "no AuthorizationPolicy selects it".to_owned()) };
    // An identity that comes from nowhere is at no address that a term could name.
    let address = what.from.map(Network::from);
    let asked = Asked { caller: who, addresses: address.as_ref(), port: Some(port), seen: Seen::Unknown };
    let by = |decision| match decision {
        Decision::Allowed(Some((policy, rule))) => {
            format!("allowed by rules[{rule}] of AuthorizationPolicy {}", policy.name)
        }
        Decision::Allowed(None) => "denied by no rule, and no policy allows only some".to_owned(),
        Decision::Refused(refusal) => refusal.to_string(),
    };
    let asks = set.asks_requests(Some(port));
    let decision = match what.request {
        Some(sample) if asks => sample.with(|request| set.decide(&asked.seeing(Seen::Request(request)))),
        _ => set.decide(&asked),
    };
    let Decision::Allowed(_) = decision else { return (End::Refused, by(decision)) };
    if let Some(sample) = what.request
        && let Some((policy, rule, provider)) =
            sample.with(|request| set.questions(&asked.seeing(Seen::Request(request))).next())
    {
        let name = &policy.name;
        let last = format!("rules[{rule}] of AuthorizationPolicy {name} has extAuthz {provider} decide");
        return (End::Depends, format!("{}, and then {last}", by(decision)));
    }
    if !asks || what.request.is_some() {
        return (End::Allowed, by(decision));
    }
    // What bytes that are no request are allowed, every request is.
    match set.decide(&asked.seeing(Seen::Opaque)) {
        whatever @ Decision::Allowed(_) => (End::Allowed, by(whatever)),
        Decision::Refused(refusal) => {
            let most = by(decision);
            (
                End::Depends,
                format!("it depends on the request: at most {most}; what is no request is {refusal}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, node: &str, account: &str) -> v1::Workload {
        v1::Workload {
            namespace: "d".into(),
            name: name.into(),
            node: node.into(),
            service_account: account.into(),
            addresses: vec!["10.0.0.9".into()],
            hbone: true,
            ..Default::default()
        }
    }

    fn allow_cart() -> Resource {
        let id =
            v1::Principal { namespace: "d".into(), service_account: "cart".into(), ..Default::default() };
        let terms = v1::SourceTerms { identities: vec![id], ..Default::default() };
        let near = v1::SourceTerms { cidrs: vec!["10.7.0.0/16".into()], ..Default::default() };
        let rule = |terms| v1::AuthorizationRule { from: vec![terms], ports: vec![80], ..Default::default() };
        let rules = vec![rule(near), rule(terms)];
        v1::AuthorizationPolicy { namespace: "d".into(), name: "p".into(), rules, ..Default::default() }
            .into()
    }

    fn mesh(mode: v1::MtlsMode) -> Resource {
        v1::Mesh { mtls: mode.into(), ..Default::default() }.into()
    }

    #[track_caller]
    fn ask(source: Source, port: u16, resources: &[Resource]) -> (bool, String, &'static str) {
        let called = workload("db", "n1", "db");
        let answer =
            check(Question { source, called, port, request: None, resources: resources.to_vec() }).unwrap();
        (answer.allowed, answer.decided, answer.proof)
    }

    fn from(workload: v1::Workload) -> Source {
        Source::Workload(Box::new(workload))
    }

    #[test]
    fn the_deciding_rule_is_named() {
        let rules = [allow_cart()];
        let by = "allowed by rules[1] of AuthorizationPolicy d/p".to_owned();
        let cart = || workload("cart-1", "n1", "cart");
        assert_eq!(ask(from(cart()), 80, &rules), (true, by.clone(), BY_KERNEL));
        assert_eq!(ask(from(cart()), 80, &[]), (true, "no AuthorizationPolicy selects it".into(), BY_KERNEL));
        let far = v1::Workload { node: "n2".into(), ..cart() };
        assert_eq!(ask(from(far.clone()), 80, &rules), (true, by, BY_CERTIFICATE));
        let none = "allowed by no rule of AuthorizationPolicy d/p".to_owned();
        assert_eq!(ask(from(cart()), 81, &rules), (false, none.clone(), BY_KERNEL));
        let plain = v1::Workload { hbone: false, ..far.clone() };
        assert_eq!(ask(from(plain), 80, &rules), (false, none.clone(), BY_NOTHING));
        assert_eq!(ask(from(far), 80, &[allow_cart(), mesh(v1::MtlsMode::Off)]), (false, none, BY_NOTHING));
    }

    #[test]
    fn identities_and_addresses_may_ask_too() {
        let id = |account: &str| Source::Identity(SpiffeId::new("mesh.local", "d", account).unwrap());
        assert!(ask(id("cart"), 80, &[allow_cart()]).0);
        assert!(!ask(id("thief"), 80, &[allow_cart()]).0);
        let address = |text: &str| Source::Address(text.parse().unwrap());
        let (allowed, decided, proof) = ask(address("10.7.1.1"), 80, &[allow_cart()]);
        assert_eq!(
            (allowed, &*decided, proof),
            (true, "allowed by rules[0] of AuthorizationPolicy d/p", BY_NOTHING)
        );
        assert!(!ask(address("10.8.1.1"), 80, &[allow_cart()]).0);
        let (allowed, decided, _) = ask(address("10.7.1.1"), 80, &[allow_cart(), mesh(v1::MtlsMode::Strict)]);
        assert!(!allowed && decided.contains("strict"), "{decided}");
    }

    #[test]
    fn a_request_is_asked_about_where_policies_look_at_requests() {
        let id =
            v1::Principal { namespace: "d".into(), service_account: "cart".into(), ..Default::default() };
        let from = vec![v1::SourceTerms { identities: vec![id], ..Default::default() }];
        let get = v1::TargetTerms {
            methods: vec!["GET".into()],
            paths: vec!["/users/*".into()],
            ..Default::default()
        };
        let rules = vec![v1::AuthorizationRule { from, ports: vec![0], to: vec![get], headers: vec![] }];
        let policy =
            v1::AuthorizationPolicy { namespace: "d".into(), name: "p".into(), rules, ..Default::default() };
        let ask = |account: &str, request: Option<(&str, &str)>| {
            let source = super::tests::from(workload("cart-1", "n1", account));
            let request = request.map(|(method, path)| Sample {
                method: method.into(),
                path: path.into(),
                host: String::new(),
                headers: Vec::new(),
            });
            let resources = vec![policy.clone().into()];
            let called = workload("db", "n1", "db");
            let answer = check(Question { source, called, port: 80, request, resources }).unwrap();
            (answer.allowed, answer.depends, answer.decided)
        };
        let none = "allowed by no rule of AuthorizationPolicy d/p".to_owned();
        let by = "allowed by rules[0] of AuthorizationPolicy d/p".to_owned();
        let (allowed, depends, decided) = ask("cart", None);
        assert!(!allowed && depends && decided.contains("depends on the request"), "{decided}");
        assert_eq!(ask("thief", None), (false, false, none.clone()));
        assert_eq!(ask("cart", Some(("GET", "/users/7?a=/b"))), (true, false, by));
        assert_eq!(ask("cart", Some(("POST", "/users/7"))), (false, false, none));
        assert!(ask("cart", Some(("GET", "/users/../admin"))).2.contains("segment that is . or .."));
    }

    #[test]
    fn who_else_decides_is_named() {
        let to = vec![v1::TargetTerms { paths: vec!["/admin/*".into()], ..Default::default() }];
        let policy = v1::AuthorizationPolicy {
            namespace: "d".into(),
            name: "p".into(),
            action: v1::AuthorizationAction::Custom.into(),
            provider: "opa".into(),
            rules: vec![v1::AuthorizationRule { ports: vec![0], to, ..Default::default() }],
            ..Default::default()
        };
        let ask = |path: &str| {
            let request = Some(Sample { method: "GET".into(), path: path.into(), ..Sample::default() });
            let source = from(workload("cart-1", "n1", "cart"));
            let (called, resources) = (workload("db", "n1", "db"), vec![policy.clone().into()]);
            let answer = check(Question { source, called, port: 80, request, resources }).unwrap();
            (answer.allowed, answer.depends, answer.decided)
        };
        let (allowed, depends, decided) = ask("/admin/x");
        assert!(
            !allowed && depends && decided.contains("rules[0] of AuthorizationPolicy d/p has extAuthz opa")
        );
        assert!(ask("/x").0);
    }

    #[test]
    fn nobody_asks_where_no_agent_is() {
        let called = workload("db", "", "db");
        let source = Source::Address("10.7.1.1".parse().unwrap());
        let question = Question { source, called, port: 80, request: None, resources: Vec::new() };
        assert!(check(question).unwrap_err().contains("runs on no node"));
    }
}

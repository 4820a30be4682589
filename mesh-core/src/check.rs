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

use crate::authorise::PolicySet;
use crate::compile::Compiler;
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
    /// The mesh, and the policies that may be for either.
    pub resources: Vec<Resource>,
}

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It would be let in.
    pub allowed: bool,
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
    let Question { source, called, port, mut resources } = question;
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
    Ok(answer(snapshot, caller, called, from, port))
}

fn answer(
    snapshot: &Snapshot,
    caller: Option<&Workload>,
    called: &Workload,
    from: Option<IpAddr>,
    port: u16,
) -> Answer {
    let (who, proof) = known(caller, called, port);
    let set = snapshot.policies.get(&called.policy_set).map(Arc::as_ref);
    let policies = set.iter().flat_map(|set| set.policies.iter().map(|p| p.name.to_string())).collect();
    let (allowed, decided) = decide(set, caller, called, who, from, port);
    Answer { allowed, decided, proof, policies }
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

fn decide(
    set: Option<&PolicySet>,
    caller: Option<&Workload>,
    called: &Workload,
    who: Caller,
    from: Option<IpAddr>,
    port: u16,
) -> (bool, String) {
    if caller.is_some_and(|caller| caller.id == called.id) {
        return (true, "a workload may always call itself".to_owned());
    }
    if who == UNPROVED && called.mtls.at(port) == MtlsMode::Strict {
        return (false, format!("mTLS is strict at port {port}, and plaintext proves nobody"));
    }
    let Some(set) = set else { return (true, "no AuthorizationPolicy selects it".to_owned()) };
    // An identity that comes from nowhere is at no address that a term could name.
    let address = from.map(crate::authorise::Network::from);
    if let Some(refusal) = set.refuses_where(who, address.as_ref(), Some(port)) {
        return (false, refusal.to_string());
    }
    let by = set.allows_where(who, address.as_ref(), Some(port));
    let decided =
        by.map(|(policy, rule)| format!("allowed by rules[{rule}] of AuthorizationPolicy {}", policy.name));
    (true, decided.unwrap_or_else(|| "denied by no rule, and no policy allows only some".to_owned()))
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
        let rule = |terms| v1::AuthorizationRule { from: vec![terms], ports: vec![80] };
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
        let answer = check(Question { source, called, port, resources: resources.to_vec() }).unwrap();
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
    fn nobody_asks_where_no_agent_is() {
        let called = workload("db", "", "db");
        let source = Source::Address("10.7.1.1".parse().unwrap());
        let question = Question { source, called, port: 80, resources: Vec::new() };
        assert!(check(question).unwrap_err().contains("runs on no node"));
    }
}

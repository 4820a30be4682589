//! Authorisation policies: names resolved to numbers, and which workloads of this node they select.
//!
//! Only workloads of this node have a policy set: the node of the workload that is called decides. Workloads
//! that the same policies select share one. A set never changes: other content is another set, under a number
//! that none has had before.
//!
//! Invariants: a policy holds the numbers of the identities and namespaces that it names, so that a workload
//! that comes later gets just those; a policy that cannot be compiled denies everything to what it selects.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_api::http_path::PathPattern;
use mesh_api::proto::v1;
use mesh_api::resource::Cidr;
use mesh_common::policy::{self, Caller};

use super::{Compiler, Work};
use crate::authorise::{
    Action, HeaderTerm, HeaderValue, HostPattern, NOBODY, Network, Policy, PolicySet, Rule, Target, Term,
    Terms,
};
use crate::ids::{IdKind, OutOfIds};
use crate::jwt::TokenTerm;
use crate::model::{Kind, Name, join};
use crate::snapshot::PolicySetId;

/// A policy as it is held.
#[derive(Debug)]
pub(super) struct Authorization {
    policy: Arc<Policy>,
    /// Labels that a workload must have.
    selector: Vec<(String, String)>,
    /// Names whose numbers it holds.
    names: Vec<(IdKind, Name)>,
}

impl Compiler {
    /// Goes on counting policy sets from the highest number that the kernel's maps hold.
    #[must_use]
    pub fn after_policy_set(mut self, set: PolicySetId) -> Self {
        self.next_set = self.next_set.max((set | 3).wrapping_add(1));
        self
    }

    /// Compiles a policy anew; the workloads that it may select are looked at again.
    pub(super) fn compile_authorization(&mut self, name: &Name, work: &mut Work) {
        let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
        work.workloads.extend(of_namespace(&self.locals, namespace).map(Arc::clone));
        let before = self.authorizations.remove(name);
        let mut problems = Vec::new();
        if let Some(spec) = self.model.authorization(name) {
            let mut names = Vec::new();
            let rules = spec.rules.iter().enumerate().map(|(i, rule)| {
                self.authorization_rule(rule, &mut names).map_err(|why| format!("spec.rules[{i}].{why}"))
            });
            let rules: Result<Box<[Rule]>, String> = rules.collect();
            let rules = rules.and_then(|rules| Ok((action(&spec)?, rules)));
            let policy = match rules {
                Ok((action, rules)) => Policy { name: Name::clone(name), action, rules },
                Err(why) => {
                    problems.push(format!("{why}: every connection to what it selects is refused"));
                    Policy { name: Name::clone(name), action: Action::Deny, rules: [Rule::default()].into() }
                }
            };
            problems.extend(self.foreign(&spec));
            problems.extend(self.unknown_providers(&spec));
            problems.extend(self.unknown_ext_authz(&spec));
            let mut selector: Vec<_> = spec.selector.into_iter().collect();
            selector.sort_unstable();
            let policy = Arc::new(policy);
            self.authorizations.insert(Name::clone(name), Authorization { policy, selector, names });
        }
        // After the new ones are held: a name that stays keeps its number.
        for (kind, name) in before.into_iter().flat_map(|before| before.names) {
            self.drop_name(kind, &name);
        }
        self.problems.set(Kind::AuthorizationPolicy, name, 0, problems);
    }

    /// Identities that nobody here can prove to have.
    fn foreign(&self, spec: &v1::AuthorizationPolicy) -> Option<String> {
        let ours = &*self.next.trust_domain;
        let all = spec.rules.iter().flat_map(|rule| &rule.from).flat_map(|from| &from.identities);
        let foreign = all.map(|id| &*id.trust_domain).find(|domain| !domain.is_empty() && *domain != ours)?;
        Some(format!(
            "its principals of trust domain {foreign} match nobody who is proved: the mesh's own is {ours}"
        ))
    }

    fn authorization_rule(
        &mut self,
        rule: &v1::AuthorizationRule,
        names: &mut Vec<(IdKind, Name)>,
    ) -> Result<Rule, String> {
        let mut from = Vec::with_capacity(rule.from.len());
        for (i, terms) in rule.from.iter().enumerate() {
            from.push(self.source_terms(terms, names).map_err(|why| format!("from[{i}]: {why}"))?);
        }
        let in_to = |why| format!("to: {why}");
        let token = rule.from.iter().any(|from| from.jwt.is_some());
        let to = if rule.to.is_empty() && rule.headers.is_empty() && !token {
            let ports = ports(&rule.ports).map_err(in_to)?;
            let target = Target { ports, ..Target::default() };
            if target.ports.is_empty() { Box::default() } else { [target].into() }
        } else {
            rule.to.iter().map(target).collect::<Result<_, _>>().map_err(in_to)?
        };
        let when = rule.headers.iter().map(header).collect::<Result<_, _>>()?;
        Ok(Rule { from: from.into(), to, when })
    }

    fn source_terms(
        &mut self,
        terms: &v1::SourceTerms,
        names: &mut Vec<(IdKind, Name)>,
    ) -> Result<Terms, String> {
        let full = |full: OutOfIds| full.to_string();
        let mut identities = Vec::with_capacity(terms.identities.len());
        for id in &terms.identities {
            if !id.trust_domain.is_empty() && *id.trust_domain != *self.next.trust_domain {
                identities.push(NOBODY);
                continue;
            }
            let name = join(&id.namespace, &id.service_account);
            let identity = self.hold_name((IdKind::Identity, name), names).map_err(full)?;
            let own = (IdKind::Namespace, id.namespace.as_str().into());
            let namespace = self.hold_name(own, names).map_err(full)?;
            identities.push(Caller { identity, namespace });
        }
        let mut namespaces = Vec::with_capacity(terms.namespaces.len());
        for namespace in &terms.namespaces {
            let name = (IdKind::Namespace, namespace.as_str().into());
            namespaces.push(self.hold_name(name, names).map_err(full)?);
        }
        let mut networks = Vec::with_capacity(terms.cidrs.len());
        for text in &terms.cidrs {
            let cidr = Cidr::parse(text).ok_or_else(|| format!("{text:?} is not a network"))?;
            networks.push(Network::new(cidr.address, cidr.length));
        }
        let jwt = terms.jwt.as_ref().map(TokenTerm::from);
        Ok(Terms {
            identities: identities.into(),
            namespaces: namespaces.into(),
            networks: networks.into(),
            jwt,
        })
    }

    fn hold_name(&mut self, name: (IdKind, Name), held: &mut Vec<(IdKind, Name)>) -> Result<u32, OutOfIds> {
        let number = self.hold(name.0, &name.1)?;
        held.push(name);
        Ok(number)
    }

    /// The set of the policies that select a workload of this node.
    pub(super) fn policy_set(&mut self, spec: &v1::Workload, work: &mut Work) -> PolicySetId {
        let selects = |one: &&Authorization| {
            one.selector.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
        };
        let first: Name = join(&spec.namespace, "");
        let all = self.authorizations.range(Name::clone(&first)..);
        let own = all.take_while(|(name, _)| name.starts_with(&*first)).map(|(_, one)| one);
        let policies: Box<[Arc<Policy>]> = own.filter(selects).map(|one| Arc::clone(&one.policy)).collect();
        if policies.is_empty() {
            return 0;
        }
        let set = PolicySet::new(policies);
        if let Some(id) = self.sets.get(&set) {
            return *id;
        }
        let id = self.next_set | u32::from(set.asks_address()) | u32::from(set.asks_any_requests()) << 1;
        debug_assert_eq!(policy::asks_address(id), set.asks_address());
        debug_assert_eq!(policy::tells_datagrams(id), set.asks_any_requests());
        // A billion changes later old numbers come again; the first of them are special.
        self.next_set = self.next_set.wrapping_add(4).max(policy::FIRST_SET);
        let set = Arc::new(set);
        self.sets.insert(Arc::clone(&set), id);
        self.next.policies.insert(id, set);
        work.dirty.policies.insert(id);
        id
    }

    /// Forgets the sets that no workload has any more.
    pub(super) fn drop_unused_sets(&mut self, work: &mut Work) {
        if self.sets.is_empty() {
            return;
        }
        let locals = self.locals.iter().filter_map(|name| self.workloads.get(&**name));
        let used: BTreeSet<PolicySetId> = locals.map(|held| held.0.policy_set).collect();
        let next = &mut self.next.policies;
        self.sets.retain(|_, id| {
            let stays = used.contains(id);
            if !stays {
                next.remove(id);
                work.dirty.policies.insert(*id);
            }
            stays
        });
    }
}

fn action(spec: &v1::AuthorizationPolicy) -> Result<Action, String> {
    match v1::AuthorizationAction::try_from(spec.action) {
        Ok(v1::AuthorizationAction::Allow) => Ok(Action::Allow),
        Ok(v1::AuthorizationAction::Deny) => Ok(Action::Deny),
        Ok(v1::AuthorizationAction::Audit) => Ok(Action::Audit),
        Ok(v1::AuthorizationAction::Custom) => Ok(Action::Custom(spec.provider.as_str().into())),
        Err(_) => Err(format!("action {} is not known to this agent", spec.action)),
    }
}

fn ports(all: &[u32]) -> Result<Box<[u16]>, String> {
    let ports: Result<BTreeSet<u16>, String> = all.iter().map(|port| super::port(*port)).collect();
    Ok(ports?.into_iter().collect())
}

fn target(to: &v1::TargetTerms) -> Result<Target, String> {
    let path = |text: &String| PathPattern::parse(text).ok_or_else(|| format!("{text:?} is not a path"));
    Ok(Target {
        ports: ports(&to.ports)?,
        methods: to.methods.iter().map(|method| method.as_str().into()).collect(),
        paths: to.paths.iter().map(path).collect::<Result<_, _>>()?,
        hosts: to.hosts.iter().map(|host| HostPattern::new(host)).collect(),
    })
}

fn header(term: &v1::HeaderTerm) -> Result<Term, String> {
    use v1::header_term::Is;
    let text = |text: &String| text.as_str().into();
    let is = match &term.is {
        Some(Is::Values(all)) => HeaderValue::OneOf(all.values.iter().map(text).collect()),
        Some(Is::Prefix(prefix)) => HeaderValue::Prefix(text(prefix)),
        Some(Is::Present(true)) => HeaderValue::Present,
        Some(Is::Present(false)) => HeaderValue::Absent,
        None => return Err(format!("headers: what is asked of {:?} is not known to this agent", term.name)),
    };
    Ok(Term::Header(HeaderTerm { name: term.name.to_ascii_lowercase().into(), is }))
}

/// The names of one namespace.
fn of_namespace<'a>(names: &'a BTreeSet<Name>, namespace: &str) -> impl Iterator<Item = &'a Name> {
    let first: Name = join(namespace, "");
    let all = names.range(Name::clone(&first)..);
    all.take_while(move |name| name.starts_with(&*first))
}

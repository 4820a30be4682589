//! Who issues tokens: what the mesh says of them, with the keys that the control plane has found.
//!
//! Invariant: one that is as it was keeps its stamp, so that what was found out under it stays found out.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1;

use super::Compiler;
use crate::jwt::{Provider, Providers, boxed};
use crate::model::{Kind, Name};

impl Compiler {
    /// Compiles all of them anew: they are few. Did something change?
    pub(super) fn compile_jwt(&mut self, mesh: &v1::Mesh) -> bool {
        let mut problems = Vec::new();
        let mut all = Vec::with_capacity(mesh.jwt_providers.len());
        for spec in &mesh.jwt_providers {
            let keys = self.model.jwt_keys(&spec.name).map(|keys| Arc::from(keys.keys));
            if keys.is_none() {
                problems.push(format!(
                    "jwtProvider {}: no keys have come yet, its tokens are refused: see the conditions of the Mesh",
                    spec.name
                ));
            }
            let held = self.next.jwt.get(&spec.name);
            let made = provider(spec, keys, held.map_or(0, |held| held.stamp));
            all.push(match held {
                Some(held) if **held == made => Arc::clone(held),
                _ => {
                    self.stamps += 1;
                    Arc::new(Provider { stamp: self.stamps, ..made })
                }
            });
        }
        self.problems.set(Kind::Mesh, &Name::from("mesh"), 1, problems);
        let all = Providers::new(all);
        let changed = all != *self.next.jwt;
        if changed {
            self.next.jwt = Arc::new(all);
        }
        changed
    }

    /// Providers that a policy names and the mesh does not have.
    pub(super) fn unknown_providers(&self, spec: &v1::AuthorizationPolicy) -> Option<String> {
        let mut terms = spec.rules.iter().flat_map(|rule| &rule.from).filter_map(|from| from.jwt.as_ref());
        // The mesh is compiled before policies.
        let name = &terms.find(|terms| self.next.jwt.get(&terms.provider).is_none())?.provider;
        Some(format!("the mesh has no jwtProvider {name}: no token of it is good; add it to the Mesh's spec"))
    }
}

fn provider(spec: &v1::JwtProvider, keys: Option<Arc<[v1::JwtKey]>>, stamp: u64) -> Provider {
    let headers = spec.headers.iter().map(|one| (one.name.as_str().into(), one.prefix.as_str().into()));
    let claims = spec.claims_to_headers.iter();
    Provider {
        stamp,
        name: spec.name.as_str().into(),
        issuer: spec.issuer.as_str().into(),
        audiences: boxed(&spec.audiences),
        headers: headers.collect(),
        forward: spec.forward,
        claims_to_headers: claims
            .map(|one| (one.claim.as_str().into(), one.header.as_str().into()))
            .collect(),
        skew: Duration::from_millis(spec.clock_skew_ms.into()),
        keys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IdLimits, IdTable};
    use crate::model::{Batch, Resource};
    use crate::snapshot::Revision;

    fn mesh(issuer: &str, http: v1::HttpMode) -> Resource {
        let one = |name: &str, issuer: &str| v1::JwtProvider {
            name: name.into(),
            issuer: issuer.into(),
            ..v1::JwtProvider::default()
        };
        let jwt_providers = vec![one("shop", issuer), one("ops", "ops")];
        v1::Mesh { http: http.into(), jwt_providers, ..v1::Mesh::default() }.into()
    }

    fn keys(kid: &str) -> Resource {
        let key = v1::JwtKey { kid: kid.into(), ..v1::JwtKey::default() };
        v1::JwtKeys { provider: "shop".into(), keys: vec![key] }.into()
    }

    #[test]
    fn a_provider_has_another_stamp_when_it_or_its_keys_change_and_only_then() {
        let mut compiler = Compiler::new("n1", IdTable::default(), IdLimits::default());
        let mut stamps = |resource: Resource| {
            let batch = Batch { upserts: vec![resource], removes: Vec::new() };
            let outcome = compiler.apply(batch, Revision::default());
            let of = |name: &str| outcome.snapshot.jwt.get(name).map(|one| (one.stamp, one.keys.is_some()));
            (of("shop"), of("ops"), outcome.conditions.len(), outcome.snapshot.epoch)
        };
        assert_eq!(stamps(keys("a")), (None, None, 0, 0), "of nobody yet");
        assert_eq!(stamps(mesh("id", v1::HttpMode::Unset)), (Some((1, true)), Some((2, false)), 1, 1));
        assert_eq!(stamps(mesh("id", v1::HttpMode::Kernel)), (Some((1, true)), Some((2, false)), 1, 1));
        assert_eq!(stamps(keys("b")), (Some((3, true)), Some((2, false)), 1, 2));
        assert_eq!(stamps(mesh("di", v1::HttpMode::Kernel)), (Some((4, true)), Some((2, false)), 1, 3));
    }

    #[test]
    fn a_policy_that_names_nobody_is_told_of() {
        let mut compiler = Compiler::new("n1", IdTable::default(), IdLimits::default());
        let jwt = Some(v1::JwtTerms { provider: "gone".into(), ..v1::JwtTerms::default() });
        let from = vec![v1::SourceTerms { jwt, ..v1::SourceTerms::default() }];
        let rules = vec![v1::AuthorizationRule { from, ports: vec![0], ..v1::AuthorizationRule::default() }];
        let policy = v1::AuthorizationPolicy {
            namespace: "d".into(),
            name: "p".into(),
            rules,
            ..v1::AuthorizationPolicy::default()
        };
        let batch = Batch { upserts: vec![policy.into()], removes: Vec::new() };
        let conditions = compiler.apply(batch, Revision::default()).conditions;
        assert!(
            conditions.len() == 1 && conditions[0].problem.contains("no jwtProvider gone"),
            "{conditions:?}"
        );
    }
}

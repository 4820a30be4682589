//! Services that decide about requests: what the mesh says of them, with the ids of their ports.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1;

use super::Compiler;
use crate::ext_authz::{ExtAuthz, Providers};
use crate::model::{Kind, Name, join};

impl Compiler {
    /// Compiles all of them anew: they are few, and services that they name may have come or gone. Did something
    /// change?
    pub(super) fn compile_ext_authz(&mut self, mesh: &v1::Mesh) -> bool {
        let mut problems = Vec::new();
        let all: Providers =
            mesh.ext_authz.iter().map(|spec| Arc::new(self.provider(spec, &mut problems))).collect();
        self.problems.set(Kind::Mesh, &Name::from("mesh"), 2, problems);
        let changed = all != self.next.ext_authz;
        if changed {
            self.next.ext_authz = all;
        }
        changed
    }

    fn provider(&self, spec: &v1::ExtAuthz, problems: &mut Vec<String>) -> ExtAuthz {
        let service = spec.service.clone().unwrap_or_default();
        let found = self.port_id(&join(&service.namespace, &service.service), service.port, false);
        let then = if spec.fail_open { "let in" } else { "refused" };
        let found = found.map_err(|why| {
            problems.push(format!("extAuthz {}: {why}: what it would be asked about is {then}", spec.name));
        });
        ExtAuthz {
            name: spec.name.as_str().into(),
            service: found.ok(),
            timeout: Duration::from_millis(spec.timeout_ms.into()),
            fail_open: spec.fail_open,
        }
    }

    /// A provider that a policy names and the mesh does not have.
    pub(super) fn unknown_ext_authz(&self, spec: &v1::AuthorizationPolicy) -> Option<String> {
        if spec.action() != v1::AuthorizationAction::Custom {
            return None;
        }
        let known = |one: &v1::ExtAuthz| one.name == spec.provider;
        if self.model.mesh().ext_authz.iter().any(known) {
            return None;
        }
        let name = &spec.provider;
        Some(format!("the mesh has no extAuthz {name}: what matches is refused; add it to the Mesh's spec"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IdLimits, IdTable};
    use crate::model::{Batch, Resource};
    use crate::snapshot::Revision;

    #[test]
    fn a_provider_is_the_port_that_it_names_once_that_is_there() {
        let service = v1::ServiceRef { namespace: "d".into(), service: "opa".into(), port: 9191 };
        let one =
            v1::ExtAuthz { name: "opa".into(), service: Some(service), timeout_ms: 50, fail_open: true };
        let mesh = v1::Mesh { ext_authz: vec![one], ..v1::Mesh::default() };
        let policy = |provider: &str| v1::AuthorizationPolicy {
            namespace: "d".into(),
            name: provider.into(),
            action: v1::AuthorizationAction::Custom.into(),
            provider: provider.into(),
            ..v1::AuthorizationPolicy::default()
        };
        let port = v1::ServicePort { port: 9191, ..v1::ServicePort::default() };
        let service = v1::Service {
            namespace: "d".into(),
            name: "opa".into(),
            vips: vec!["240.0.0.9".into()],
            ports: vec![port],
            ..v1::Service::default()
        };
        let mut compiler = Compiler::new("n1", IdTable::default(), IdLimits::default());
        let mut apply = |all: Vec<Resource>| {
            let outcome = compiler.apply(Batch { upserts: all, removes: Vec::new() }, Revision::default());
            let problems: Vec<String> = outcome.conditions.iter().map(|one| one.problem.clone()).collect();
            (outcome.snapshot, problems.join("\n"))
        };
        let (snapshot, problems) = apply(vec![mesh.into(), policy("opa").into(), policy("gone").into()]);
        assert!(
            problems.contains(
                "extAuthz opa: service d/opa does not exist: what it would be asked about is let in"
            )
        );
        assert!(problems.contains("no extAuthz gone") && !problems.contains("no extAuthz opa"), "{problems}");
        let provider = snapshot.ext_authz("opa").unwrap();
        assert!(provider.service.is_none() && provider.fail_open && snapshot.ext_authz("gone").is_none());
        let epoch = snapshot.epoch;
        let (snapshot, problems) = apply(vec![service.into()]);
        assert!(snapshot.ext_authz("opa").unwrap().service.is_some() && snapshot.epoch > epoch, "{problems}");
        assert!(!problems.contains("extAuthz opa"), "{problems}");
    }
}

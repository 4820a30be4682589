//! Routes of different kinds on one port of a service: the more specific kind has it, as the Gateway API says.
//!
//! `GRPCRoute` comes before `HTTPRoute`, `TLSRoute` before `TCPRoute`. A route of another namespace than its parent's
//! is for its own namespace's clients alone, so the two sides never meet.
//! Not here: routes of one kind (they are merged, or the oldest has it; mesh-core's compile).

use mesh_api::resource::{Kind, ParentRef, Resource, Spec};

use super::Registry;

/// The kind before which this one gives way on a port.
pub(super) fn stronger(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::HttpRoute => Some(Kind::GrpcRoute),
        Kind::TcpRoute => Some(Kind::TlsRoute),
        _ => None,
    }
}

fn parents(route: &Resource) -> &[ParentRef] {
    match &route.spec {
        Spec::GrpcRoute(spec) => &spec.parent_refs,
        Spec::TlsRoute(spec) => &spec.parent_refs,
        _ => &[],
    }
}

impl Registry {
    /// Ports that a stronger kind of route takes from this one.
    pub(super) fn conflicts(&self, route: &Resource, parent_refs: &[ParentRef]) -> Vec<String> {
        let Some(kind) = stronger(route.kind()) else { return Vec::new() };
        let mut problems = Vec::new();
        for (_, other) in self.list(kind) {
            let other: &Resource = other;
            let pairs = parent_refs.iter().flat_map(|own| parents(other).iter().map(move |its| (own, its)));
            for (own, its) in pairs {
                let place = |parent: &ParentRef, of: &Resource| {
                    let own = &of.metadata.namespace;
                    (parent.namespace.clone().unwrap_or_else(|| own.clone()), parent.name.clone())
                };
                // Each side for itself: of the parent's namespace, or clients of one other.
                let side = |parent: &ParentRef, of: &Resource| {
                    parent.namespace.is_some().then(|| of.metadata.namespace.clone())
                };
                if place(own, route) != place(its, other) || side(own, route) != side(its, other) {
                    continue;
                }
                let (namespace, name) = place(own, route);
                let Some(service) = self.called(&namespace, &name) else { continue };
                let on = |parent: &ParentRef, port: u16| parent.port.is_none_or(|wanted| wanted == port);
                let ports = service.ports.iter().filter(|port| {
                    super::resolve::routes(route.kind(), port.protocol)
                        && super::resolve::routes(kind, port.protocol)
                        && on(own, port.port)
                        && on(its, port.port)
                });
                problems.extend(ports.map(|port| {
                    format!(
                        "port {} of Service {namespace}/{name} has {}, which comes before {}: give one of them other \
                         ports",
                        port.port,
                        other.key(),
                        route.kind()
                    )
                }));
            }
        }
        problems
    }
}

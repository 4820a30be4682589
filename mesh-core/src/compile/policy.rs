//! What policies say of a service port, and whether its connections need the proxy.

use mesh_api::proto::v1::{self, HttpMode, Protocol};

use super::Compiler;
use crate::model::{Kind, Name, join};
use crate::snapshot::{OnProxyLoss, Why};

/// Why a connection to a service port needs the proxy; `None`: the kernel path.
pub fn needs_proxy(routed: bool, protocol: Protocol, http: HttpMode) -> Option<Why> {
    match protocol {
        _ if routed => Some(Why::Route),
        Protocol::Http if http == HttpMode::Proxy => Some(Why::Http),
        _ => None,
    }
}

/// What holds for one port after all policies and defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub http: HttpMode,
    pub on_proxy_loss: OnProxyLoss,
}

/// A policy on the port's own section comes before one on the whole service, field by field; of two on the
/// same target the older one counts, then the first by name. What none sets is the mesh's default.
pub(super) fn resolve(
    policies: &[v1::TrafficPolicy],
    service: &str,
    port_name: &str,
    mesh: &v1::Mesh,
) -> Settings {
    let section = oldest(policies, service, port_name).filter(|_| !port_name.is_empty());
    let whole = oldest(policies, service, "");
    let levels = || section.into_iter().chain(whole);
    let http = levels().map(v1::TrafficPolicy::http).chain([mesh.http()]);
    let on_proxy_loss = levels().find_map(|p| match p.on_proxy_loss() {
        v1::OnProxyLoss::Unset => None,
        v1::OnProxyLoss::Bypass => Some(OnProxyLoss::Bypass),
        v1::OnProxyLoss::Refuse => Some(OnProxyLoss::Refuse),
    });
    Settings {
        http: http.into_iter().find(|mode| *mode != HttpMode::Unset).unwrap_or(HttpMode::Proxy),
        on_proxy_loss: on_proxy_loss.unwrap_or_default(),
    }
}

fn oldest<'a>(
    policies: &'a [v1::TrafficPolicy],
    service: &str,
    section: &str,
) -> Option<&'a v1::TrafficPolicy> {
    let on_target = policies
        .iter()
        .filter(|p| p.targets.iter().any(|t| t.service == service && t.section_name == section));
    on_target.min_by_key(|p| (p.created_ms, &p.name))
}

impl Compiler {
    /// The policies on a service.
    pub(super) fn policies(&self, service: &str) -> Vec<v1::TrafficPolicy> {
        self.model.policies_on(service).filter_map(|name| self.model.policy(name)).collect()
    }

    /// Names what is wrong with a policy.
    pub(super) fn check_policy(&mut self, name: &Name) {
        let mut problems = Vec::new();
        if let Some(policy) = self.model.policy(name) {
            for target in &policy.targets {
                if let Some(problem) = self.target_problem(&policy, target) {
                    problems.push(problem);
                }
            }
        }
        self.problems.set(Kind::TrafficPolicy, name, 0, problems);
    }

    fn target_problem(&self, policy: &v1::TrafficPolicy, target: &v1::PolicyTarget) -> Option<String> {
        let name = join(&policy.namespace, &target.service);
        let section = &target.section_name;
        let Some(service) = self.model.service(&name) else {
            return Some(format!("target service {name} does not exist"));
        };
        if !section.is_empty() && service.ports.iter().all(|p| p.name != *section) {
            return Some(format!("target service {name} has no port named {section:?}"));
        }
        let policies = self.policies(&name);
        let first = oldest(&policies, &target.service, section)?;
        (first.name != policy.name).then(|| {
            let place = if section.is_empty() { String::new() } else { format!(" port {section:?}") };
            format!("service {name}{place} is ruled by the older policy {}/{}", first.namespace, first.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_the_proxy() {
        use HttpMode::{Kernel, Proxy};
        assert_eq!(needs_proxy(true, Protocol::Http, Kernel), Some(Why::Route));
        assert_eq!(needs_proxy(false, Protocol::Http, Proxy), Some(Why::Http));
        assert_eq!(needs_proxy(false, Protocol::Http, Kernel), None);
        assert_eq!(needs_proxy(false, Protocol::Tcp, Proxy), None);
        assert_eq!(needs_proxy(false, Protocol::Tls, Proxy), None);
    }

    fn policy(name: &str, created_ms: u64, section: &str) -> v1::TrafficPolicy {
        v1::TrafficPolicy {
            namespace: "a".into(),
            name: name.into(),
            targets: vec![v1::PolicyTarget { service: "s".into(), section_name: section.into() }],
            created_ms,
            ..Default::default()
        }
    }

    #[test]
    fn section_before_service_before_mesh_and_older_before_newer() {
        let mesh = v1::Mesh { http: HttpMode::Kernel.into(), ..Default::default() };
        let mut old = policy("z", 1, "");
        old.set_http(HttpMode::Proxy);
        old.set_on_proxy_loss(v1::OnProxyLoss::Refuse);
        let mut new = policy("a", 2, "");
        new.set_http(HttpMode::Kernel);
        let mut section = policy("w", 3, "web");
        section.set_on_proxy_loss(v1::OnProxyLoss::Bypass);
        let all = [new, old, section];

        let web = resolve(&all, "s", "web", &mesh);
        assert_eq!(web, Settings { http: HttpMode::Proxy, on_proxy_loss: OnProxyLoss::Bypass });
        let other = resolve(&all, "s", "", &mesh);
        assert_eq!(other, Settings { http: HttpMode::Proxy, on_proxy_loss: OnProxyLoss::Refuse });
        let none = resolve(&[], "s", "web", &mesh);
        assert_eq!(none, Settings { http: HttpMode::Kernel, on_proxy_loss: OnProxyLoss::Bypass });
        assert_eq!(resolve(&[], "s", "web", &v1::Mesh::default()).http, HttpMode::Proxy);
    }
}

//! What policies say of a service port, and whether its connections need the proxy.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1::{self, HttpMode, Protocol};

use super::Compiler;
use super::resilience::resilience;
use super::spread::preference;
use crate::model::{Kind, Name, join};
use crate::resilience::Resilience;
use crate::snapshot::{Balancing, Ejection, OnProxyLoss, Traffic, Why};

/// Why a connection to a service port needs the proxy; `None`: the kernel path. `asks`: a policy asks for something of
/// its requests.
pub fn needs_proxy(routed: bool, protocol: Protocol, http: HttpMode, asks: bool) -> Option<Why> {
    match protocol {
        _ if routed => Some(Why::Route),
        Protocol::Http if http == HttpMode::Proxy => Some(Why::Http),
        Protocol::Http if asks => Some(Why::Policy),
        Protocol::Auto if http == HttpMode::Proxy || asks => Some(Why::Detect),
        _ => None,
    }
}

/// What holds for one port after all policies and defaults.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub http: HttpMode,
    pub on_proxy_loss: OnProxyLoss,
    pub traffic: Traffic,
    pub resilience: Option<Arc<Resilience>>,
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
        traffic: traffic(&levels()),
        resilience: resilience(&levels()),
    }
}

/// The first of the policies that says something says it, field by field.
fn traffic<'a>(levels: &(impl Iterator<Item = &'a v1::TrafficPolicy> + Clone)) -> Traffic {
    let millis = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
    let balancing = levels.clone().find_map(|p| match p.balancing() {
        v1::Balancing::Unset => None,
        v1::Balancing::RoundRobin => Some(Balancing::RoundRobin),
        v1::Balancing::Random => Some(Balancing::Random),
        v1::Balancing::LeastConnections => Some(Balancing::LeastConnections),
        v1::Balancing::LeastRequests => Some(Balancing::LeastRequests),
        v1::Balancing::PeakEwma => Some(Balancing::PeakEwma),
        v1::Balancing::Maglev => Some(Balancing::Maglev),
    });
    let limits = levels.clone().find_map(|p| p.limits).unwrap_or_default();
    let ejection = levels
        .clone()
        .find_map(|p| p.outlier_ejection)
        .filter(|e| e.consecutive_connect_failures > 0 && e.base_ejection_ms > 0);
    Traffic {
        balancing: balancing.unwrap_or_default(),
        affinity: levels.clone().find_map(|p| millis(p.affinity_timeout_ms)),
        max_connections: limits.max_connections,
        max_per_endpoint: limits.max_connections_per_endpoint,
        ejection: ejection.map(|e| Ejection {
            failures: e.consecutive_connect_failures,
            base: Duration::from_millis(e.base_ejection_ms.into()),
            max_percent: e.max_ejected_percent.min(100),
        }),
        slow_start: levels.clone().find_map(|p| millis(p.slow_start_ms)),
        connect_timeout: levels.clone().find_map(|p| millis(p.connect_timeout_ms)),
        locality: levels.clone().find_map(|p| p.locality.map(preference)),
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
        assert_eq!(needs_proxy(true, Protocol::Http, Kernel, false), Some(Why::Route));
        assert_eq!(needs_proxy(false, Protocol::Http, Proxy, true), Some(Why::Http));
        assert_eq!(needs_proxy(false, Protocol::Http, Kernel, false), None);
        assert_eq!(needs_proxy(false, Protocol::Http, Kernel, true), Some(Why::Policy));
        assert_eq!(needs_proxy(false, Protocol::Tcp, Proxy, true), None);
        assert_eq!(needs_proxy(false, Protocol::Tls, Proxy, true), None);
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
        assert_eq!((web.http, web.on_proxy_loss), (HttpMode::Proxy, OnProxyLoss::Bypass));
        let other = resolve(&all, "s", "", &mesh);
        assert_eq!((other.http, other.on_proxy_loss), (HttpMode::Proxy, OnProxyLoss::Refuse));
        let none = resolve(&[], "s", "web", &mesh);
        assert_eq!((none.http, none.on_proxy_loss), (HttpMode::Kernel, OnProxyLoss::Bypass));
        assert_eq!(resolve(&[], "s", "web", &v1::Mesh::default()).http, HttpMode::Proxy);
    }

    #[test]
    fn what_a_section_does_not_say_the_service_says() {
        let mut whole = policy("whole", 1, "");
        whole.set_balancing(v1::Balancing::Maglev);
        whole.affinity_timeout_ms = 5000;
        whole.limits = Some(v1::ConnectionLimits { max_connections: 7, ..Default::default() });
        let mut section = policy("section", 2, "web");
        section.set_balancing(v1::Balancing::LeastConnections);
        section.outlier_ejection = Some(v1::OutlierEjection {
            consecutive_connect_failures: 3,
            base_ejection_ms: 1000,
            max_ejected_percent: 50,
            ..Default::default()
        });
        let traffic = resolve(&[whole, section], "s", "web", &v1::Mesh::default()).traffic;
        let ejection = Ejection { failures: 3, base: Duration::from_secs(1), max_percent: 50 };
        let wanted = Traffic {
            balancing: Balancing::LeastConnections,
            affinity: Some(Duration::from_secs(5)),
            max_connections: 7,
            ejection: Some(ejection),
            ..Traffic::default()
        };
        assert_eq!(traffic, wanted);
        assert_eq!(resolve(&[], "s", "web", &v1::Mesh::default()).traffic, Traffic::default());
    }
}

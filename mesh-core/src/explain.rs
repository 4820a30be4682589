//! What would become of a request, decision by decision: for `meshctl explain`.
//!
//! agent's snapshot, [`Question`] ──▶ **explain** ──▶ steps
//!
//! Each decision is asked of the function that makes it (routes, policies), or read where it stands (why a port goes
//! through the proxy, who serves, what is encrypted). Nothing is sent, nobody's turn is used up: where it is drawn among
//! several, all are shown.
//!
//! Invariant: bounded text, whatever the mesh ([`MOST`]). Not here: names (the agent's DNS), what other nodes decide.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::local::{Elsewhere, Explanation, Step};
use mesh_api::proto::v1::Protocol;

use crate::authorise::Headers as _;
use crate::balance::Loads;
use crate::check::{Sample, would};
use crate::head::Head as _;
use crate::mtls::MtlsMode;
use crate::outside::Egress;
use crate::route::{Action, Backend, Considered, Found, HeaderEdits, Why};
use crate::snapshot::{Endpoint, OnProxyLoss, Service, Snapshot, Workload, WorkloadId};

/// Lines of one step at most.
const MOST: usize = 32;

/// A request that might be.
#[derive(Clone, Debug)]
pub struct Question {
    /// Who calls: a workload of this node.
    pub source: WorkloadId,
    /// Address that it would connect to, and port.
    pub address: IpAddr,
    /// As `address`.
    pub port: u16,
    /// What it would ask.
    pub request: Sample,
}

struct Told<'a, L: Loads + ?Sized> {
    snapshot: &'a Snapshot,
    source: &'a Workload,
    request: &'a Sample,
    loads: &'a L,
    out: Explanation,
}

/// What would become of it; an error says why nobody can say.
pub fn explain<L: Loads + ?Sized>(
    snapshot: &Snapshot,
    question: &Question,
    loads: &L,
) -> Result<Explanation, String> {
    let source = snapshot.workloads.get(&question.source).filter(|source| source.local);
    let source = source.ok_or("the workload that calls is not one of this node")?;
    let mut told = Told { snapshot, source, request: &question.request, loads, out: Explanation::default() };
    told.connect(question.address, question.port);
    Ok(told.out)
}

/// The first lines, and how many more there are.
fn bounded(all: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = all.into_iter().collect();
    let beyond = lines.len().saturating_sub(MOST);
    if beyond > 0 {
        lines.truncate(MOST);
        lines.push(format!("… and {beyond} more"));
    }
    lines
}

fn name_of(service: &Service) -> String {
    format!("{}/{}:{}", service.namespace, service.name, service.port)
}

impl<L: Loads + ?Sized> Told<'_, L> {
    fn step(&mut self, what: &str, says: impl Into<String>, more: Vec<String>) {
        self.out.steps.push(Step { what: what.into(), says: says.into(), more });
    }

    fn connect(&mut self, address: IpAddr, port: u16) {
        let snapshot = self.snapshot;
        if let Some(policy) = self.excluded(address, port) {
            self.step(
                "service",
                format!("left alone: spec.exclude.outbound of TransportPolicy {policy}"),
                vec![],
            );
            return;
        }
        let asked =
            snapshot.services.values().find(|s| !s.udp() && s.port == port && s.vips.contains(&address));
        if let Some(service) = asked {
            self.step("service", format!("{address} is a virtual address of {}", name_of(service)), vec![]);
            return self.through(service);
        }
        let named = snapshot.services.values().find(|s| s.vips.contains(&address));
        if let Some(named) = named {
            let says = format!(
                "{address} is {}/{}'s, which has no TCP port {port}: refused",
                named.namespace, named.name
            );
            return self.step("service", says, vec![]);
        }
        let own = snapshot.workloads.values().find(|w| w.outside.is_none() && w.addresses.contains(&address));
        if let Some(workload) = own {
            return self.directly(workload, port);
        }
        let listed = self.source.transport.as_ref().is_some_and(|t| t.egress == Egress::Listed);
        let says = if listed {
            "outside of the mesh, and not on the list: refused"
        } else {
            "outside of the mesh: left alone"
        };
        self.step("service", format!("{address}:{port} is {says}"), vec![]);
    }

    /// The policies that leave it alone.
    fn excluded(&self, address: IpAddr, port: u16) -> Option<String> {
        let transport = self.source.transport.as_ref()?;
        let one = crate::authorise::at(address);
        let out = &transport.outbound;
        let excluded = out.ports.contains(&port) || out.networks.iter().any(|network| network.covers(&one));
        excluded.then(|| transport.policies.join(", "))
    }

    fn directly(&mut self, workload: &Workload, port: u16) {
        let served = workload.ports.iter().find(|one| one.port == port && !one.udp());
        let of = served
            .and_then(|one| self.snapshot.services.get(&one.service))
            .map(|s| format!(", which serves {}", name_of(s)));
        let says = format!("the own address of workload {}{}", workload.full_name, of.unwrap_or_default());
        self.step("service", says, vec![]);
        let proxied = served.is_some_and(|one| one.proxy);
        let says = match (proxied, self.tunnels(workload, port)) {
            (true, _) => "proxy: its port goes through it; nobody else will do, so nothing is routed",
            (false, true) => "proxy: the way to its node is a tunnel",
            (false, false) => "kernel: connect() goes there as it is",
        };
        self.step("path", says, vec![]);
        self.arrive(workload, port, self.request);
    }

    fn tunnels(&self, workload: &Workload, port: u16) -> bool {
        workload.tunnels(port) && !self.source.transport.as_ref().is_some_and(|t| t.plain)
    }

    fn through(&mut self, service: &Arc<Service>) {
        let loss = match service.on_proxy_loss {
            OnProxyLoss::Bypass => {
                "while the agent is away: the kernel path, by the catch-all rule's weights"
            }
            OnProxyLoss::Refuse => "while the agent is away: refused",
        };
        let (says, more) = match service.why {
            Some(why) => (format!("proxy: {}", why_text(why)), vec![loss.to_owned()]),
            None => ("kernel: nothing of this port needs the proxy; to endpoints behind tunnels it goes through the agent, as bytes".to_owned(), vec![]),
        };
        self.step("path", says, more);
        let http = service.protocol == Protocol::Http || service.routes.is_some();
        if service.why.is_none() || !http {
            let split = service.split.then(|| self.weights(&service.fallback));
            if let Some(more) = split {
                self.step("backends", "by the weights of its route", more);
            }
            let ids: Vec<_> = if service.split {
                service.fallback.iter().map(|(id, _)| *id).collect()
            } else {
                vec![service.id]
            };
            return self.endpoints_of(&ids, self.request);
        }
        self.route(service);
    }

    fn route(&mut self, service: &Arc<Service>) {
        let request = self.request;
        let Some(routes) = service.routes_of(|| Some(self.source.namespace())) else {
            self.step("route", "none is attached: its own endpoints", vec![]);
            return self.endpoints_of(&[service.id], request);
        };
        let considered = bounded(routes.consider(request).iter().map(considered));
        let Some(Found { rule, matched }) = routes.find(request) else {
            return self.step("route", "no rule takes it: 404, no_route", considered);
        };
        self.step("route", format!("rule {}", rule.name), considered);
        let action = rule.action.as_deref();
        if let Some(redirect) = action.and_then(|action| action.redirect.as_ref()) {
            let mut location = Vec::new();
            redirect.write((request.authority(), request.path(), request.query()), matched, &mut location);
            let says =
                format!("answered {}, Location: {}", redirect.status, String::from_utf8_lossy(&location));
            return self.step("filters", says, vec![]);
        }
        if let Some(answer) = action.and_then(|action| action.direct.as_ref()) {
            let says = format!("answered {} by the route itself", answer.status);
            return self.step("filters", says, vec![]);
        }
        if let Some(action) = action {
            let lines = self.filters(action, request.path(), matched);
            self.step("filters", if lines.is_empty() { "none" } else { "on its way" }, lines);
        }
        let more = bounded(rule.backends.iter().map(|backend| self.backend(backend, &rule.backends)));
        let says = if more.is_empty() { "none: 500, no_backend" } else { "drawn by weight" };
        self.step("backends", says, more);
        for backend in rule.backends.iter().filter(|backend| backend.weight > 0).take(MOST) {
            if let Some(id) = backend.service {
                let passed = passed_on(request, action, backend, matched);
                self.endpoints_of(&[id], &passed);
            }
        }
    }

    fn filters(&self, action: &Action, path: &str, matched: usize) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(host) = &action.rewrite.host {
            lines.push(format!("host becomes {host}"));
        }
        if let Some(edit) = &action.rewrite.path {
            let (first, rest) = edit.apply(path, matched);
            lines.push(format!("path becomes {first}{rest}"));
        }
        for mirror in &action.mirrors {
            let to = mirror.service.and_then(|id| self.snapshot.services.get(&id));
            let to =
                to.map_or_else(|| "a service that does not exist".to_owned(), |service| name_of(service));
            lines.push(format!("{} of {} are copied to {to}", mirror.fraction.0, mirror.fraction.1));
        }
        lines.extend(action.timeout.map(|timeout| format!("all tries together may take {timeout:?}")));
        lines.extend(action.try_timeout.map(|timeout| format!("one try may take {timeout:?}")));
        lines.extend(
            action
                .retry
                .as_ref()
                .map(|retry| format!("tried again {} times after {:?}", retry.attempts, retry.codes)),
        );
        lines
    }

    fn weights(&self, all: &[(u32, u32)]) -> Vec<String> {
        let backends: Vec<Backend> = all
            .iter()
            .map(|(id, weight)| Backend { service: Some(*id), weight: *weight, edits: None })
            .collect();
        bounded(backends.iter().map(|backend| self.backend(backend, &backends)))
    }

    fn backend(&self, backend: &Backend, all: &[Backend]) -> String {
        let total: u64 = all.iter().map(|one| u64::from(one.weight)).sum();
        let share = f64::from(backend.weight) / (total.max(1) as f64) * 100.0;
        let service = backend.service.and_then(|id| self.snapshot.services.get(&id));
        let mut text = match service {
            Some(service) => format!("{} weight {} ({share:.1} %)", name_of(service), backend.weight),
            None => {
                format!("one that does not exist, weight {} ({share:.1} %): 500, no_backend", backend.weight)
            }
        };
        if let Some(edits) = &backend.edits {
            text += &edited("request", &edits.request);
            text += &edited("response", &edits.response);
        }
        text
    }

    fn endpoints_of(&mut self, services: &[u32], request: &Sample) {
        let snapshot = self.snapshot;
        for service in services.iter().filter_map(|id| snapshot.services.get(id)) {
            let lines: Vec<String> =
                (0..).zip(service.endpoints.iter()).map(|(i, e)| self.endpoint(service, i, e)).collect();
            let strict = service.traffic.locality.is_some_and(|locality| locality.strict);
            let says = format!(
                "{}: {} of {} take new connections, {:?}{}{}",
                name_of(service),
                service.serving,
                service.endpoints.len(),
                service.traffic.balancing,
                if service.traffic.slow_start.is_some() { ", slow start on the kernel path" } else { "" },
                if strict { ", strictly near ones" } else { "" },
            );
            let says = if service.serving == 0 { format!("{says}: 503, no_endpoints") } else { says };
            self.step("endpoints", says, bounded(lines));
            let behind: Vec<(u32, u16)> = service.serving().iter().map(|e| (e.workload, e.port)).collect();
            for (id, port) in behind.into_iter().take(MOST) {
                if let Some(workload) = snapshot.workloads.get(&id) {
                    self.arrive(workload, port, request);
                }
            }
        }
    }

    fn endpoint(&self, service: &Service, place: usize, endpoint: &Endpoint) -> String {
        let workload = self.snapshot.workloads.get(&endpoint.workload);
        let at = endpoint.address(false).map_or_else(|| "no address".to_owned(), |at| at.to_string());
        let load = self.loads.load(endpoint.id);
        let mut text = format!("{} {at} weight {}", workload.map_or("?", |w| &w.full_name), endpoint.weight);
        text.extend(workload.map(|w| format!(", {}, priority {}", w.nearness.name(), w.priority)));
        if place >= service.serving {
            text += ", takes no new connections";
        } else if endpoint.weight == 0 {
            text += ", a spare";
        }
        let now = self.loads.now();
        if load.ejected_until > now {
            let left = (load.ejected_until - now) / 1_000_000;
            text.extend([", left out for ", &left.to_string(), " ms more"]);
        }
        let limit = u64::from(service.traffic.max_per_endpoint);
        if limit > 0 && load.live >= limit {
            text += ", has all connections that it may have";
        }
        text + &format!(", {} connections now", load.live)
    }

    /// The way to a workload, and whether it lets the request in.
    fn arrive(&mut self, called: &Workload, port: u16, request: &Sample) {
        let name = &called.full_name;
        let mode = called.mtls.at(port);
        let says = match (called.local, self.tunnels(called, port)) {
            _ if called.outside.is_some() => "to the outside of the mesh",
            (true, _) => "on this node, plain: the kernel proves who calls",
            (false, true) => "in a tunnel of mutual TLS",
            (false, false) if mode == MtlsMode::Strict => "plain, and refused there: mTLS is strict",
            (false, false) => "plain",
        };
        self.step("transport", format!("{name} port {port}: {says}"), vec![]);
        if called.outside.is_some() {
            return;
        }
        if !called.local {
            let mut headers = Vec::new();
            request.each(&mut |name, value| {
                headers.push(format!("{}:{}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
            });
            self.out.elsewhere.push(Elsewhere {
                source: self.source.full_name.to_string(),
                workload: name.to_string(),
                port,
                method: request.method.clone(),
                path: request.path().to_owned(),
                host: request.host.clone(),
                headers,
            });
            return self.step("authorisation", format!("{name}: decided on node {}", called.node), vec![]);
        }
        let from = self.source.addresses.first().copied();
        let answer = would(self.snapshot, self.source, called, from, port, request);
        let end = if answer.allowed { "let in" } else { "refused" };
        self.step("authorisation", format!("{name}: {end}, {}", answer.decided), vec![]);
    }
}

fn why_text(why: crate::snapshot::Why) -> &'static str {
    match why {
        crate::snapshot::Why::Route => "a route is attached that the proxy carries out",
        crate::snapshot::Why::Http => "the port speaks HTTP, and HTTP goes through it (http: proxy)",
        crate::snapshot::Why::Detect => "what is spoken is found out there",
        crate::snapshot::Why::Tls => "the agent speaks TLS with its endpoints",
        crate::snapshot::Why::Policy => "a TrafficPolicy asks for something of its requests",
    }
}

fn considered(one: &Considered<'_>) -> String {
    let why = match &one.why {
        Why::Taken => "takes it".to_owned(),
        Why::Fails(what) => format!("no: {what}"),
        Why::Behind => "no: one before it takes it".to_owned(),
    };
    format!("{} ({}): {why}", one.rule.name, one.claims)
}

fn edited(what: &str, edits: &HeaderEdits) -> String {
    if edits.is_empty() {
        return String::new();
    }
    let dropped = edits.dropped().map(|name| format!("-{name}"));
    let added = edits.lines().iter().map(|(name, value)| format!("+{name}: {value}"));
    let all: Vec<String> = dropped.chain(added).collect();
    format!("; {what} headers {}", all.join(", "))
}

/// The request as the endpoint gets it.
fn passed_on(request: &Sample, action: Option<&Action>, backend: &Backend, matched: usize) -> Sample {
    let mut passed = request.clone();
    if let Some(rewrite) = action.map(|action| &action.rewrite) {
        if let Some(edit) = &rewrite.path {
            let (first, rest) = edit.apply(request.path(), matched);
            passed.path = format!("{first}{rest}");
        }
        if let Some(host) = &rewrite.host {
            passed.host = host.to_string();
        }
    }
    if let Some(edits) = &backend.edits {
        passed.headers.retain(|(name, _)| !edits.request.drops(name.as_bytes()));
        let added = edits.request.lines().iter().map(|(name, value)| (name.to_string(), value.to_string()));
        passed.headers.extend(added);
    }
    passed
}

#[cfg(test)]
mod tests;

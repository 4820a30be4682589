//! What the names below the mesh's domain stand for, read from the snapshot.
//!
//! ```text
//! <service>.<namespace>                   virtual addresses; headless: those of its endpoints
//! <workload>.<service>.<namespace>        one endpoint of it, what SRV of a headless service names
//! _<port name>._tcp.<service>.<namespace> SRV: its port, or the endpoints and theirs
//! ```
//! A name above one that exists exists, without records: a resolver that asks label by label must not be told that
//! there is nothing below it. Not here: bytes (wire).

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::snapshot::{Endpoint, Service, Snapshot};

/// The domain of the mesh.
pub const DOMAIN: &str = "mesh";

/// A name below the domain, first label first, in lower case.
pub type Labels = Vec<String>;

/// What an SRV record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Port.
    pub port: u16,
    /// In proportion to the others.
    pub weight: u16,
    /// Where.
    pub host: Labels,
}

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its SRV records.
    pub places: Vec<Place>,
    /// Addresses of the hosts of `places`.
    pub hosts: Vec<(Labels, IpAddr)>,
    /// Seconds that this may be remembered, as its service says.
    pub ttl: Option<u32>,
}

impl Found {
    /// This may be remembered for so long where its service says nothing.
    #[must_use]
    pub fn or_ttl(self, ttl: Option<u32>) -> Self {
        Self { ttl: self.ttl.or(ttl), ..self }
    }
}

/// Looks a name up. `turn`: which of several endpoints comes first. `None`: there is no such name.
pub fn look_up(snapshot: &Snapshot, labels: &[String], turn: usize) -> Option<Found> {
    let mut found = find(snapshot, labels, turn)?;
    if let [.., service, namespace] = labels {
        let ports = ports(snapshot, service, namespace);
        found.ttl = ports.and_then(|ports| ports.first()?.dns_ttl);
    }
    Some(found)
}

fn find(snapshot: &Snapshot, labels: &[String], turn: usize) -> Option<Found> {
    match labels {
        [] => Some(Found::default()),
        [namespace] => has_services(snapshot, namespace).then(Found::default),
        [service, namespace] => {
            let ports = ports(snapshot, service, namespace)?;
            Some(Found { addresses: addresses(&ports, turn), ..Found::default() })
        }
        [first, service, namespace] => {
            let ports = ports(snapshot, service, namespace)?;
            if let Some(udp) = transport(first) {
                return ports.iter().any(|port| port.udp() == udp).then(Found::default);
            }
            let named = |endpoint: &&Endpoint| host(snapshot, endpoint).as_deref() == Some(first);
            let endpoints = ports.iter().flat_map(|port| port.serving());
            let addresses = unique(endpoints.filter(named).flat_map(ips));
            (!addresses.is_empty()).then(|| Found { addresses, ..Found::default() })
        }
        [port, transport_label, service, namespace] => {
            let name = port.strip_prefix('_').filter(|name| !name.is_empty())?;
            let udp = transport(transport_label)?;
            let ports = ports(snapshot, service, namespace)?;
            let port = ports.iter().find(|port| port.udp() == udp && *port.port_name == *name)?;
            Some(places(snapshot, port, &labels[2..], turn))
        }
        _ => None,
    }
}

/// The virtual addresses of the external service that has this host name; `None`: none has. Of the families that it
/// can be reached by, if any is known.
pub fn of_host(snapshot: &Snapshot, host: &str) -> Option<Found> {
    let name = snapshot.hosts.get(host)?;
    let ids = snapshot.names.get(name)?;
    let ports: Vec<_> = ids.iter().filter_map(|id| snapshot.services.get(id)).collect();
    let vips = &ports.first()?.vips;
    let reaches = |vip: &&IpAddr| {
        let mut endpoints = ports.iter().flat_map(|port| port.serving());
        endpoints.any(|e| if vip.is_ipv6() { e.v6.is_some() } else { e.v4.is_some() })
    };
    let reached: Vec<IpAddr> = vips.iter().filter(reaches).copied().collect();
    let addresses = if reached.is_empty() { vips.clone() } else { reached };
    Some(Found { addresses, ..Found::default() })
}

fn transport(label: &str) -> Option<bool> {
    match label {
        "_tcp" => Some(false),
        "_udp" => Some(true),
        _ => None,
    }
}

fn has_services(snapshot: &Snapshot, namespace: &str) -> bool {
    let first: Arc<str> = format!("{namespace}/").into();
    let next = snapshot.names.range(Arc::clone(&first)..).next();
    next.is_some_and(|(name, _)| name.starts_with(&*first))
}

fn ports(snapshot: &Snapshot, service: &str, namespace: &str) -> Option<Vec<Arc<Service>>> {
    let ids = snapshot.names.get(format!("{namespace}/{service}").as_str())?;
    Some(ids.iter().filter_map(|id| snapshot.services.get(id).cloned()).collect())
}

fn addresses(ports: &[Arc<Service>], turn: usize) -> Vec<IpAddr> {
    match ports.first() {
        Some(first) if !first.vips.is_empty() => first.vips.clone(),
        _ => turned(unique(ports.iter().flat_map(|port| port.serving()).flat_map(ips)), turn),
    }
}

fn places(snapshot: &Snapshot, port: &Service, service: &[String], turn: usize) -> Found {
    if !port.vips.is_empty() {
        let hosts = port.vips.iter().map(|vip| (service.to_vec(), *vip)).collect();
        let place = Place { port: port.port, weight: 1, host: service.to_vec() };
        return Found { places: vec![place], hosts, ..Found::default() };
    }
    // Parts of a load that is split are longer than a record's weight.
    let heaviest = port.serving().iter().map(|e| e.weight).max().unwrap_or(0);
    let unit = heaviest.div_ceil(u16::MAX.into()).max(1);
    let mut found = Found::default();
    for endpoint in turned(port.serving().to_vec(), turn) {
        let Some(first) = host(snapshot, &endpoint) else { continue };
        let host: Labels = std::iter::once(first).chain(service.iter().cloned()).collect();
        found.hosts.extend(ips(&endpoint).map(|ip| (host.clone(), ip)));
        let weight = u16::try_from(endpoint.weight / unit).unwrap_or(u16::MAX);
        found.places.push(Place { port: endpoint.port, weight, host });
    }
    found
}

/// The label of an endpoint: its workload's name, in which `-` stands for dots. `None`: it is too long for one.
fn host(snapshot: &Snapshot, endpoint: &Endpoint) -> Option<String> {
    let label = snapshot.workloads.get(&endpoint.workload)?.name().replace('.', "-");
    (label.len() <= 63).then_some(label)
}

fn ips(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> + use<> {
    endpoint.v4.map(IpAddr::V4).into_iter().chain(endpoint.v6.map(IpAddr::V6))
}

/// Each once: a workload may serve several ports.
fn unique(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = std::collections::HashSet::new();
    all.filter(|ip| seen.insert(*ip)).collect()
}

fn turned<T>(mut all: Vec<T>, turn: usize) -> Vec<T> {
    if !all.is_empty() {
        let first = turn % all.len();
        all.rotate_left(first);
    }
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::path::test_service as service;
    use mesh_api::proto::v1::Protocol;
    use mesh_core::locality::Nearness;
    use mesh_core::snapshot::Workload;

    /// `shop` has a virtual address and TCP port 80 named `http`; `log`, headless, has two endpoints on UDP port
    /// 9000 named `lines`.
    pub fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot { epoch: 1, ..Snapshot::default() };
        let at = ["127.0.0.1:8080".parse().unwrap(), "127.0.0.1:9000".parse().unwrap()];
        let mut shop = service(1, Protocol::Http, &at[..1]);
        (shop.name, shop.port_name) = ("shop".into(), "http".into());
        shop.vips = vec!["240.240.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let mut log = service(2, Protocol::Udp, &[at[1], at[1]]);
        (log.name, log.port_name, log.vips) = ("log".into(), "lines".into(), Vec::new());
        let mut endpoints = log.endpoints.to_vec();
        for (i, endpoint) in endpoints.iter_mut().enumerate() {
            endpoint.v4 = Some([10, 0, 0, i as u8].into());
            let name = format!("default/log.{i}");
            snapshot.workloads.insert(endpoint.workload, Arc::new(workload(endpoint.workload, &name)));
        }
        log.endpoints = endpoints.into();
        for service in [shop, log] {
            let name = format!("{}/{}", service.namespace, service.name);
            snapshot.names.insert(name.into(), [service.id].into());
            snapshot.services.insert(service.id, Arc::new(service));
        }
        snapshot
    }

    fn workload(id: u32, full_name: &str) -> Workload {
        Workload {
            host_network: false,
            outside: None,
            hbone: false,
            mtls: mesh_core::mtls::MtlsRules::default(),
            nearness: Nearness::Elsewhere,
            priority: 0,
            transport: None,
            id,
            full_name: full_name.into(),
            service_account: "default".into(),
            node: "".into(),
            local: false,
            identity: 1,
            mesh_ns: 1,
            policy_set: 0,
            looks: None,
            addresses: [].into(),
            ports: [].into(),
        }
    }

    #[track_caller]
    fn found(name: &str, turn: usize) -> Option<Found> {
        let labels: Labels = name.split('.').filter(|l| !l.is_empty()).map(str::to_owned).collect();
        look_up(&snapshot(), &labels, turn)
    }

    #[track_caller]
    fn check(name: &str, want: &[&str]) {
        let addresses: Vec<String> =
            found(name, 0).expect(name).addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, want, "{name}");
    }

    #[test]
    fn services_stand_for_their_virtual_addresses_or_their_endpoints() {
        check("shop.default", &["240.240.0.1", "fd00::1"]);
        check("log.default", &["10.0.0.0", "10.0.0.1"]);
        check("log-1.log.default", &["10.0.0.1"]);
        let second = found("log.default", 1).unwrap();
        assert_eq!(second.addresses[0].to_string(), "10.0.0.1");
    }

    #[test]
    fn a_name_above_one_that_exists_exists() {
        for name in ["", "default", "_tcp.shop.default", "_udp.log.default"] {
            assert_eq!(found(name, 0), Some(Found::default()), "{name}");
        }
        let unknown = [
            "defaul",
            "default2",
            "gone.default",
            "shop.other",
            "x.shop.default",
            "_udp.shop.default",
            "_http._udp.shop.default",
            "_._tcp.shop.default",
            "http._tcp.shop.default",
            "_lines.x.log.default",
            "a._http._tcp.shop.default",
        ];
        for name in unknown {
            assert_eq!(found(name, 0), None, "{name}");
        }
    }

    #[test]
    fn a_port_is_at_the_service_or_at_each_endpoint() {
        let labels = |name: &str| name.split('.').map(str::to_owned).collect::<Labels>();
        let shop = found("_http._tcp.shop.default", 0).unwrap();
        assert_eq!(shop.places, [Place { port: 80, weight: 1, host: labels("shop.default") }]);
        assert_eq!(shop.hosts.len(), 2);
        let log = found("_lines._udp.log.default", 1).unwrap();
        let hosts: Vec<Labels> = log.places.iter().map(|place| place.host.clone()).collect();
        assert_eq!(hosts, [labels("log-1.log.default"), labels("log-0.log.default")]);
        assert!(log.places.iter().all(|place| place.port == 9000 && place.weight == 1));
        assert_eq!(log.hosts[0], (labels("log-1.log.default"), "10.0.0.1".parse().unwrap()));
    }
}

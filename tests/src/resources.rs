//! YAML of the resources that stories use, and their virtual addresses.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The IPv4 VIP that stories give service `number`.
pub fn vip4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(240, 240, 0, number)
}

/// The IPv6 VIP that stories give service `number`.
pub fn vip6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x6e6d, 0, 0, 0, 0, 0, u16::from(number))
}

/// The IPv4 VIP as a socket of IPv6 asks for it.
pub fn mapped(number: u8, port: u16) -> SocketAddr {
    SocketAddr::from((vip4(number).to_ipv6_mapped(), port))
}

/// A `Service` under construction.
#[must_use]
pub struct Service {
    name: String,
    head: String,
    ports: String,
}

impl Service {
    /// With the VIPs [`vip4`] and [`vip6`] of `number`.
    pub fn vip(name: &str, number: u8) -> Self {
        let head = format!("  vips: [{}, '{}']\n", vip4(number), vip6(number));
        Self { name: name.to_owned(), head, ports: String::new() }
    }

    /// Without any VIP: found by its workloads' own addresses.
    pub fn headless(name: &str) -> Self {
        Self { name: name.to_owned(), head: "  headless: true\n".to_owned(), ports: String::new() }
    }

    /// A TCP port.
    pub fn tcp(self, name: &str, port: u16) -> Self {
        self.port(name, port, "tcp", "kernel")
    }

    /// A UDP port.
    pub fn udp(self, name: &str, port: u16) -> Self {
        self.port(name, port, "udp", "kernel")
    }

    /// An HTTP port.
    pub fn http(self, name: &str, port: u16) -> Self {
        self.port(name, port, "http", "kernel")
    }

    /// Any port: `protocol` and `inbound` as in the resource.
    pub fn port(mut self, name: &str, port: u16, protocol: &str, inbound: &str) -> Self {
        let _ = writeln!(
            self.ports,
            "  - {{name: {name}, port: {port}, protocol: {protocol}, inbound: {inbound}}}"
        );
        self
    }

    /// The document.
    pub fn yaml(&self) -> String {
        format!(
            "---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: {}, namespace: default}}\nspec:\n{}  ports:\n{}",
            self.name, self.head, self.ports
        )
    }
}

/// An `HTTPRoute` on port 80 of `service`: {path prefix, backends with weights}; backends' port is 80.
pub fn route(service: &str, rules: &[(&str, &[(&str, u32)])]) -> String {
    let mut text = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {service}, namespace: default}}\nspec:\n\
         \x20 parentRefs: [{{kind: Service, group: '', name: {service}, port: 80}}]\n  rules:\n"
    );
    for (prefix, backends) in rules {
        let _ = writeln!(
            text,
            "  - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n    backendRefs:"
        );
        for (backend, weight) in *backends {
            let _ = writeln!(text, "    - {{name: {backend}, port: 80, weight: {weight}}}");
        }
    }
    text
}

/// A `TCPRoute` or `UDPRoute` on port 80 of `service`: backends with weights; backends' port is 80.
pub fn l4_route(kind: &str, service: &str, backends: &[(&str, u32)]) -> String {
    let mut text = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {service}, namespace: default}}\nspec:\n\
         \x20 parentRefs: [{{kind: Service, group: '', name: {service}, port: 80}}]\n  rules:\n  - backendRefs:\n"
    );
    for (backend, weight) in backends {
        let _ = writeln!(text, "    - {{name: {backend}, port: 80, weight: {weight}}}");
    }
    text
}

/// A `TrafficPolicy` on `service` that says what happens without a proxy.
pub fn on_proxy_loss(service: &str, what: &str) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: default}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: {service}}}]\n  onProxyLoss: {what}\n"
    )
}

/// A `TrafficPolicy` on `service` with these lines of its spec.
pub fn traffic(service: &str, lines: &[&str]) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: default}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: {service}}}]\n  {}\n",
        lines.join("\n  ")
    )
}

/// Address and port.
pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// The mesh, with this mode of encryption where no policy says.
pub fn mesh_mtls(mode: &str) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// The mesh without encryption, with this mode of what may be opened to the outside.
pub fn mesh_egress(mode: &str) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Mesh\nmetadata: {{name: mesh}}\n\
         spec: {{mtls: {{mode: 'off'}}, egress: {{mode: {mode}}}}}\n"
    )
}

/// An `ExternalService` with these lines of its spec.
pub fn external(name: &str, lines: &[&str]) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: ExternalService\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  {}\n",
        lines.join("\n  ")
    )
}

/// An `AuthorizationPolicy` for workloads labelled `app: <app>` (empty: all of the namespace); `rules` is a flow
/// list as in `[{from: [{serviceAccounts: [a]}]}]`.
pub fn authorization(name: &str, app: &str, action: &str, rules: &str) -> String {
    let selector =
        if app.is_empty() { String::new() } else { format!("  selector: {{matchLabels: {{app: {app}}}}}\n") };
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n{selector}  action: {action}\n  rules: {rules}\n"
    )
}

/// A `TransportPolicy` with these lines of its spec.
pub fn transport(name: &str, lines: &[&str]) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: TransportPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  {}\n",
        lines.join("\n  ")
    )
}

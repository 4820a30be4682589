//! A gateway into the mesh: one listener, the routes of the services that it shows, its certificate.
//!
//! Listener, routes and secret go by the object's name, `<namespace>/<name>`; clusters and endpoints are those of the
//! ports that the routes lead to. A service without `hosts` is asked for by its name in the mesh.
//! Routes are a resource of their own, so that what changes in them touches no connection.

use std::collections::BTreeSet;

use mesh_api::resource::{EnvoyGateway, GatewayTls};
use serde_json::{Value, json};

use crate::cluster::ads;
use crate::grpc::router;
use crate::look::{Look, Target};
use crate::routes::{For, routes};

/// The connection manager of HTTP.
pub const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// What a gateway comes to.
#[derive(Debug, PartialEq)]
pub struct Gateway {
    /// The listener.
    pub listener: Value,
    /// Its routes.
    pub routes: Value,
    /// Its certificate.
    pub secret: Option<Value>,
    /// Ports that routes lead to, those that there are.
    pub targets: BTreeSet<Target>,
    /// What it shows and refers to, whether it is there or not.
    pub services: BTreeSet<(String, String)>,
}

/// Makes it; `namespace` and `name` are the object's.
pub fn gateway(look: &Look<'_>, namespace: &str, name: &str, spec: &EnvoyGateway) -> Gateway {
    let name = format!("{namespace}/{name}");
    let secret = spec.tls.as_ref().map(|tls| secret(&name, tls));
    let (mut hosts, mut targets, mut services) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut taken = BTreeSet::new();
    for shown in &spec.services {
        let target = Target::new(shown.namespace.as_deref().unwrap_or(namespace), &shown.name, shown.port);
        services.insert((target.namespace.clone(), target.service.clone()));
        let domains = if shown.hosts.is_empty() { vec![target.host()] } else { shown.hosts.clone() };
        // Envoy refuses routes in which a domain stands twice.
        let domains: Vec<String> = domains.into_iter().filter(|host| taken.insert(host.clone())).collect();
        if domains.is_empty() {
            continue;
        }
        let routes = if look.http_port(&target).is_some() {
            let found = routes(look, &target, For::Envoy);
            services.extend(found.targets.iter().map(|to| (to.namespace.clone(), to.service.clone())));
            targets.extend(found.targets.into_iter().filter(|to| look.port(to).is_some()));
            found.routes
        } else {
            vec![json!({ "match": { "prefix": "/" }, "direct_response": { "status": 503 } })]
        };
        hosts.push(json!({ "name": target.to_string(), "domains": domains, "routes": routes }));
    }
    let routes = json!({
        "name": name,
        "ignore_port_in_host_matching": true,
        "virtual_hosts": hosts,
    });
    Gateway { listener: listener(&name, spec), routes, secret, targets, services }
}

fn listener(name: &str, spec: &EnvoyGateway) -> Value {
    let address = spec.address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
    let socket = json!({ "address": address, "port_value": spec.port, "ipv4_compat": address == "::" });
    let manager = json!({
        "@type": MANAGER,
        "stat_prefix": "gateway",
        "rds": { "route_config_name": name, "config_source": ads() },
        "http_filters": [router()],
        "use_remote_address": true,
        "server_header_transformation": "PASS_THROUGH",
        "request_headers_timeout": "30s",
    });
    let mut chain = json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
    }]});
    if spec.tls.is_some() {
        let certificate = json!({ "name": secret_name(name), "sds_config": ads() });
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": { "@type": TLS, "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificate_sds_secret_configs": [certificate],
            }},
        });
    }
    json!({ "name": name, "address": { "socket_address": socket }, "filter_chains": [chain] })
}

fn secret_name(gateway: &str) -> String {
    format!("{gateway}/tls")
}

/// The files stay on Envoy's machine: what is sent are their names.
fn secret(gateway: &str, tls: &GatewayTls) -> Value {
    json!({
        "name": secret_name(gateway),
        "tls_certificate": {
            "certificate_chain": { "filename": tls.certificate_file },
            "private_key": { "filename": tls.key_file },
        },
    })
}

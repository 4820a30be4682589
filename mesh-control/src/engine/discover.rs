//! Where a service is, for programs outside of the mesh that balance by themselves.

use mesh_api::error::{ApiError, Reason};
use mesh_api::proto::v1::Health;
use mesh_api::resource::{Key, Kind, Spec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Engine;
use crate::ca::hex;

impl Engine {
    /// Healthy endpoints of a service that take new connections, of one port or all; `index` says them apart: it is
    /// the same as long as the endpoints are.
    pub fn discover(&self, namespace: &str, service: &str, port: Option<&str>) -> Result<Value, ApiError> {
        let registry = self.registry.lock();
        let key = Key::new(Kind::Service, namespace, service);
        let Some(Spec::Service(spec)) = registry.get(&key).map(|object| &object.spec) else {
            return Err(key.not_found());
        };
        let asked =
            |name: &str, number: u16| port.is_none_or(|asked| asked == name || asked.parse() == Ok(number));
        let ports: Vec<_> = spec.ports.iter().filter(|port| asked(&port.name, port.port)).collect();
        if ports.is_empty() {
            let all: Vec<_> = spec.ports.iter().map(|port| port.port.to_string()).collect();
            return Err(ApiError::new(Reason::NotFound, "port", json!(port), all.join(", ")));
        }
        let mut endpoints = Vec::new();
        for (workload, one) in registry.endpoints(&key) {
            let of = |port: &&&mesh_api::resource::ServicePort| {
                u32::from(port.port) == one.service_port && port.protocol.is_udp() == one.udp
            };
            let (Some(port), Some(object)) = (ports.iter().find(of), registry.get(&workload)) else {
                continue;
            };
            let Spec::Workload(spec) = &object.spec else { continue };
            if one.health() != Health::Healthy || one.weight == 0 {
                continue;
            }
            endpoints.push(json!({
                "workload": workload.wire_name(),
                "node": spec.node,
                "addresses": spec.addresses,
                "port": port.port,
                "portName": port.name,
                "targetPort": one.target_port,
                "weight": one.weight,
                "priority": spec.priority,
                "locality": spec.locality,
            }));
        }
        let ports: Vec<Value> = ports
            .iter()
            .map(|port| json!({ "name": port.name, "port": port.port, "protocol": port.protocol }))
            .collect();
        let text = json!([ports, endpoints]).to_string();
        let index = hex(&Sha256::digest(text)[..8]);
        Ok(json!({
            "service": key.wire_name(),
            "index": index,
            "revision": registry.revision(),
            "ports": ports,
            "endpoints": endpoints,
        }))
    }
}

//! `GET /v1/authz/check`: would this caller be let in, and which rule decides?
//!
//! Here what was asked becomes resources; mesh-core's `check` decides, with the compiler of the agents. Costs the
//! policies of one namespace, whatever the size of the mesh.

use std::net::IpAddr;

use mesh_api::error::{ApiError, Reason};
use mesh_api::proto::v1;
use mesh_api::resource::{Key, Kind};
use mesh_api::spiffe::SpiffeId;
use mesh_core::check::{Answer, Question, Sample, Source, check};
use mesh_core::model::{self, Raw, Resource};
use mesh_registry::registry::{Registry, WireResource};
use serde_json::{Value, json};

use super::Engine;

const SOURCE: &str = "a workload [NAMESPACE/]NAME, an identity spiffe://…, or an IP address";
const DESTINATION: &str = "a workload or a service, [NAMESPACE/]NAME";
const PORT: &str = "1..=65535; may be left out where the destination serves one port alone";

impl Engine {
    /// What would become of connections from `source` to `destination`, and of a request on them; one item a workload
    /// and port.
    pub fn check_authorization(
        &self,
        source: &str,
        destination: &str,
        port: Option<u16>,
        request: Option<&Sample>,
    ) -> Result<Value, ApiError> {
        let registry = self.registry.lock();
        let caller = source_of(&registry, source)?;
        let called = destinations(&registry, destination, port)?;
        let mut items = Vec::with_capacity(called.len());
        for (key, port) in called {
            let Some(workload) = workload(&registry, &key) else { continue };
            let resources = around(&registry, &key.namespace, &caller);
            let question = Question {
                source: caller.clone(),
                called: workload,
                port,
                request: request.cloned(),
                resources,
            };
            let answer =
                check(question).map_err(|why| refuse("destination", destination, DESTINATION, why))?;
            items.push(item(&key, port, &answer));
        }
        Ok(json!({ "source": source, "items": items }))
    }
}

fn refuse(field: &str, value: &str, accepted: &str, why: String) -> ApiError {
    ApiError::new(Reason::NotFound, field, value.into(), accepted).saying(why)
}

fn item(key: &Key, port: u16, answer: &Answer) -> Value {
    json!({
        "workload": format!("{}/{}", key.namespace, key.name),
        "port": port,
        "allowed": answer.allowed,
        "depends": answer.depends,
        "decided": answer.decided,
        "proof": answer.proof,
        "policies": answer.policies,
    })
}

fn key(kind: Kind, text: &str) -> Key {
    match text.split_once('/') {
        Some((namespace, name)) => Key::new(kind, namespace, name),
        None => Key::new(kind, mesh_api::resource::DEFAULT_NAMESPACE, text),
    }
}

fn workload(registry: &Registry, key: &Key) -> Option<v1::Workload> {
    prost::Message::decode(&*registry.wire_of(key)?.body).ok()
}

fn source_of(registry: &Registry, text: &str) -> Result<Source, ApiError> {
    let unknown = |why: String| refuse("source", text, SOURCE, why);
    if text.starts_with("spiffe://") {
        return text.parse::<SpiffeId>().map(Source::Identity).map_err(|why| unknown(why.to_string()));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Source::Address(address));
    }
    let found = workload(registry, &key(Kind::Workload, text));
    found
        .map(|found| Source::Workload(Box::new(found)))
        .ok_or_else(|| unknown(format!("there is no workload {text}")))
}

/// The workloads that are meant, each with a port.
fn destinations(registry: &Registry, text: &str, port: Option<u16>) -> Result<Vec<(Key, u16)>, ApiError> {
    let own = key(Kind::Workload, text);
    if let Some(found) = workload(registry, &own) {
        let mut served = found.services.iter().filter(|one| !one.udp).map(|one| one.target_port as u16);
        let only = served.next().filter(|first| served.all(|other| other == *first));
        let port = port.or(only).ok_or_else(|| {
            let why = format!("workload {text} serves several ports or none: say which one is meant");
            ApiError::new(Reason::MissingField, "port", Value::Null, PORT).saying(why)
        })?;
        return Ok(vec![(own, port)]);
    }
    let endpoints = registry.endpoints(&key(Kind::Service, text));
    let meant = |one: &v1::WorkloadService| port.is_none_or(|port| one.service_port == u32::from(port));
    let tcp = endpoints.into_iter().filter(|(_, one)| !one.udp && meant(one));
    let all: Vec<_> = tcp.map(|(key, one)| (key, one.target_port as u16)).collect();
    if all.is_empty() {
        let at = port.map_or_else(String::new, |port| format!(" at port {port}"));
        let why = format!("there is no workload {text}, nor does a workload serve a service {text}{at}");
        return Err(refuse("destination", text, DESTINATION, why));
    }
    Ok(all)
}

/// The mesh, the policies of the namespace that is called, and all that say how connections are carried.
fn around(registry: &Registry, namespace: &str, caller: &Source) -> Vec<Resource> {
    let of = |kind, into, wanted: &dyn Fn(&WireResource) -> bool| -> Vec<Resource> {
        let found = registry.wire(kind).filter(|wire| wanted(wire));
        found
            .filter_map(|wire| Resource::new(into, &wire.key.wire_name(), Raw::new("", &wire.body)).ok())
            .collect()
    };
    let own = |wire: &WireResource| wire.key.namespace == namespace;
    let either = |wire: &WireResource| {
        let callers = matches!(caller, Source::Workload(w) if w.namespace == wire.key.namespace);
        callers || own(wire) || wire.key.namespace == mesh_api::resource::ROOT_NAMESPACE
    };
    let mut all = of(Kind::Mesh, model::Kind::Mesh, &|_| true);
    all.extend(of(Kind::AuthorizationPolicy, model::Kind::AuthorizationPolicy, &own));
    all.extend(of(Kind::TransportPolicy, model::Kind::TransportPolicy, &either));
    all
}

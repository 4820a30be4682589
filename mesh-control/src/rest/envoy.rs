//! Envoys over REST: resources by node type in one request, as people who come from sxds are used to; what each Envoy
//! has taken and refused; discovery by polling.
//!
//! `/v1/envoy/{node_type}` and `/resources/{node_type}` write the `EnvoyResources` of that name in the namespace
//! `default`; other objects of the same type stand beside it. A `version` in the body is taken and not looked at:
//! versions are hashes here.
//! `/v3/discovery:…` is for who has a token of that node type.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{DEFAULT_NAMESPACE, Key, Kind, NODE_TYPE, Resource, node_type_of};
use mesh_envoy::catalog::Want;
use mesh_envoy::codec::Type;
use mesh_envoy::session::NAMES_MAX;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Text, expected};
use super::caller::{Administrator, Reader, Writer};
use super::error::Refused;
use super::extract::At;
use super::guard::Identity;
use super::{Api, Site};
use crate::auth::Role;
use crate::clock::unix_s;
use crate::engine::Engine;
use crate::engine::writes::Manner;
use crate::envoy::certificate::{NoCertificate, issue};

type Shared = State<Arc<Engine>>;

/// The paths of this page.
pub fn routes(api: Api) -> Api {
    let mut api = api
        .route("/v1/proxies", get(proxies))
        .route("/v1/envoy/{node_type}", get(read).put(write).delete(remove))
        .route("/v1/envoy/{node_type}/certificate", post(certificate))
        .route("/resources/{node_type}", put(write_plain));
    for of in Type::ALL {
        let answer = async move |Polling(node_type): Polling, State(engine): Shared, text: Text| {
            poll(of, &node_type, &engine, &text)
        };
        api = api.route(polled(of), post(answer));
    }
    api
}

/// Where resources of a type are polled.
const fn polled(of: Type) -> &'static str {
    match of {
        Type::Cluster => "/v3/discovery:clusters",
        Type::Endpoints => "/v3/discovery:endpoints",
        Type::Listener => "/v3/discovery:listeners",
        Type::Route => "/v3/discovery:routes",
        Type::Secret => "/v3/discovery:secrets",
    }
}

async fn proxies(_: Reader, State(engine): Shared) -> Json<Value> {
    let all = engine.envoys.proxies.list();
    let types: BTreeSet<String> = all.iter().map(|proxy| proxy.node_type.clone()).collect();
    let problems: serde_json::Map<String, Value> = types
        .into_iter()
        .map(|of| {
            let (_, problems) = engine.read(|registry| engine.envoys.about(registry, &of));
            (of, json!(problems))
        })
        .collect();
    Json(json!({ "items": all, "problems": problems }))
}

/// The object that a node type's path stands for.
fn key(node_type: &str) -> Result<Key, Refused> {
    let accepted = format!("{}, in lower case and without '_' and '.'", NODE_TYPE.accepted);
    if !(NODE_TYPE.holds)(node_type) || !mesh_api::name::is_label(node_type) {
        let error = ApiError::new(Reason::BadFormat, "node_type", node_type.into(), accepted.clone());
        let text = format!(
            "{node_type:?} cannot be written here: accepted is {accepted}; others by an EnvoyResources with spec.nodeType"
        );
        return Err(error.saying(text).into());
    }
    Ok(Key::new(Kind::EnvoyResources, DEFAULT_NAMESPACE, node_type))
}

async fn read(_: Reader, State(engine): Shared, At(node_type): At<String>) -> Result<Json<Value>, Refused> {
    let resources = engine.read(|registry| {
        let want = Want { all: true, names: BTreeSet::new() };
        let all = Type::ALL.map(|of| (of, engine.envoys.wanted(registry, &node_type, of, &want)));
        let (objects, problems) = engine.envoys.about(registry, &node_type);
        let mut answer = json!({ "nodeType": node_type, "objects": objects, "problems": problems });
        for (of, set) in all {
            answer[of.plural()] = set.values().map(|resource| resource.json.clone()).collect();
        }
        answer
    });
    if resources["objects"] == 0 {
        return Err(Refused::not_found(&format!("an EnvoyResources of node type {node_type}")));
    }
    Ok(Json(resources))
}

async fn write(
    Writer(who): Writer,
    State(engine): Shared,
    At(node_type): At<String>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    let key = key(&node_type)?;
    let mut spec: Value = text.json("{listeners?, clusters?, routes?, endpoints?, secrets?, gateway?}")?;
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("version");
    }
    let resource = Resource::parse(&json!({
        "apiVersion": Kind::EnvoyResources.api_version(),
        "kind": Kind::EnvoyResources.name(),
        "metadata": { "name": key.name, "namespace": key.namespace },
        "spec": spec,
    }))?;
    let manner = Manner { expect: expected(&headers)?, ..Manner::rest(who.by()) };
    let written = engine.put(manner, resource).await?;
    engine.applied(written.revision).await;
    tracing::info!(token = %who.token, %key, revision = written.revision, "applied");
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let (_, problems) = engine.read(|registry| engine.envoys.about(registry, &node_type));
    Ok((status, Json(json!({ "revision": written.revision, "problems": problems }))).into_response())
}

/// As sxds answers.
async fn write_plain(
    who: Writer,
    state: Shared,
    path: At<String>,
    headers: HeaderMap,
    text: Text,
) -> Result<&'static str, Refused> {
    write(who, state, path, headers, text).await.map(|_| "true")
}

async fn remove(
    Writer(who): Writer,
    State(engine): Shared,
    At(node_type): At<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refused> {
    let key = key(&node_type)?;
    let manner = Manner { expect: expected(&headers)?, ..Manner::rest(who.by()) };
    let revision = engine.delete(manner, key.clone()).await?;
    engine.applied(revision).await;
    tracing::info!(token = %who.token, %key, revision, "deleted");
    Ok(Json(json!({ "revision": revision })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    csr: String,
}

async fn certificate(
    Administrator(who): Administrator,
    State(site): State<Arc<Site>>,
    At(node_type): At<String>,
    text: Text,
) -> Result<Json<Value>, Refused> {
    if !(NODE_TYPE.holds)(&node_type) {
        let error = ApiError::new(Reason::BadFormat, "node_type", node_type.into(), NODE_TYPE.accepted);
        return Err(error.into());
    }
    let asked: Asked = text.json("{csr: PEM}")?;
    tracing::info!(by = %who.token, node_type, "certificate asked for");
    let issued = tokio::task::spawn_blocking(move || {
        issue(&site.engine, &site.office, &node_type, &asked.csr, unix_s())
    });
    match issued.await {
        Ok(Ok(answer)) => Ok(Json(answer)),
        Ok(Err(NoCertificate::Request(text))) => {
            let error =
                ApiError::new(Reason::BadFormat, "csr", "(not shown)".into(), "PKCS#10 in PEM, ECDSA P-256");
            Err(error.saying(format!("csr: {text}")).into())
        }
        Ok(Err(NoCertificate::Server(text))) => Err(Refused::unavailable(&text)),
        Err(error) => Err(Refused::unavailable(&error.to_string())),
    }
}

/// May ask for what nodes of this type have.
struct Polling(String);

impl<S: Sync> FromRequestParts<S> for Polling {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let accepted = "a token of `meshctl token create --envoy TYPE`";
        match parts.extensions.get::<Identity>() {
            Some(Identity::Known(principal)) if principal.role == Role::Envoy => {
                Ok(Self(principal.node.clone()))
            }
            Some(Identity::Known(principal)) => {
                let error = ApiError::new(Reason::Forbidden, "", principal.role.name().into(), accepted);
                Err(error.saying(format!("discovery takes {accepted}")).into())
            }
            _ => {
                let error = ApiError::new(Reason::Unauthenticated, "", Value::Null, accepted);
                Err(error.saying(format!("the request has no valid token; it takes {accepted}")).into())
            }
        }
    }
}

/// What is read of a `DiscoveryRequest` in JSON; either spelling.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Discovery {
    #[serde(alias = "versionInfo")]
    version_info: String,
    node: Node,
    #[serde(alias = "resourceNames")]
    resource_names: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    id: String,
}

/// One look: 304 where nothing is new.
fn poll(of: Type, node_type: &str, engine: &Engine, text: &Text) -> Result<Response, Refused> {
    let asked: Discovery = text.json("a DiscoveryRequest of Envoy's API v3")?;
    if node_type_of(&asked.node.id) != node_type {
        let accepted = format!("an id that begins with {node_type}-");
        let error = ApiError::new(Reason::Forbidden, "node.id", asked.node.id.as_str().into(), accepted);
        return Err(error.into());
    }
    if asked.resource_names.len() > NAMES_MAX {
        let accepted = format!("up to {NAMES_MAX} names");
        return Err(ApiError::new(Reason::OutOfRange, "resource_names", Value::Null, accepted).into());
    }
    let whole = matches!(of, Type::Cluster | Type::Listener) && asked.resource_names.is_empty();
    let star = asked.resource_names.iter().any(|name| name == "*");
    let names = asked.resource_names.iter().map(|name| Arc::from(name.as_str())).collect();
    let want = Want { all: whole || star, names };
    let set = engine.read(|registry| engine.envoys.wanted(registry, node_type, of, &want));
    let version = mesh_envoy::session::version_of(set.iter());
    if *version == *asked.version_info {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let resources: Vec<Value> = set
        .values()
        .map(|resource| {
            let mut json = resource.json.clone();
            json["@type"] = of.url().into();
            json
        })
        .collect();
    let body = json!({ "version_info": &*version, "type_url": of.url(), "resources": resources });
    Ok(Json(body).into_response())
}

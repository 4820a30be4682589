//! What a client of gRPC is told that dials `xds:///<service>.<namespace>.mesh:<port>`: a listener of that name, which
//! names routes of that name, which name clusters.

use serde_json::{Value, json};

use crate::cluster::ads;
use crate::gateway::MANAGER;
use crate::look::{Look, Target};
use crate::routes::{For, routes};

/// The listener.
pub fn listener(look: &Look<'_>, target: &Target) -> Option<Value> {
    look.port(target)?;
    let name = target.to_string();
    Some(json!({
        "name": name,
        "api_listener": { "api_listener": {
            "@type": MANAGER,
            "rds": { "route_config_name": name, "config_source": ads() },
            "http_filters": [router()],
        }},
    }))
}

/// The routes.
pub fn route_configuration(look: &Look<'_>, target: &Target) -> Option<Value> {
    look.port(target)?;
    let name = target.to_string();
    let routes = routes(look, target, For::Grpc).routes;
    Some(json!({
        "name": name,
        "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": routes }],
    }))
}

/// The filter that every chain ends with.
pub fn router() -> Value {
    let url = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": url } })
}

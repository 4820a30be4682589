//! Who is asking, once for every request: before the handler the address and the token are looked at, after it the
//! audit log is written.
//!
//! request ─▶ **guard** ─[`Identity`]─▶ [`super::caller`] (the right) ─▶ handler ─[`Did`], [`Refusal`]─▶ **guard** ─▶ log
//!
//! Invariants: a token is looked up once; an address that came with wrong tokens too often is answered 429 before its
//! token is looked at; every write and every refusal for want of a right is one line.
//! Not here: which right a handler needs.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mesh_api::error::Reason;
use serde_json::{Value, json};

use super::Site;
use super::error::Refused;
use crate::auth::Principal;
use crate::auth::table::NoToken;
use crate::clock::unix_ms;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub IpAddr);

/// Who is asking; what [`super::caller`] finds in a request.
#[derive(Clone, Debug)]
pub enum Identity {
    /// The owner of a valid token.
    Known(Arc<Principal>),
    /// It shows none.
    Nobody,
    /// It shows one that is not valid.
    Wrong(NoToken),
}

/// What a handler changed; in its answer, for the audit log.
#[derive(Clone, Debug, Default)]
pub struct Did {
    /// `created`, `deleted` …
    pub what: String,
    /// Of what.
    pub object: String,
    /// The store's revision since.
    pub revision: u64,
}

/// Why a request was refused; in the answer, for the audit log.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// What runs around every handler.
pub async fn guard(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let from = request.extensions().get::<Client>().map_or(Ipv4Addr::UNSPECIFIED.into(), |client| client.0);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let dry_run = request.uri().query().is_some_and(|query| query.contains("dryRun=true"));
    let identity = match identify(&site, &request, from) {
        Ok(identity) => identity,
        Err(refused) => {
            let response = refused.into_response();
            log(&site, (from, &method, &path, dry_run), None, &response);
            return response;
        }
    };
    let who = match &identity {
        Identity::Known(who) => Some(who.clone()),
        _ => None,
    };
    request.extensions_mut().insert(identity);
    let response = next.run(request).await;
    log(&site, (from, &method, &path, dry_run), who.as_deref(), &response);
    response
}

fn identify(site: &Site, request: &Request, from: IpAddr) -> Result<Identity, Refused> {
    let Some(shown) = request.headers().get(header::AUTHORIZATION) else { return Ok(Identity::Nobody) };
    let (now, metrics) = (Instant::now(), &site.engine.metrics);
    if let Some(wait) = site.attempts.lock().wait(from, now) {
        metrics.logins_limited.inc();
        return Err(Refused::too_many(
            "too many requests with wrong tokens came from this address: no token of it is looked at for now",
            wait,
        ));
    }
    let bearer = shown.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    let found =
        bearer.map_or(Err(NoToken::Unknown), |text| site.engine.tokens.authenticate(text.trim(), unix_ms()));
    match found {
        Ok(principal) => Ok(Identity::Known(Arc::new(principal))),
        Err(no) => {
            metrics.logins_refused.inc();
            site.attempts.lock().failed(from, now);
            Ok(Identity::Wrong(no))
        }
    }
}

fn log(
    site: &Site,
    (from, method, path, dry_run): (IpAddr, &Method, &str, bool),
    who: Option<&Principal>,
    response: &Response,
) {
    let status = response.status();
    let reads = *method == Method::GET || *method == Method::HEAD || *method == Method::OPTIONS;
    let denied =
        matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS);
    // What is said every few seconds by programs changes nothing that anybody decided; discovery only reads.
    let routine = status.is_success() && (path.ends_with("/heartbeat") || path.starts_with("/v3/"));
    if (reads && !denied) || routine {
        return;
    }
    let mut line = json!({
        "atMs": unix_ms(),
        "from": from,
        "method": method.as_str(),
        "path": path,
        "status": status.as_u16(),
    });
    if let Some(who) = who {
        line["by"] = json!({ "id": who.token, "name": who.name, "role": who.role });
    }
    if dry_run {
        line["dryRun"] = true.into();
    }
    if let Some(did) = response.extensions().get::<Did>() {
        line["what"] = did.what.as_str().into();
        line["object"] = did.object.as_str().into();
        line["revision"] = did.revision.into();
    }
    if let Some(refusal) = response.extensions().get::<Refusal>() {
        line["refused"] = json!(refusal.reason);
        line["message"] = refusal.message.chars().take(512).collect::<String>().into();
    }
    if !site.audit.write(&line) {
        site.engine.metrics.audit_lost.inc();
    }
}

/// Whole seconds, at least one: what `Retry-After` says.
pub fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0 || wait.is_zero())
}

/// `GET /v1/audit`: the newest lines.
pub fn newest(site: &Site, most: usize) -> Result<Vec<Value>, Refused> {
    site.audit.newest(most).map_err(|error| {
        Refused::unavailable(&format!(
            "cannot read the audit log ({error}); look at audit.log of the data directory"
        ))
    })
}

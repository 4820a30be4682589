//! What was done for workloads that do not get well: remembered for people, and told to webhooks.
//!
//! agents ─RecoveryEvent─▶ **hooks** ─▶ the last [`KEPT`] events; POST, again with back-off
//!
//! Invariants: at most [`OUTSTANDING`] deliveries wait or are under way, what is more is counted and left out; a
//! delivery ends after [`TRIES`] tries; no redirect is followed; without TLS only loopback is told. Nothing here
//! delays a session. Not here: when somebody is to be told (agents).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1::RecoveryEvent;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::jwks::fetch;
use crate::metrics::Counter;

/// Events that are remembered.
const KEPT: usize = 256;
/// Deliveries that wait or are under way.
const OUTSTANDING: usize = 64;
/// At once.
const AT_ONCE: usize = 8;
/// How often one is tried.
const TRIES: u32 = 5;
/// How long one try may take.
const TIME: Duration = Duration::from_secs(5);
/// Until the second try; twice as long each time after that.
const AGAIN: Duration = Duration::from_secs(1);
/// Most characters of a text from an agent.
const TEXT: usize = 512;

/// Events and deliveries.
pub struct Hooks {
    events: Mutex<VecDeque<Value>>,
    outstanding: Arc<Semaphore>,
    at_once: Arc<Semaphore>,
    /// Deliveries that were answered by 2xx.
    pub delivered: Counter,
    /// That were not, after all tries.
    pub failed: Counter,
    /// That found no room.
    pub dropped: Counter,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            events: Mutex::default(),
            outstanding: Arc::new(Semaphore::new(OUTSTANDING)),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            delivered: Counter::default(),
            failed: Counter::default(),
            dropped: Counter::default(),
        }
    }
}

impl Hooks {
    /// Takes what the agent of a node says; a webhook is told of it.
    pub fn take(self: &Arc<Self>, node: &str, event: &RecoveryEvent) {
        let cut = |text: &str| text.chars().take(TEXT).collect::<String>();
        let (namespace, service) = (cut(&event.namespace), cut(&event.service));
        let page = json!({
            "service": format!("{namespace}/{service}"),
            "workload": format!("{namespace}/{}", cut(&event.workload)),
            "node": node,
            "action": cut(&event.action),
            "health": if event.healthy { "healthy" } else { "unhealthy" },
            "reason": cut(&event.reason),
            "atMs": event.at_ms,
        });
        tracing::info!(event = %page, "recovery");
        self.note(page.clone());
        if !event.url.is_empty() && event.url.len() <= 1024 {
            self.tell(event.url.clone(), page);
        }
    }

    /// The last events of a service, the latest last.
    pub fn of(&self, service: &str) -> Vec<Value> {
        self.events.lock().iter().filter(|event| event["service"] == service).cloned().collect()
    }

    /// What was counted, for `/metrics`.
    pub fn page(&self) -> String {
        let name = "mesh_control_webhooks_total";
        let mut out = format!(
            "# HELP {name} Webhooks of recoveries: delivered; failed, after {TRIES} tries; dropped, with {OUTSTANDING} outstanding.\n\
             # TYPE {name} counter\n"
        );
        let all = [("delivered", &self.delivered), ("failed", &self.failed), ("dropped", &self.dropped)];
        for (outcome, counter) in all {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name}{{outcome=\"{outcome}\"}} {}", counter.get());
        }
        out
    }

    fn note(&self, event: Value) {
        let mut events = self.events.lock();
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
    }

    fn tell(self: &Arc<Self>, url: String, page: Value) {
        let Ok(room) = self.outstanding.clone().try_acquire_owned() else {
            self.dropped.inc();
            tracing::warn!(url, "a webhook is not told: {OUTSTANDING} deliveries are outstanding");
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            let told = this.deliver(&url, &page).await;
            let mut result = page;
            result["action"] = "webhook".into();
            result["reason"] = match &told {
                Ok(()) => format!("{url} was told").into(),
                Err(error) => format!("{url} could not be told: {error}").into(),
            };
            match told {
                Ok(()) => this.delivered.inc(),
                Err(error) => {
                    this.failed.inc();
                    tracing::warn!(url, error, "a webhook could not be told");
                }
            }
            this.note(result);
            drop(room);
        });
    }

    async fn deliver(&self, url: &str, page: &Value) -> Result<(), String> {
        let mut wait = AGAIN;
        let mut failed = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            let Ok(_turn) = self.at_once.acquire().await else { return Err("ending".to_owned()) };
            let (to, body) = (url.to_owned(), page.to_string());
            match tokio::task::spawn_blocking(move || post(&to, &body)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => failed = error,
                Err(error) => failed = error.to_string(),
            }
        }
        Err(failed)
    }
}

/// One POST.
fn post(url: &str, body: &str) -> Result<(), String> {
    if !url.starts_with("https://") && !fetch::is_loopback(url) {
        return Err("without TLS only loopback of the control plane is told: give an https:// URL".to_owned());
    }
    let agent = fetch::agent(fetch::system()?, TIME);
    let sent = agent.post(url).header("content-type", "application/json").send(body);
    match sent.map_err(|error| error.to_string())?.status().as_u16() {
        200..=299 => Ok(()),
        status => Err(format!("it answers {status}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn event(url: &str) -> RecoveryEvent {
        RecoveryEvent {
            namespace: "shop".into(),
            workload: "cart-1".into(),
            service: "cart".into(),
            action: "webhook".into(),
            url: url.into(),
            reason: "GET /health: 500".into(),
            ..RecoveryEvent::default()
        }
    }

    #[tokio::test]
    async fn a_webhook_is_told_again_until_it_takes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut bodies = Vec::new();
            for status in ["503 Service Unavailable", "204 No Content"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut seen = Vec::new();
                while !seen.ends_with(b"}") {
                    let mut piece = [0; 1024];
                    let read = stream.read(&mut piece).unwrap();
                    seen.extend_from_slice(&piece[..read]);
                }
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .unwrap();
                bodies.push(String::from_utf8(seen).unwrap());
            }
            bodies
        });
        let hooks = Arc::new(Hooks::default());
        hooks.take("n1", &event(&url));
        while hooks.delivered.get() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let bodies = server.join().unwrap();
        assert!(
            bodies[1].starts_with("POST /hook ") && bodies[1].contains("\"reason\":\"GET /health: 500\""),
            "{bodies:?}"
        );
        assert_eq!(hooks.of("shop/cart").len(), 2);
    }

    #[tokio::test]
    async fn there_are_bounds() {
        let hooks = Arc::new(Hooks::default());
        for _ in 0..OUTSTANDING + 3 {
            hooks.take("n1", &event("http://192.0.2.1/"));
        }
        assert_eq!(hooks.dropped.get(), 3);
        for _ in 0..2 * KEPT {
            hooks.take("n1", &event(""));
        }
        assert_eq!(hooks.of("shop/cart").len(), KEPT);
        assert!(post("http://192.0.2.1/", "{}").unwrap_err().contains("https://"));
    }
}

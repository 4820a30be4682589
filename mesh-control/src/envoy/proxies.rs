//! What is known of each Envoy and client of gRPC: shown by `GET /v1/proxies`, decided nowhere.
//!
//! Invariant: an entry exists only for who came with a valid token or certificate, and there are at most
//! [`PROXIES_MAX`]; texts from outside are cut.

use std::collections::BTreeMap;

use mesh_envoy::codec::Type;
use mesh_envoy::session::Variant;
use parking_lot::Mutex;
use serde::Serialize;

/// How many are remembered.
const PROXIES_MAX: usize = 4096;
/// How much of an id or a version.
const TEXT: usize = 256;

/// All that came, by node id and type.
#[derive(Default)]
pub struct Proxies(Mutex<BTreeMap<(String, String), Proxy>>);

/// One as status shows it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Its id.
    pub node: String,
    /// Its type.
    pub node_type: String,
    /// What it calls itself, with its version.
    pub client: String,
    /// `world` or `delta`.
    pub variant: &'static str,
    /// Streams that it has now.
    pub streams: usize,
    /// By type of resource.
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// How far it is with one type.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// Resources in the last response.
    pub sent: usize,
    /// Version last sent.
    pub version: String,
    /// Version last taken.
    pub acked: String,
    /// Why the last response was refused; absent when it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nack: Option<String>,
}

/// One stream's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    key: (String, String),
}

impl Proxies {
    /// A stream begins; `None`: too many.
    pub fn begins(&self, node: &str, node_type: &str, client: &str, variant: Variant) -> Option<Seat> {
        let key = (cut(node), node_type.to_owned());
        let mut all = self.0.lock();
        if all.len() >= PROXIES_MAX && !all.contains_key(&key) {
            // Room is made by one that left.
            let gone = all.iter().find(|(_, proxy)| proxy.streams == 0).map(|(key, _)| key.clone())?;
            all.remove(&gone);
        }
        let proxy = all.entry(key.clone()).or_default();
        proxy.node.clone_from(&key.0);
        proxy.node_type.clone_from(&key.1);
        proxy.client = cut(client);
        proxy.variant = match variant {
            Variant::World => "world",
            Variant::Delta => "delta",
        };
        proxy.streams += 1;
        Some(Seat { key })
    }

    fn with(&self, seat: &Seat, change: impl FnOnce(&mut Proxy)) {
        if let Some(proxy) = self.0.lock().get_mut(&seat.key) {
            change(proxy);
        }
    }

    /// A stream ended.
    pub fn ends(&self, seat: &Seat) {
        self.with(seat, |proxy| proxy.streams = proxy.streams.saturating_sub(1));
    }

    /// A response was sent.
    pub fn sent(&self, seat: &Seat, of: Type, version: &str, resources: usize) {
        self.with(seat, |proxy| {
            let status = proxy.types.entry(of.plural()).or_default();
            (status.sent, status.version) = (resources, version.to_owned());
        });
    }

    /// The last response was taken, or why not.
    pub fn answered(&self, seat: &Seat, of: Type, answer: Result<(), String>) {
        self.with(seat, |proxy| {
            let status = proxy.types.entry(of.plural()).or_default();
            match answer {
                Ok(()) => {
                    status.acked = status.version.clone();
                    status.nack = None;
                }
                Err(text) => status.nack = Some(text),
            }
        });
    }

    /// It came with what it should have.
    pub fn has(&self, seat: &Seat, of: Type, version: &str) {
        self.with(seat, |proxy| {
            let status = proxy.types.entry(of.plural()).or_default();
            (status.version, status.acked) = (version.to_owned(), version.to_owned());
        });
    }

    /// All of them.
    pub fn list(&self) -> Vec<Proxy> {
        self.0.lock().values().cloned().collect()
    }

    /// How many have a stream.
    pub fn connected(&self) -> usize {
        self.0.lock().values().filter(|proxy| proxy.streams > 0).count()
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stands_until_the_next_answer() {
        let proxies = Proxies::default();
        let seat = proxies.begins("edge-1", "edge", "envoy", Variant::World).unwrap();
        proxies.sent(&seat, Type::Cluster, "v1", 3);
        proxies.answered(&seat, Type::Cluster, Err("no".into()));
        let status = proxies.list()[0].types["clusters"].clone();
        assert_eq!((status.acked.as_str(), status.nack.as_deref()), ("", Some("no")));
        proxies.answered(&seat, Type::Cluster, Ok(()));
        let status = proxies.list()[0].types["clusters"].clone();
        assert_eq!((status.acked.as_str(), status.nack), ("v1", None));
        assert_eq!(proxies.connected(), 1);
        proxies.ends(&seat);
        assert_eq!(proxies.connected(), 0);
    }

    #[test]
    fn those_that_left_make_room() {
        let proxies = Proxies::default();
        let begin = |name: &str| proxies.begins(name, "t", "", Variant::Delta);
        let seats: Vec<_> = (0..PROXIES_MAX).map(|i| begin(&format!("t-{i}")).unwrap()).collect();
        assert_eq!(begin("more"), None);
        proxies.ends(&seats[7]);
        assert!(begin("more").is_some());
    }
}

//! One object that a command is about: `KIND NAME -n NAMESPACE`.

use clap::Args;
use mesh_api::resource::{DEFAULT_NAMESPACE, Key, Kind};

/// Which object.
#[derive(Args)]
pub struct Which {
    /// Kind, as in `meshctl get`
    #[arg(value_parser = kind)]
    kind: Kind,
    /// Name; of the mesh none is needed
    #[arg(default_value = "mesh", hide_default_value = true)]
    name: String,
    /// Its namespace
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    namespace: String,
}

impl Which {
    /// Kind, namespace and name.
    pub fn key(&self) -> Key {
        Key::new(self.kind, &self.namespace, &self.name)
    }
}

/// The kind that somebody types.
pub fn kind(word: &str) -> Result<Kind, String> {
    Kind::from_word(word).ok_or_else(|| {
        let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name().to_ascii_lowercase()).collect();
        format!("unknown kind; accepted: {}", known.join(", "))
    })
}

/// Where the API has an object.
pub fn path(key: &Key) -> String {
    let Key { kind, namespace, name } = key;
    if kind.namespaced() {
        format!("/v1/{}/{namespace}/{name}", kind.plural())
    } else {
        "/v1/mesh".to_owned()
    }
}

//! The secret that the replicas of a mesh share: who has it may ask the holder of the root for an intermediate.
//!
//! What one replica tells another of the authority goes through the store, where others may write as well: each such text
//! carries the secret's HMAC-SHA-256 over the store's id, the key that it stands under, and itself.
//!
//! Invariant: the secret itself is in files of mode 0600 alone, never in the store, a log or an answer.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files::{self, CaError};
use super::{hex, unhex};

/// In the data directory of who made it.
const FILE: &str = "replica.secret";
const BYTES: usize = 32;

/// The secret, for one store.
pub struct Secret {
    key: hmac::Key,
    store: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    text: String,
    mac: String,
}

impl Secret {
    /// Reads it; makes it where that is allowed and no file was named.
    pub fn open(dir: &Path, named: Option<&Path>, make: bool, store: &str) -> Result<Self, CaError> {
        let path: PathBuf = named.map_or_else(|| dir.join(FILE), Path::to_owned);
        if make && named.is_none() && !path.exists() {
            let mut bytes = [0; BYTES];
            let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
            random
                .fill(&mut bytes)
                .map_err(|_| CaError::Refused("the system gives no random numbers".to_owned()))?;
            files::replace(&path, hex(&bytes).as_bytes(), 0o600)?;
        }
        let text = match files::read(&path) {
            Err(CaError::File { path, cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
                return Err(CaError::NoSecret(path));
            }
            text => text?,
        };
        let bytes = unhex(text.trim());
        if bytes.len() != BYTES {
            let cause = format!("it is not {} hexadecimal digits", BYTES * 2);
            return Err(CaError::BadSecret { path, cause });
        }
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes), store: store.to_owned() })
    }

    fn signed(&self, key: &str, text: &str) -> Vec<u8> {
        format!("nodemesh replica 1\n{}\n{key}\n{text}", self.store).into_bytes()
    }

    /// As it stands in the store under `key`.
    pub fn seal(&self, key: &str, value: &impl Serialize) -> Vec<u8> {
        let text = serde_json::to_string(value).unwrap_or_default();
        let mac = hex(hmac::sign(&self.key, &self.signed(key, &text)).as_ref());
        serde_json::to_vec(&Sealed { text, mac }).unwrap_or_default()
    }

    /// What stands there, if a replica wrote it.
    pub fn unseal<T: DeserializeOwned>(&self, key: &str, value: &[u8]) -> Result<T, CaError> {
        let foreign = || CaError::Foreign(key.to_owned());
        let sealed: Sealed = serde_json::from_slice(value).map_err(|_| foreign())?;
        hmac::verify(&self.key, &self.signed(key, &sealed.text), &unhex(&sealed.mac))
            .map_err(|_| foreign())?;
        serde_json::from_str(&sealed.text).map_err(|_| foreign())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_the_secret_is_believed_and_only_under_its_key() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(matches!(Secret::open(one.path(), None, false, "s"), Err(CaError::NoSecret(_))));
        let secret = Secret::open(one.path(), None, true, "s").unwrap();
        let file = one.path().join(FILE);
        let same = Secret::open(other.path(), Some(&file), false, "s").unwrap();
        let sealed = secret.seal("/ca/asked/a", &"x");
        assert_eq!(same.unseal::<String>("/ca/asked/a", &sealed).unwrap(), "x");
        assert!(matches!(same.unseal::<String>("/ca/asked/b", &sealed), Err(CaError::Foreign(_))));
        let elsewhere = Secret::open(other.path(), Some(&file), false, "t").unwrap();
        assert!(elsewhere.unseal::<String>("/ca/asked/a", &sealed).is_err());
        let stranger = Secret::open(other.path(), None, true, "s").unwrap();
        assert!(stranger.unseal::<String>("/ca/asked/a", &sealed).is_err());
        assert!(same.unseal::<String>("/ca/asked/a", b"{}").is_err());
        std::fs::write(&file, "short").unwrap();
        assert!(matches!(Secret::open(one.path(), None, false, "s"), Err(CaError::BadSecret { .. })));
    }
}

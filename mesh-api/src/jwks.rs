//! JSON Web Key Sets (RFC 7517): which of their keys can check the signature of a token, and those as wire messages.
//!
//! text of a set ──[`parse`]──▶ [`KeySet`] ──▶ { control plane: to agents; agents: keys that verify }
//!
//! Invariants: nothing secret passes: symmetric keys and private ones are left out, and named; a key that is taken has
//! the length that its kind must have; the order of the set stays.
//! Not here: where a set comes from (mesh-control), signatures (mesh-agent).

use serde_json::{Map, Value};

use crate::proto::v1;

/// Longest text of a set, bytes.
pub const SET_MAX: usize = 256 << 10;
/// Most keys of a set.
pub const KEYS_MAX: usize = 64;
/// Longest `kid`, bytes.
pub const KID_MAX: usize = 256;

/// What a set comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySet {
    /// Keys that verify; at least one.
    pub keys: Vec<v1::JwtKey>,
    /// Which others there are, and why they are left out.
    pub left_out: Vec<String>,
    /// One of those is secret: the set should not have been shown to anybody.
    pub secret: bool,
}

/// Why a key is left out.
enum Unfit {
    /// It is secret.
    Secret(&'static str),
    /// It is of no use here.
    Useless(String),
}

/// Kinds of keys: what `kty` and `crv` say, and the algorithms that they fit.
pub const KINDS: [(&str, &[&str]); 4] = [
    ("RSA", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    ("P-256", &["ES256"]),
    ("P-384", &["ES384"]),
    ("Ed25519", &["EdDSA"]),
];

/// Reads a set; an error says what is wrong with all of it.
pub fn parse(text: &[u8]) -> Result<KeySet, String> {
    if text.len() > SET_MAX {
        return Err(format!("it is longer than {SET_MAX} bytes"));
    }
    // The parser's own message would repeat what it read.
    let set: Value =
        serde_json::from_slice(text).map_err(|e| format!("it is not JSON (line {})", e.line()))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("it is no object with a list of `keys`")?;
    if keys.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys"));
    }
    let mut found = KeySet::default();
    for (i, key) in keys.iter().enumerate() {
        match key.as_object().ok_or_else(|| useless("it is no object")).and_then(one) {
            Ok(key) => found.keys.push(key),
            Err(Unfit::Secret(why)) => {
                found.secret = true;
                found.left_out.push(format!("keys[{i}]: {why}"));
            }
            Err(Unfit::Useless(why)) => found.left_out.push(format!("keys[{i}]: {why}")),
        }
    }
    if found.keys.is_empty() {
        let why = found.left_out.first().map_or_else(String::new, |first| format!(": {first}"));
        return Err(format!("it has no key that can verify a token{why}"));
    }
    Ok(found)
}

fn useless(why: impl Into<String>) -> Unfit {
    Unfit::Useless(why.into())
}

fn one(key: &Map<String, Value>) -> Result<v1::JwtKey, Unfit> {
    let text = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
    let kty = text("kty");
    if kty == "oct" {
        return Err(Unfit::Secret("it is a symmetric key"));
    }
    if ["d", "p", "q", "dp", "dq", "qi", "k"].iter().any(|private| key.contains_key(*private)) {
        return Err(Unfit::Secret("it is a private key"));
    }
    if !matches!(text("use"), "" | "sig") {
        return Err(useless("it is not for signatures"));
    }
    let verifies = |ops: &Vec<Value>| ops.iter().any(|op| op == "verify");
    if key.get("key_ops").and_then(Value::as_array).is_some_and(|ops| !verifies(ops)) {
        return Err(useless("it is not for verifying"));
    }
    let kind = if kty == "RSA" { kty } else { text("crv") };
    let fits = matches!((kty, kind), ("RSA", _) | ("EC", "P-256" | "P-384") | ("OKP", "Ed25519"));
    let known = KINDS.iter().find(|(name, _)| fits && *name == kind);
    let Some((kind, algorithms)) = known else {
        return Err(useless("it is of a kind that is not supported (RSA, EC P-256 and P-384, Ed25519 are)"));
    };
    let alg = text("alg");
    if !alg.is_empty() && !algorithms.contains(&alg) {
        return Err(useless(format!("its alg does not fit its kind; {} do", algorithms.join(", "))));
    }
    let kid = text("kid");
    if kid.len() > KID_MAX {
        return Err(useless("its kid is too long"));
    }
    let parameter = |name: &str, bytes: std::ops::RangeInclusive<usize>| {
        let value = text(name).trim_end_matches('=');
        let good = value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let fits = good && bytes.contains(&(value.len() * 3 / 4));
        fits.then(|| value.to_owned())
            .ok_or_else(|| useless(format!("its {name} is not {bytes:?} bytes in base64url")))
    };
    let mut out = v1::JwtKey {
        kid: kid.to_owned(),
        alg: alg.to_owned(),
        kind: (*kind).to_owned(),
        ..v1::JwtKey::default()
    };
    match *kind {
        // 2048 to 8192 bits.
        "RSA" => (out.n, out.e) = (parameter("n", 256..=1025)?, parameter("e", 1..=8)?),
        "P-256" => (out.x, out.y) = (parameter("x", 32..=32)?, parameter("y", 32..=32)?),
        "P-384" => (out.x, out.y) = (parameter("x", 48..=48)?, parameter("y", 48..=48)?),
        _ => out.x = parameter("x", 32..=32)?,
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ec(kid: &str) -> Value {
        let part = "A".repeat(43);
        json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": part, "y": part, "x5c": ["ignored"]})
    }

    fn read(keys: &Value) -> Result<KeySet, String> {
        parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn what_verifies_is_taken_and_the_rest_is_named() {
        let rsa = json!({"kty": "RSA", "n": "A".repeat(342), "e": "AQAB", "alg": "PS256", "use": "sig"});
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "A".repeat(43), "key_ops": ["verify"]});
        let set = read(&json!([ec("a"), rsa, ed, {"kty": "EC", "crv": "P-521"}])).unwrap();
        let kinds: Vec<_> = set.keys.iter().map(|key| (&*key.kind, &*key.alg, &*key.kid)).collect();
        assert_eq!(kinds, [("P-256", "", "a"), ("RSA", "PS256", ""), ("Ed25519", "", "")]);
        assert!(set.left_out.len() == 1 && set.left_out[0].starts_with("keys[3]: it is of a kind"));
        assert!(!set.secret);
    }

    #[test]
    fn secrets_are_left_out() {
        let mut private = ec("b");
        private["d"] = json!("A");
        for secret in [private, json!({"kty": "oct", "k": "AAAA", "alg": "HS256"})] {
            let set = read(&json!([secret, ec("a")])).unwrap();
            assert!(set.secret && set.keys.len() == 1, "{set:?}");
            assert!(read(&json!([secret])).is_err());
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for bad in ["", "[]", "{}", r#"{"keys": 1}"#, r#"{"keys": []}"#, r#"{"keys": [1]}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let with = |field: &str, value: Value| {
            let mut key = ec("a");
            key[field] = value;
            read(&json!([key]))
        };
        for (field, value) in [
            ("x", json!("A".repeat(44))),
            ("x", json!("+".repeat(43))),
            ("y", json!(1)),
            ("use", json!("enc")),
            ("key_ops", json!(["sign"])),
            ("alg", json!("ES384")),
            ("alg", json!("HS256")),
            ("alg", json!("none")),
            ("kty", json!("RSA")),
            ("kid", json!("k".repeat(257))),
        ] {
            assert!(with(field, value.clone()).is_err(), "{field}: {value}");
        }
        assert!(read(&json!([{"kty": "RSA", "n": "A".repeat(171), "e": "AQAB"}])).is_err(), "1024 bits");
        assert!(read(&Value::from(vec![ec("a"); KEYS_MAX + 1])).is_err());
        assert!(parse(&vec![b' '; SET_MAX + 1]).is_err());
    }
}

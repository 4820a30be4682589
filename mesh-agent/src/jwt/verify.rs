//! A token in compact form (RFC 7515), and whether one of its issuer's keys has signed it.
//!
//! Pure, and by aws-lc-rs, which TLS uses as well. The algorithm must be one for public keys, and that of the key's
//! kind: there is no way from a public key to a shared secret, and none to no signature at all.
//!
//! Not here: what the claims must be (mesh-core's jwt).

use aws_lc_rs::signature as sig;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use mesh_api::proto::v1;
use mesh_core::jwt::{JwtError, TOKEN_MAX};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Keys that a token without `kid` is tried with.
const TRIES: usize = 8;

/// Ways to sign that are accepted, and what checks them.
enum Method {
    Rsa(&'static sig::RsaParameters),
    /// A curve point or an Ed25519 key.
    Plain(&'static dyn sig::VerificationAlgorithm),
}

/// The kind of key and the method of an algorithm.
fn method(alg: &str) -> Option<(&'static str, Method)> {
    let rsa = |parameters| ("RSA", Method::Rsa(parameters));
    Some(match alg {
        "RS256" => rsa(&sig::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => rsa(&sig::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => rsa(&sig::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => rsa(&sig::RSA_PSS_2048_8192_SHA256),
        "PS384" => rsa(&sig::RSA_PSS_2048_8192_SHA384),
        "PS512" => rsa(&sig::RSA_PSS_2048_8192_SHA512),
        "ES256" => ("P-256", Method::Plain(&sig::ECDSA_P256_SHA256_FIXED)),
        "ES384" => ("P-384", Method::Plain(&sig::ECDSA_P384_SHA384_FIXED)),
        "EdDSA" => ("Ed25519", Method::Plain(&sig::ED25519)),
        _ => return None,
    })
}

/// A provider's keys, decoded.
pub struct Keys(Vec<Key>);

struct Key {
    kid: Box<str>,
    alg: Box<str>,
    kind: Box<str>,
    material: Material,
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Plain(Vec<u8>),
}

impl Keys {
    /// Those that can be decoded: the control plane sends no others.
    pub fn new(keys: &[v1::JwtKey]) -> Self {
        Self(keys.iter().filter_map(Key::read).collect())
    }
}

impl Key {
    fn read(key: &v1::JwtKey) -> Option<Self> {
        let part = |text: &str| BASE64.decode(text).ok();
        let material = match &*key.kind {
            "RSA" => Material::Rsa { n: part(&key.n)?, e: part(&key.e)? },
            "Ed25519" => Material::Plain(part(&key.x)?),
            _ => {
                // A point, uncompressed.
                let mut point = vec![4];
                point.extend(part(&key.x)?);
                point.extend(part(&key.y)?);
                Material::Plain(point)
            }
        };
        let [kid, alg, kind] = [&key.kid, &key.alg, &key.kind].map(|text| text.as_str().into());
        Some(Self { kid, alg, kind, material })
    }

    fn verifies(&self, method: &Method, message: &[u8], signature: &[u8]) -> bool {
        match (method, &self.material) {
            (Method::Rsa(parameters), Material::Rsa { n, e }) => {
                sig::RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Method::Plain(algorithm), Material::Plain(key)) => {
                sig::UnparsedPublicKey::new(*algorithm, key).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    crit: Option<Value>,
}

/// A token, taken apart; nothing of it is to be believed before [`Parts::verify`].
pub struct Parts<'a> {
    header: Header,
    /// What it says.
    pub claims: Map<String, Value>,
    message: &'a [u8],
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    /// Takes it apart.
    pub fn read(token: &'a [u8]) -> Result<Self, JwtError> {
        Self::parse(token).ok_or(JwtError::Malformed)
    }

    fn parse(token: &'a [u8]) -> Option<Self> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (header, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let message = &token[..header.len() + 1 + claims.len()];
        let decode = |part: &[u8]| BASE64.decode(part).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        let claims = serde_json::from_slice(&decode(claims)?).ok()?;
        let signature = decode(signature)?;
        header.crit.is_none().then_some(Self { header, claims, message, signature })
    }

    /// Has one of these keys signed it?
    pub fn verify(&self, keys: &Keys) -> Result<(), JwtError> {
        let (kind, method) = method(&self.header.alg).ok_or(JwtError::Algorithm)?;
        let fits = |key: &&Key| {
            let named = self.header.kid.as_ref().is_none_or(|kid| key.kid.is_empty() || *key.kid == **kid);
            named && *key.kind == *kind && (key.alg.is_empty() || *key.alg == *self.header.alg)
        };
        let mut fitting = keys.0.iter().filter(fits).take(TRIES).peekable();
        if fitting.peek().is_none() {
            return Err(JwtError::UnknownKey);
        }
        let verified = fitting.any(|key| key.verifies(&method, self.message, &self.signature));
        if verified { Ok(()) } else { Err(JwtError::Signature) }
    }
}

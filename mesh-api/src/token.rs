//! Text of a join token: `nm1.<id>.<secret>.<sha256 of the CA's DER, hex>`.
//!
//! The hash lets an agent trust exactly one CA before it has any certificate.
//! Invariant: the secret is in no `Debug` output.
//! Not here: making secrets, hashing them at rest, grants (mesh-control).

use std::fmt;
use std::str::FromStr;

/// A parsed join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public name of the token.
    pub id: String,
    /// What proves that one holds it.
    pub secret: String,
    /// SHA-256 of the CA certificate's DER.
    pub ca_sha256: [u8; 32],
}

/// Not a join token. Does not repeat the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token ({0}): expected nm1.ID.SECRET.CA-SHA256 as `meshctl token create` prints it, on one line"
)]
pub struct TokenError(&'static str);

const ID_LENGTHS: std::ops::RangeInclusive<usize> = 4..=32;
const SECRET_LENGTHS: std::ops::RangeInclusive<usize> = 16..=128;

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [version, id, secret, hash] = parts[..] else {
            return Err(TokenError("it has not four parts"));
        };
        if version != "nm1" {
            return Err(TokenError("it is of another version"));
        }
        if !ID_LENGTHS.contains(&id.len())
            || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        {
            return Err(TokenError("its id is malformed"));
        }
        if !SECRET_LENGTHS.contains(&secret.len())
            || !secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        {
            return Err(TokenError("its secret is malformed"));
        }
        let ca_sha256 = parse_hex(hash).ok_or(TokenError("its CA hash is not 64 hexadecimal digits"))?;
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), ca_sha256 })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nm1.{}.{}.", self.id, self.secret)?;
        self.ca_sha256.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        format!("nm1.abcd1234.{}.{}", "s".repeat(43), "0a".repeat(32))
    }

    #[test]
    fn a_token_is_written_as_it_is_read_and_keeps_its_secret() {
        let token: JoinToken = format!("{}\n", text()).parse().unwrap();
        assert_eq!((token.id.as_str(), token.ca_sha256), ("abcd1234", [10; 32]));
        assert_eq!(token.to_string(), text());
        assert!(!format!("{token:?}").contains("sss"));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "nm1.a.b", &text().replace("nm1", "nm2"), &text()[..80], &text().replace("0a", "zz")]
        {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}

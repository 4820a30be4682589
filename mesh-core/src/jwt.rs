//! Tokens that requests carry (RFC 7519): who issues them, what they say, and what policies ask of it.
//!
//! ```text
//! compile ──[`Provider`]s──▶ agent: finds the token, checks its signature, [`Provider::takes`] its claims
//!                                     └──[`Token`]──▶ [`TokenTerm`]s of policies, headers for the endpoint
//! ```
//!
//! Names of claims have `.` between levels (`realm.roles`); a name that is there as it is written comes first. Of a list
//! any element counts; numbers and booleans as text; `scope` and `permission` are lists with spaces in between.
//!
//! Invariants: time is an argument; a token is compared with its own provider's terms alone.
//! Not here: signatures (the agent's `jwt`), where keys come from (mesh-control).

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1;
use serde_json::{Map, Value};

use crate::model::Name;

/// Longest token, bytes.
pub const TOKEN_MAX: usize = 8 << 10;
/// Longest value that an endpoint is told of a claim, bytes.
const HEADER_MAX: usize = 1024;

/// Everybody who issues tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Providers {
    all: Box<[Arc<Provider>]>,
}

impl Providers {
    /// These.
    pub fn new(all: impl IntoIterator<Item = Arc<Provider>>) -> Self {
        Self { all: all.into_iter().collect() }
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.all.iter().find(|one| &*one.name == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.all.iter()
    }
}

/// Somebody who issues tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Another one whenever something of it changes, its keys included: what was found out under one is void under
    /// another.
    pub stamp: u64,
    /// By which policies name it.
    pub name: Name,
    /// What `iss` must be.
    pub issuer: Box<str>,
    /// One of them must be in `aud`; none: it is not looked at.
    pub audiences: Box<[Box<str>]>,
    /// Where requests carry a token: header name in lower case, and what stands before the token.
    pub headers: Box<[(Box<str>, Box<str>)]>,
    /// The endpoint gets the token too.
    pub forward: bool,
    /// Claims that the endpoint is told, and in which header (lower case).
    pub claims_to_headers: Box<[(Box<str>, Box<str>)]>,
    /// By how much clocks may differ.
    pub skew: Duration,
    /// `None`: none have come yet.
    pub keys: Option<Arc<[v1::JwtKey]>>,
}

/// Why a request is refused for its token or the lack of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum JwtError {
    /// There is none, and a policy asks for one.
    #[error("a token is needed, and the request carries none")]
    Missing,
    /// It is not one, or longer than 8 KiB, or there are several.
    #[error("the token is malformed, too long or there twice")]
    Malformed,
    /// It is signed in a way that is not accepted.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// Nobody whose tokens are taken here has issued it.
    #[error("the token's issuer is not one of those that are accepted here")]
    Issuer,
    /// It is for others.
    #[error("the token is for another audience")]
    Audience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// It is signed with a key that its issuer does not show.
    #[error("the token is signed with a key that its issuer does not show")]
    UnknownKey,
    /// Its signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Its issuer's keys have not come yet.
    #[error("the keys of the token's issuer are not known yet")]
    NoKeys,
}

impl JwtError {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Missing,
        Self::Malformed,
        Self::Algorithm,
        Self::Issuer,
        Self::Audience,
        Self::Expired,
        Self::NotYet,
        Self::UnknownKey,
        Self::Signature,
        Self::NoKeys,
    ];

    /// As [`ProxyError::reason`](crate::error::ProxyError::reason).
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "jwt_missing",
            Self::Malformed => "jwt_malformed",
            Self::Algorithm => "jwt_algorithm",
            Self::Issuer => "jwt_issuer",
            Self::Audience => "jwt_audience",
            Self::Expired => "jwt_expired",
            Self::NotYet => "jwt_not_yet_valid",
            Self::UnknownKey => "jwt_unknown_key",
            Self::Signature => "jwt_signature",
            Self::NoKeys => "jwt_no_keys",
        }
    }

    /// Of the reply. Without keys nobody can say whether the token is good: the client is not to throw it away.
    pub const fn status(self) -> u16 {
        if matches!(self, Self::NoKeys) { 503 } else { 401 }
    }
}

impl Provider {
    /// Are these the claims of a token of its own that is good now (Unix seconds)? Until when; the signature is not
    /// looked at. Without an end (`exp`) it is not.
    pub fn takes(&self, claims: &Map<String, Value>, now: u64) -> Result<u64, JwtError> {
        if claims.get("iss").and_then(Value::as_str) != Some(&*self.issuer) {
            return Err(JwtError::Issuer);
        }
        let is_for = |audience: &Value| {
            audience.as_str().is_some_and(|text| self.audiences.iter().any(|one| **one == *text))
        };
        let audience = match claims.get("aud") {
            _ if self.audiences.is_empty() => true,
            Some(Value::Array(all)) => all.iter().any(is_for),
            Some(one) => is_for(one),
            None => false,
        };
        if !audience {
            return Err(JwtError::Audience);
        }
        let skew = self.skew.as_secs();
        let until = claims.get("exp").and_then(seconds).ok_or(JwtError::Malformed)?.saturating_add(skew);
        if now >= until {
            return Err(JwtError::Expired);
        }
        if let Some(from) = claims.get("nbf") {
            let from = seconds(from).ok_or(JwtError::Malformed)?;
            if now.saturating_add(skew) < from {
                return Err(JwtError::NotYet);
            }
        }
        Ok(until)
    }
}

/// A `NumericDate` (RFC 7519 section 2), in whole seconds.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|n| n.is_finite() && *n >= 0.0).map(|n| n as u64))
}

/// A token that was found good.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Who has issued it.
    pub provider: Arc<Provider>,
    /// What it says.
    pub claims: Map<String, Value>,
}

impl Token {
    /// The claim of this name.
    fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name).or_else(|| {
            let (first, rest) = name.split_once('.')?;
            rest.split('.').try_fold(self.claims.get(first)?, |value, level| value.as_object()?.get(level))
        })
    }

    /// Has the claim one of these values?
    fn has(&self, name: &str, wanted: &[Box<str>]) -> bool {
        let is_wanted = |text: &str| wanted.iter().any(|one| **one == *text);
        match self.claim(name) {
            Some(Value::Array(all)) => all.iter().filter_map(text).any(|one| is_wanted(&one)),
            Some(Value::String(list)) if matches!(name, "scope" | "permission") => {
                list.split_ascii_whitespace().any(is_wanted)
            }
            Some(one) => text(one).is_some_and(|one| is_wanted(&one)),
            None => false,
        }
    }

    /// The headers that the endpoint is told it by. What could be read as another header, or as another element of a
    /// list, is left out.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.provider.claims_to_headers.iter().filter_map(|(claim, header)| {
            let value = match self.claim(claim)? {
                Value::Array(all) => {
                    let all: Vec<_> = all.iter().map(text).collect::<Option<_>>()?;
                    let clear = all.iter().all(|one| !one.contains(','));
                    clear.then(|| Cow::Owned(all.join(",")))?
                }
                one => text(one)?,
            };
            let plain = value.len() <= HEADER_MAX && !value.chars().any(char::is_control);
            plain.then_some((&**header, value))
        })
    }
}

/// A simple value as text.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(_) | Value::Bool(_) => Some(Cow::Owned(value.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What the tokens of a request say.
#[derive(Clone, Debug, PartialEq)]
pub enum Claims {
    /// These were found good, at most one of each provider.
    Good(Vec<Arc<Token>>),
    /// As if it carried those that help most: says whether it is refused for the lack of a token alone.
    Best,
}

/// A claim, and the values of which it must have one.
pub type ClaimValues = (Box<str>, Box<[Box<str>]>);

/// A token that a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTerm {
    /// Whose.
    pub provider: Name,
    /// One of them must be `sub`; none: anybody.
    pub subjects: Box<[Box<str>]>,
    /// Claims, of each of which one value must be there.
    pub claims: Box<[ClaimValues]>,
}

impl Hash for TokenTerm {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.provider.hash(state);
        self.subjects.hash(state);
        self.claims.hash(state);
    }
}

impl From<&v1::JwtTerms> for TokenTerm {
    fn from(terms: &v1::JwtTerms) -> Self {
        let claims = terms.claims.iter().map(|one| (one.name.as_str().into(), boxed(&one.values)));
        Self {
            provider: terms.provider.as_str().into(),
            subjects: boxed(&terms.subjects),
            claims: claims.collect(),
        }
    }
}

/// Texts as they are held.
pub(crate) fn boxed(all: &[String]) -> Box<[Box<str>]> {
    all.iter().map(|one| one.as_str().into()).collect()
}

impl TokenTerm {
    /// `closed`: what is not known matches, as where a rule denies.
    pub fn matches(&self, closed: bool, claims: Option<&Claims>) -> bool {
        let all = match claims {
            None => return closed,
            Some(Claims::Best) => return !closed,
            Some(Claims::Good(all)) => all,
        };
        let Some(token) = all.iter().find(|token| token.provider.name == self.provider) else {
            return closed;
        };
        let claims = &self.claims;
        (self.subjects.is_empty() || token.has("sub", &self.subjects))
            && claims.iter().all(|(name, values)| token.has(name, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn provider() -> Provider {
        Provider {
            stamp: 1,
            name: "shop".into(),
            issuer: "https://id".into(),
            audiences: ["shop".into(), "cart".into()].into(),
            headers: Box::default(),
            forward: true,
            claims_to_headers: [
                ("roles".into(), "x-roles".into()),
                ("realm.name".into(), "x-realm".into()),
                ("level".into(), "x-level".into()),
            ]
            .into(),
            skew: Duration::from_mins(1),
            keys: None,
        }
    }

    fn map(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("an object") };
        map
    }

    fn token(claims: Value) -> Arc<Token> {
        Arc::new(Token { provider: Arc::new(provider()), claims: map(claims) })
    }

    fn term(subjects: &[&str], claims: &[(&str, &[&str])]) -> TokenTerm {
        let texts = |all: &[&str]| all.iter().map(|one| Box::from(*one)).collect();
        let claims = claims.iter().map(|(name, values)| (Box::from(*name), texts(values)));
        TokenTerm { provider: "shop".into(), subjects: texts(subjects), claims: claims.collect() }
    }

    #[test]
    fn issuer_audience_and_time_are_checked() {
        let check = |change: Value, now| {
            let mut claims = map(json!({"iss": "https://id", "aud": "shop", "exp": 1000, "nbf": 500}));
            claims.extend(map(change));
            claims.retain(|_, value| !value.is_null());
            provider().takes(&claims, now)
        };
        assert_eq!(check(json!({}), 700), Ok(1060));
        assert_eq!(check(json!({"exp": 1000.9, "nbf": null}), 0), Ok(1060));
        assert_eq!(check(json!({}), 1059), Ok(1060));
        assert_eq!(check(json!({}), 1060), Err(JwtError::Expired));
        assert_eq!(check(json!({}), 440), Ok(1060));
        assert_eq!(check(json!({}), 439), Err(JwtError::NotYet));
        assert_eq!(check(json!({"aud": ["x", "cart"]}), 700), Ok(1060));
        for aud in [json!("x"), json!([]), json!(null), json!(["sho"]), json!({"shop": 1}), json!([1])] {
            assert_eq!(check(json!({"aud": aud}), 700), Err(JwtError::Audience));
        }
        for iss in [json!("https://id/"), json!(null), json!(["https://id"])] {
            assert_eq!(check(json!({"iss": iss}), 700), Err(JwtError::Issuer));
        }
        for exp in [json!(null), json!("1000"), json!(-1), json!([1000])] {
            assert_eq!(check(json!({"exp": exp}), 700), Err(JwtError::Malformed));
        }
        assert_eq!(check(json!({"nbf": "500"}), 700), Err(JwtError::Malformed));
        assert_eq!(check(json!({"exp": u64::MAX}), 700), Ok(u64::MAX));
    }

    #[test]
    fn claims_are_found_by_name_and_compared_as_text() {
        let token = token(json!({
            "sub": "alice", "level": 3, "ok": true, "groups": ["a", 7, {"b": 1}], "scope": "read write",
            "note": "a b", "https://x.example/role": "dotted", "realm": {"roles": ["admin"], "name": "r"}, "void": null,
        }));
        let has = |name: &str, value: &str| {
            term(&[], &[(name, &["no", value])]).matches(false, Some(&Claims::Good(vec![token.clone()])))
        };
        for (name, value) in [
            ("sub", "alice"),
            ("level", "3"),
            ("ok", "true"),
            ("groups", "a"),
            ("groups", "7"),
            ("scope", "write"),
            ("note", "a b"),
            ("https://x.example/role", "dotted"),
            ("realm.roles", "admin"),
        ] {
            assert!(has(name, value), "{name} {value}");
        }
        for (name, value) in [
            ("level", "3.0"),
            ("groups", "b"),
            ("scope", "read write"),
            ("note", "a"),
            ("realm", "admin"),
            ("realm.roles.0", "admin"),
            ("void", "null"),
            ("nobody", ""),
        ] {
            assert!(!has(name, value), "{name} {value}");
        }
        let good = Claims::Good(vec![token.clone()]);
        assert!(term(&["bob", "alice"], &[("level", &["3"])]).matches(false, Some(&good)));
        assert!(!term(&["bob"], &[]).matches(true, Some(&good)));
        assert!(!term(&["alice"], &[("level", &["4"])]).matches(false, Some(&good)));
    }

    #[test]
    fn without_a_token_terms_fail_closed() {
        let any = term(&[], &[]);
        let other = TokenTerm { provider: "other".into(), ..any.clone() };
        let (good, none) = (Claims::Good(vec![token(json!({}))]), Claims::Good(Vec::new()));
        assert!(any.matches(false, Some(&good)) && any.matches(true, Some(&good)));
        for (term, claims) in [(&any, None), (&other, Some(&good)), (&any, Some(&none))] {
            assert!(!term.matches(false, claims) && term.matches(true, claims));
        }
        assert!(any.matches(false, Some(&Claims::Best)) && !any.matches(true, Some(&Claims::Best)));
    }

    #[test]
    fn what_the_endpoint_is_told_cannot_be_read_as_more() {
        let told = |claims: Value| {
            let token = token(claims);
            token.headers().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
        };
        let all = json!({"roles": ["a", 7], "realm": {"name": "Zoë"}, "level": 3});
        assert_eq!(told(all), ["x-roles: a,7", "x-realm: Zoë", "x-level: 3"]);
        for roles in [
            json!(["a,admin"]),
            json!("a\r\nx: y"),
            json!(["a\n"]),
            json!([{}]),
            json!(null),
            json!("x".repeat(1025)),
        ] {
            assert!(told(json!({"roles": roles})).is_empty(), "{roles}");
        }
    }
}

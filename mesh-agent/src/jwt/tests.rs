//! Tokens that PyJWT has made (`vectors.json`), and what becomes of them when something of them is changed.

use super::*;
use mesh_api::jwks;
use serde_json::Value;
use std::time::Duration;

/// Before the tokens end, 2033.
const NOW: u64 = 1_800_000_000;

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn token(group: &str, name: &str) -> String {
    vectors()[group][name].as_str().unwrap().to_owned()
}

fn provider(stamp: u64) -> Provider {
    let set = jwks::parse(vectors()["jwks"].to_string().as_bytes()).unwrap();
    assert!(set.left_out.is_empty() && set.keys.len() == 4, "{set:?}");
    Provider {
        stamp,
        name: "shop".into(),
        issuer: "https://id.example".into(),
        audiences: ["shop".into()].into(),
        headers: [("authorization".into(), "Bearer ".into())].into(),
        forward: true,
        claims_to_headers: Box::default(),
        skew: Duration::from_mins(1),
        keys: Some(set.keys.into()),
    }
}

struct Head(Vec<(&'static str, String)>);

impl Headers for Head {
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.iter().for_each(|(name, value)| show(name.as_bytes(), value.as_bytes()));
    }
}

fn bearer(token: &str) -> Head {
    Head(vec![("host", "a".into()), ("Authorization", format!("bearer {token}"))])
}

fn check(tokens: &Tokens, provider: Provider, token: &str, now: u64) -> Result<Found, JwtError> {
    tokens.find(&[Arc::new(provider)], &bearer(token), now)
}

#[test]
fn every_algorithm_is_verified_once() {
    let tokens = Tokens::default();
    for alg in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"] {
        let text = token("tokens", alg);
        for checked in [1, 0, 0] {
            let found = check(&tokens, provider(1), &text, NOW).unwrap_or_else(|e| panic!("{alg}: {e}"));
            assert_eq!((found.tokens.len(), found.checked), (1, checked), "{alg}");
            assert_eq!(found.tokens[0].claims["sub"], "alice");
        }
        // One bit of the signature, and one of what is signed.
        for at in [text.len() - 3, text.find('.').unwrap() + 9] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(check(&tokens, provider(1), &changed, NOW).is_err(), "{alg} {at}");
        }
    }
    assert!(check(&tokens, provider(1), &token("others", "no_kid"), NOW).is_ok());
}

#[test]
fn what_is_not_good_is_named() {
    let tokens = Tokens::default();
    for (name, error) in [
        ("confused", JwtError::Algorithm),
        ("none", JwtError::Algorithm),
        ("unknown_kid", JwtError::UnknownKey),
        ("wrong_kind", JwtError::UnknownKey),
        ("other_key", JwtError::Signature),
        ("crit", JwtError::Malformed),
        ("other_issuer", JwtError::Issuer),
    ] {
        let found = check(&tokens, provider(1), &token("others", name), NOW);
        assert_eq!(found.err(), Some(error), "{name}");
    }
    let good = token("tokens", "ES256");
    for bad in
        ["", "a", "a.b", "a.b.c", "..", &format!("{good}.x"), &format!("{good}="), &format!("{good} x")]
    {
        assert_eq!(check(&tokens, provider(1), bad, NOW).err(), Some(JwtError::Malformed), "{bad}");
    }
    let long = format!("{good}{}", "A".repeat(8 << 10));
    assert_eq!(check(&tokens, provider(1), &long, NOW).err(), Some(JwtError::Malformed));
    assert_eq!(
        check(&tokens, Provider { keys: None, ..provider(2) }, &good, NOW).err(),
        Some(JwtError::NoKeys)
    );
    let twice = Head(vec![("authorization", format!("Bearer {good}")), ("Authorization", "Bearer x".into())]);
    assert_eq!(tokens.find(&[Arc::new(provider(1))], &twice, NOW).err(), Some(JwtError::Malformed));
    let basic = Head(vec![("authorization", "Basic YTpi".into())]);
    assert!(tokens.find(&[Arc::new(provider(1))], &basic, NOW).unwrap().tokens.is_empty());
}

#[test]
fn what_is_remembered_ends_with_its_time_and_its_provider() {
    let tokens = Tokens::default();
    let text = token("tokens", "RS256");
    assert_eq!(check(&tokens, provider(1), &text, NOW).unwrap().checked, 1);
    assert_eq!(check(&tokens, provider(1), &text, NOW).unwrap().checked, 0);
    assert_eq!(check(&tokens, provider(2), &text, NOW).unwrap().checked, 1, "another stamp");
    let late = 2_000_000_060;
    assert_eq!(check(&tokens, provider(2), &text, late - 1).unwrap().checked, 0);
    assert_eq!(check(&tokens, provider(2), &text, late).err(), Some(JwtError::Expired));
    // Its key is shown no more.
    let rotated: Vec<_> = provider(1).keys.unwrap().iter().filter(|key| key.kid != "rsa").cloned().collect();
    let rotated = Provider { keys: Some(rotated.into()), ..provider(3) };
    assert_eq!(check(&tokens, rotated, &text, NOW).err(), Some(JwtError::UnknownKey));
    let others = Provider { audiences: ["cart".into()].into(), ..provider(4) };
    assert_eq!(check(&tokens, others, &text, NOW).err(), Some(JwtError::Audience));
}

#[test]
fn a_token_counts_for_whoever_has_issued_it_and_looks_there() {
    let tokens = Tokens::default();
    let text = token("tokens", "EdDSA");
    let ops = Arc::new(Provider { name: "ops".into(), issuer: "ops".into(), ..provider(2) });
    let both = [ops.clone(), Arc::new(provider(1))];
    let found = tokens.find(&both, &bearer(&text), NOW).unwrap();
    assert_eq!((found.tokens.len(), &*found.tokens[0].provider.name), (1, "shop"));
    // In a header in which only others are looked for it is nobody's, though it is remembered.
    let elsewhere = Provider { headers: [("x-ops".into(), "".into())].into(), ..(*ops).clone() };
    let both = [Arc::new(elsewhere), Arc::new(provider(1))];
    let head = Head(vec![("x-ops", text.clone())]);
    assert_eq!(tokens.find(&both, &head, NOW).err(), Some(JwtError::Issuer));
    assert_eq!(tokens.find(&[ops], &bearer(&text), NOW).err(), Some(JwtError::Issuer));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut cache = Cache::default();
    let token = Arc::new(Token { provider: Arc::new(provider(1)), claims: serde_json::Map::default() });
    let hot = cache::key(b"hot");
    for n in 0..10_000_u32 {
        cache.put(cache::key(&n.to_be_bytes()), token.clone(), u64::MAX);
        if n == 0 {
            cache.put(hot, token.clone(), u64::MAX);
        }
        if n % 100 == 0 {
            assert!(cache.get(&hot, |_| true, 0).is_some(), "what is in use stays");
        }
    }
    assert!(cache.len() <= 1024);
    assert!(cache.get(&hot, |_| false, 0).is_none());
}

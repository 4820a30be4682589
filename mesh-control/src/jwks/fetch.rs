//! One GET of a key set. Blocks, for [`TIME`] at most.
//!
//! Invariants: no redirect is followed, no proxy asked, nothing but a 200 is taken; what is read is bounded; without
//! TLS only loopback is asked, unless the control plane was started so that others are as well.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_api::jwks::SET_MAX;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// From the look-up of the name to the last byte.
const TIME: Duration = Duration::from_secs(10);

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The body.
    pub body: Vec<u8>,
    /// Its `Cache-Control`.
    pub cache_control: Option<String>,
}

/// Asks; `ca`: PEM of the roots that are believed, `None`: the system's. An error is for people.
pub fn get(url: &str, ca: Option<&str>, plain_http: bool) -> Result<Answer, String> {
    if !url.starts_with("https://") && !plain_http && !is_loopback(url) {
        return Err(format!(
            "{url} is asked without TLS, and is not loopback: give an https:// URL, or start mesh-control with \
             --jwks-plain-http"
        ));
    }
    let roots = match ca {
        Some(pem) => given(pem)?,
        None => system()?,
    };
    let agent = agent(roots, TIME);
    let failed = |error: ureq::Error| match error {
        ureq::Error::BodyExceedsLimit(_) => format!("the answer of {url} is longer than {SET_MAX} bytes"),
        error => format!("{url} does not answer: {error}"),
    };
    let mut response = agent.get(url).header("accept", "application/json").call().map_err(failed)?;
    if response.status() != 200 {
        return Err(format!("{url} answers {}, not 200", response.status().as_u16()));
    }
    let cache_control = response.headers().get("cache-control");
    let cache_control = cache_control.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = response.body_mut().with_config().limit(SET_MAX as u64).read_to_vec().map_err(failed)?;
    Ok(Answer { body, cache_control })
}

/// A client that follows no redirect and asks no proxy.
pub(crate) fn agent(roots: RootCerts, time: Duration) -> ureq::Agent {
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(time))
        .proxy(None)
        .build()
        .new_agent()
}

/// Is its host this one?
pub(crate) fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn given(pem: &str) -> Result<RootCerts, String> {
    let items = parse_pem(pem.as_bytes()).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let roots: Vec<Certificate<'static>> = items.collect();
    if roots.is_empty() {
        return Err("its ca holds no PEM certificate".to_owned());
    }
    Ok(RootCerts::new_with_certs(&roots))
}

/// Read once: a system's roots change with its packages.
pub(crate) fn system() -> Result<RootCerts, String> {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()
    });
    if roots.is_empty() {
        let remedy = "install ca-certificates and start mesh-control again, or give the provider's jwks a ca";
        return Err(format!("the control plane's system has no certificate authorities: {remedy}"));
    }
    Ok(RootCerts::new_with_certs(roots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_alone_is_asked_without_tls() {
        for url in
            ["http://127.0.0.1/a", "http://127.9.9.9:80", "http://[::1]:8/a?b", "http://localhost:8080/x"]
        {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://10.0.0.1/",
            "http://localhost.example/",
            "http://127.0.0.1.example/",
            "http://[fd00::1]/",
        ] {
            assert!(!is_loopback(url), "{url}");
            let refused = get(url, None, false).unwrap_err();
            assert!(refused.contains("--jwks-plain-http"), "{refused}");
        }
    }
}

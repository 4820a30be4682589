//! What is told of a request that has ended: a line of the access log, and of `meshctl tap`. Part of [`super`].

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::view::names_match;

/// Requests that a page holds at most: it fits a packet, whatever the paths.
pub const TAP_PAGE: usize = 8;

/// A request that has ended (`tcp`: a connection). What is empty was not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestLine<'a> {
    /// When it began, RFC 3339.
    pub time: Cow<'a, str>,
    /// `out`: told by the caller's node; `in`: by the node of whom it calls.
    pub direction: Cow<'a, str>,
    /// The workload that calls; `outside`; `unproved`: nothing proves who it is.
    pub source: Cow<'a, str>,
    /// `spiffe://…` of the caller.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub identity: Cow<'a, str>,
    /// The service that answers: `<namespace>/<name>:<port>`.
    pub destination: Cow<'a, str>,
    /// `<namespace>/<name>/<rule>`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub route: Cow<'a, str>,
    /// The workload that it was sent to.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub endpoint: Cow<'a, str>,
    /// Where that is.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub address: Cow<'a, str>,
    /// `http`, `http2`, `grpc` or `tcp`.
    pub protocol: Cow<'a, str>,
    /// Method.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub method: Cow<'a, str>,
    /// Host, as the client has it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub authority: Cow<'a, str>,
    /// Path without its query; its first 1024 bytes.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub path: Cow<'a, str>,
    /// HTTP's status; 0: none was sent.
    #[serde(skip_serializing_if = "none_sent")]
    pub status: u16,
    /// gRPC's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    /// `ok`, `client_error` or `server_error`.
    pub outcome: Cow<'a, str>,
    /// Why the proxy refused or cut it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: Cow<'a, str>,
    /// From its head to the end of its response.
    pub seconds: f64,
    /// Bytes of its body, as they were framed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Bytes of its response's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    /// How often it was sent.
    pub tries: u8,
    /// Of `traceparent` or B3.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub trace_id: Cow<'a, str>,
    /// `x-request-id`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub request_id: Cow<'a, str>,
}

// serde passes references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn none_sent(status: &u16) -> bool {
    *status == 0
}

fn own(text: Cow<'_, str>) -> Cow<'static, str> {
    text.into_owned().into()
}

impl RequestLine<'_> {
    /// The same, of its own.
    pub fn into_owned(self) -> RequestLine<'static> {
        RequestLine {
            time: own(self.time),
            direction: own(self.direction),
            source: own(self.source),
            identity: own(self.identity),
            destination: own(self.destination),
            route: own(self.route),
            endpoint: own(self.endpoint),
            address: own(self.address),
            protocol: own(self.protocol),
            method: own(self.method),
            authority: own(self.authority),
            path: own(self.path),
            status: self.status,
            grpc_status: self.grpc_status,
            outcome: own(self.outcome),
            reason: own(self.reason),
            seconds: self.seconds,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            tries: self.tries,
            trace_id: own(self.trace_id),
            request_id: own(self.request_id),
        }
    }
}

/// Which requests are asked for. Empty words ask for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TapQuery {
    /// The workload that calls: `<namespace>/<name>` or `<name>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The service that is called: `<namespace>/<name>:<port>`, without namespace or port if you like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Method.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// What paths begin with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Status: `503`, or `5xx`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// Why the proxy refused or cut it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// `ok`, `client_error` or `server_error`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub outcome: String,
}

impl TapQuery {
    /// Nothing was asked for.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let digits = self.status.bytes().all(|b| b.is_ascii_digit());
        let class = matches!(self.status.as_bytes(), [b'1'..=b'5', b'x', b'x']);
        if !(class || self.status.is_empty() || self.status.len() == 3 && digits) {
            return Err(format!("status: {:?} is not a number of three digits, or 1xx to 5xx", self.status));
        }
        let outcomes = ["", "ok", "client_error", "server_error"];
        if !outcomes.contains(&&*self.outcome) {
            return Err(format!("outcome: {:?} is not ok, client_error or server_error", self.outcome));
        }
        Ok(())
    }

    /// Was this one asked for?
    pub fn wants(&self, line: &RequestLine<'_>) -> bool {
        let is = |wanted: &str, text: &str| wanted.is_empty() || wanted == text;
        let named = |wanted: &str, name: &str| wanted.is_empty() || names_match(wanted, name);
        named(&self.source, &line.source)
            && named(&self.service, &line.destination)
            && is(&self.method, &line.method)
            && line.path.starts_with(&self.path)
            && self.is_status(line.status)
            && is(&self.reason, &line.reason)
            && is(&self.outcome, &line.outcome)
    }

    fn is_status(&self, status: u16) -> bool {
        match self.status.strip_suffix("xx") {
            Some(class) => class.parse() == Ok(status / 100),
            None => self.status.is_empty() || self.status.parse() == Ok(status),
        }
    }
}

/// Some requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TapPage {
    /// [`crate::local::VERSION`].
    pub v: u32,
    /// Was it done?
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// In the order of their ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestLine<'static>>,
    /// Requests that are missing before this page, because this reader was too slow.
    #[serde(default)]
    pub lost: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> RequestLine<'static> {
        RequestLine {
            source: "shop/cart-1".into(),
            destination: "shop/db:80".into(),
            method: "GET".into(),
            path: "/api/users".into(),
            status: 503,
            outcome: "server_error".into(),
            reason: "no_endpoints".into(),
            ..RequestLine::default()
        }
    }

    #[test]
    fn a_query_asks_for_all_of_its_words() {
        let ask = |query: &str| serde_json::from_str::<TapQuery>(query).unwrap().wants(&line());
        for query in [
            "{}",
            r#"{"source":"cart-1"}"#,
            r#"{"service":"shop/db"}"#,
            r#"{"method":"GET","path":"/api"}"#,
            r#"{"status":"5xx"}"#,
            r#"{"status":"503","reason":"no_endpoints","outcome":"server_error"}"#,
        ] {
            assert!(ask(query), "{query}");
        }
        for query in [
            r#"{"source":"cart"}"#,
            r#"{"service":"other/db"}"#,
            r#"{"method":"PUT"}"#,
            r#"{"path":"/apis"}"#,
            r#"{"status":"4xx"}"#,
            r#"{"status":"500"}"#,
            r#"{"status":"503","reason":"no_route"}"#,
        ] {
            assert!(!ask(query), "{query}");
        }
    }

    #[test]
    fn words_that_nothing_has_are_refused() {
        let check = |status: &str, outcome: &str| {
            TapQuery { status: status.into(), outcome: outcome.into(), ..TapQuery::default() }.check()
        };
        assert!(check("", "").is_ok() && check("404", "ok").is_ok() && check("5xx", "").is_ok());
        for status in ["50", "6xx", "xx", "abc", "5x"] {
            assert!(check(status, "").unwrap_err().contains("1xx to 5xx"), "{status}");
        }
        assert!(check("", "bad").is_err());
    }

    #[test]
    fn what_was_not_there_is_not_told() {
        let text =
            serde_json::to_string(&RequestLine { protocol: "tcp".into(), ..RequestLine::default() }).unwrap();
        assert!(!text.contains("path") && !text.contains("status") && !text.contains("Bytes"), "{text}");
        let read: RequestLine<'static> =
            serde_json::from_str(&serde_json::to_string(&line()).unwrap()).unwrap();
        assert_eq!(read, line());
    }
}

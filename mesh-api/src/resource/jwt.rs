//! JWT: who issues tokens (`Mesh.spec.jwtProviders`), and what a policy asks of them (`from[].jwt`).
//!
//! Not here: what a key set is ([`crate::jwks`]), who reads it (mesh-control), who checks tokens (mesh-agent).

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::error::{ApiError, Reason};
use crate::name::LABEL;
use crate::walk::{At, distinct};
use crate::{duration, jwks};

/// Most providers of a mesh.
pub(super) const MAX_PROVIDERS: usize = 16;
/// Most values of one list.
const MAX_VALUES: usize = 64;
/// Most headers of a provider, in and out.
const MAX_HEADERS: usize = 8;
/// Longest text that is compared with a token's.
const MAX_TEXT: usize = 1024;

/// Somebody who issues tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtProvider {
    /// By which policies name it.
    pub name: String,
    /// What `iss` must be.
    pub issuer: String,
    /// One of them must be in `aud`; none: `aud` is not looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Where its keys are.
    pub jwks: Jwks,
    /// Where requests carry a token; the first header that is there counts.
    pub from_headers: Vec<TokenHeader>,
    /// The endpoint gets the token too.
    pub forward: bool,
    /// What the endpoint is told of the token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims_to_headers: Vec<ClaimHeader>,
    /// By how much clocks may differ.
    #[serde(serialize_with = "as_text")]
    pub clock_skew: Duration,
}

/// Where a key set is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Jwks {
    /// Here: its text.
    Inline(String),
    /// In a file of the control plane's directory for key sets.
    File(String),
    /// At a URL, which the control plane asks.
    #[serde(untagged)]
    Url {
        /// `https://…`, or `http://…` where the control plane allows it.
        url: String,
        /// Roots that its certificate is checked against, PEM; `None`: those of the control plane's system.
        #[serde(skip_serializing_if = "Option::is_none")]
        ca: Option<String>,
    },
}

/// A header that carries a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenHeader {
    /// Lower case.
    pub name: String,
    /// Before the token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// A claim that the endpoint is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClaimHeader {
    /// Name, `.` between levels.
    pub claim: String,
    /// In which header; lower case.
    pub header: String,
}

/// What a policy asks of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JwtTerms {
    /// Whose token it is.
    pub provider: String,
    /// One of them must be `sub`; none: anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// All of them must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ClaimTerm>,
}

/// What a claim must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClaimTerm {
    /// Name, `.` between levels.
    pub name: String,
    /// One of them.
    pub values: Vec<String>,
}

fn as_text<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&duration::format(*time))
}

/// Fields that say where a message ends or whom it is for, and those that the mesh itself sets.
fn is_reserved(header: &str) -> bool {
    const RESERVED: [&str; 10] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "x-forwarded-for",
    ];
    RESERVED.contains(&header) || header.starts_with("proxy-") || header.starts_with("x-mesh-")
}

fn header(text: &str) -> Option<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let name = text.to_ascii_lowercase();
    let good = (1..=128).contains(&name.len()) && name.bytes().all(token);
    (good && !is_reserved(&name)).then_some(name)
}

const HEADER: &str =
    "a header name of at most 128 characters that says nothing of the connection or of the mesh";

fn plain(text: &str) -> Option<String> {
    let good = (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control);
    good.then(|| text.to_owned())
}

const PLAIN: &str = "text of 1..=1024 bytes without control characters";

impl JwtProvider {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known =
            ["name", "issuer", "audiences", "jwks", "fromHeaders", "forward", "claimsToHeaders", "clockSkew"];
        let fields = at.object(&known, &["fromParams", "fromCookies", "outputPayloadToHeader"])?;
        let mut from_headers = fields.each("fromHeaders", 1..=MAX_HEADERS, |at| TokenHeader::read(&at))?;
        if from_headers.is_empty() {
            from_headers.push(TokenHeader { name: "authorization".to_owned(), prefix: "Bearer ".to_owned() });
        }
        let claims_to_headers =
            fields.each("claimsToHeaders", 0..=MAX_HEADERS, |at| ClaimHeader::read(&at))?;
        let headers = claims_to_headers.iter().map(|one| &*one.header);
        let place = |i: usize| {
            let header: &ClaimHeader = &claims_to_headers[i];
            (format!("{}.claimsToHeaders[{i}].header", at.path()), header.header.clone().into())
        };
        distinct(headers, place, "headers that differ")?;
        Ok(Self {
            name: fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            issuer: fields.need("issuer", PLAIN)?.parsed(PLAIN, plain)?,
            audiences: fields.each("audiences", 0..=MAX_VALUES, |at| at.parsed(PLAIN, plain))?,
            jwks: Jwks::read(&fields.need("jwks", "an object with inline, file or url")?)?,
            from_headers,
            forward: fields.read("forward", |at| at.boolean())?.unwrap_or(true),
            claims_to_headers,
            clock_skew: fields
                .read("clockSkew", |at| at.duration(Duration::ZERO..=Duration::from_mins(5)))?
                .unwrap_or(Duration::from_mins(1)),
        })
    }
}

impl Jwks {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["inline", "file", "url", "ca"], &[])?;
        let one = "one of inline, file and url";
        let (inline, file, url) = (fields.get("inline"), fields.get("file"), fields.get("url"));
        if let (Some(ca), None) = (fields.get("ca"), &url) {
            return Err(ca.refuse(Reason::Conflict, "no ca where there is no url"));
        }
        match (inline, file, url) {
            (Some(inline), None, None) => inline_set(&inline),
            (None, Some(file), None) => {
                file.parsed("the name of a file in the control plane's --jwks-dir", file_name).map(Self::File)
            }
            (None, None, Some(url)) => {
                let accepted = "an https:// URL (http:// for loopback, or where mesh-control allows it), without user and fragment";
                let pem = "certificates in PEM, at most 64 KiB";
                Ok(Self::Url {
                    url: url.parsed(accepted, url_text)?,
                    ca: fields.read("ca", |at| at.parsed(pem, pem_text))?,
                })
            }
            (None, None, None) => Err(at.refuse(Reason::MissingField, one)),
            _ => Err(at.refuse(Reason::Conflict, one)),
        }
    }
}

fn inline_set(at: &At<'_>) -> Result<Jwks, ApiError> {
    let accepted = "the text of a JSON Web Key Set with public keys";
    let text = at.text(accepted)?;
    let refused = |why: String| {
        let short = ApiError::new(Reason::BadFormat, at.path(), "…".into(), accepted);
        let message = format!("{}: {why}; accepted: {accepted}", at.path());
        short.saying(message)
    };
    let set = jwks::parse(text.as_bytes()).map_err(refused)?;
    if set.secret {
        return Err(refused(format!("it holds secrets ({})", set.left_out.join("; "))));
    }
    Ok(Jwks::Inline(text.to_owned()))
}

fn file_name(text: &str) -> Option<String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let inside = (1..=128).contains(&text.len()) && !text.starts_with('.');
    (inside && text.bytes().all(good)).then(|| text.to_owned())
}

fn url_text(text: &str) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let good = text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'"');
    (good && !host.is_empty() && !host.contains('@')).then(|| text.to_owned())
}

fn pem_text(text: &str) -> Option<String> {
    (text.len() <= 64 << 10 && text.contains("-----BEGIN CERTIFICATE-----")).then(|| text.to_owned())
}

impl TokenHeader {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["name", "prefix"], &[])?;
        let accepted = "what stands before the token: at most 64 visible characters and spaces";
        let prefix = |text: &str| {
            let good = text.len() <= 64 && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            good.then(|| text.to_owned())
        };
        Ok(Self {
            name: fields.need("name", HEADER)?.parsed(HEADER, header)?,
            prefix: fields.read("prefix", |at| at.parsed(accepted, prefix))?.unwrap_or_default(),
        })
    }
}

impl ClaimHeader {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["claim", "header"], &[])?;
        Ok(Self {
            claim: fields.need("claim", PLAIN)?.parsed(PLAIN, plain)?,
            header: fields.need("header", HEADER)?.parsed(HEADER, header)?,
        })
    }
}

impl JwtTerms {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["provider", "subjects", "claims"], &["notSubjects", "audiences"])?;
        let provider = "the name of one of the mesh's jwtProviders";
        Ok(Self {
            provider: fields.need("provider", provider)?.checked(&LABEL)?,
            subjects: fields.each("subjects", 1..=MAX_VALUES, |at| at.parsed(PLAIN, plain))?,
            claims: fields.each("claims", 1..=MAX_HEADERS, |at| ClaimTerm::read(&at))?,
        })
    }
}

impl ClaimTerm {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["name", "values"], &["notValues"])?;
        let values = fields.need("values", "a list of 1..=64 texts")?.list(1..=MAX_VALUES)?;
        Ok(Self {
            name: fields.need("name", PLAIN)?.parsed(PLAIN, plain)?,
            values: values.iter().map(|at| at.parsed(PLAIN, plain)).collect::<Result<_, _>>()?,
        })
    }
}

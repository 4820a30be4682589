//! What becomes of requests and responses on their way: the filters of an `HTTPRoute`'s rules and backends.
//!
//! The Gateway API's shape. Each kind stands once in a list, but mirrors; a redirect sends nothing on, so it stands
//! without a rewrite and without backends. Headers that say where a message ends, or to whom it goes, are not
//! edited: `URLRewrite` has the host, the rest is the proxy's.
//! Not here: what is done (mesh-core's route and http1).

use serde::Serialize;

use super::BackendRef;
use super::http_match::{path_value, repeated};
use crate::error::{ApiError, Reason};
use crate::name::HOSTNAME;
use crate::walk::At;

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type")]
pub enum HttpFilter {
    /// Headers of requests.
    RequestHeaderModifier {
        /// What changes.
        #[serde(rename = "requestHeaderModifier")]
        edits: HeaderEdits,
    },
    /// Headers of responses.
    ResponseHeaderModifier {
        /// What changes.
        #[serde(rename = "responseHeaderModifier")]
        edits: HeaderEdits,
    },
    /// An answer that names another place.
    RequestRedirect {
        /// Which.
        #[serde(rename = "requestRedirect")]
        to: Redirect,
    },
    /// Host and path that the backend sees.
    #[serde(rename = "URLRewrite")]
    UrlRewrite {
        /// What changes.
        #[serde(rename = "urlRewrite")]
        to: Rewrite,
    },
    /// An answer that stands here.
    DirectResponse {
        /// Which.
        #[serde(rename = "directResponse")]
        answer: DirectResponse,
    },
    /// Copies of requests, whose answers nobody sees.
    RequestMirror {
        /// To whom, and how many.
        #[serde(rename = "requestMirror")]
        to: Mirror,
    },
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Changes of headers: set, then add, then remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderEdits {
    /// In place of all of that name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<Header>,
    /// Beside those that are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<Header>,
    /// Names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// What takes the place of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type")]
pub enum PathEdit {
    /// Of the whole.
    ReplaceFullPath {
        /// By this.
        #[serde(rename = "replaceFullPath")]
        path: String,
    },
    /// Of the prefix that the rule has matched.
    ReplacePrefixMatch {
        /// By this.
        #[serde(rename = "replacePrefixMatch")]
        prefix: String,
    },
}

/// Where clients are sent. What is absent stays as they had it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<&'static str>,
    /// Host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathEdit>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status_code: u16,
}

/// What a backend sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// Host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathEdit>,
}

/// An answer in place of any backend's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// 200 to 599.
    pub status_code: u16,
    /// What the body is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Up to 4096 bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
}

/// Who gets copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// A service; its weight means nothing.
    pub backend_ref: BackendRef,
    /// Of so many requests (the second) so many (the first).
    #[serde(serialize_with = "as_fraction")]
    pub fraction: (u32, u32),
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn as_fraction<S: serde::Serializer>(
    (numerator, denominator): &(u32, u32),
    to: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fraction {
        numerator: u32,
        denominator: u32,
    }
    Fraction { numerator: *numerator, denominator: *denominator }.serialize(to)
}

/// Where filters stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A rule; whether one of its matches has something else than a prefix.
    Rule { prefixes: bool },
    /// A rule of a `GRPCRoute`: headers and copies.
    Grpc,
    /// A backend: headers alone.
    Backend,
}

impl Of {
    /// The types that may stand there, and those that may not yet.
    fn kinds(self) -> (&'static [(&'static str, u8)], &'static [&'static str]) {
        match self {
            Self::Rule { .. } => (&KINDS, &["ExtensionRef", "CORS", "ExternalAuth"]),
            Self::Grpc => (&GRPC_KINDS, &["ExtensionRef", "ExternalAuth"]),
            Self::Backend => {
                (&KINDS[..2], &["ExtensionRef", "CORS", "RequestRedirect", "URLRewrite", "RequestMirror"])
            }
        }
    }
}

const GRPC_KINDS: [(&str, u8); 3] = [KINDS[0], KINDS[1], KINDS[4]];

const KINDS: [(&str, u8); 6] = [
    ("RequestHeaderModifier", 0),
    ("ResponseHeaderModifier", 1),
    ("RequestRedirect", 2),
    ("URLRewrite", 3),
    ("RequestMirror", 4),
    ("DirectResponse", 5),
];

impl HttpFilter {
    /// To whom copies go, where it is about copies.
    pub(super) fn mirror(&self) -> Option<&BackendRef> {
        match self {
            Self::RequestMirror { to } => Some(&to.backend_ref),
            _ => None,
        }
    }

    /// Does it answer in a backend's place?
    pub(super) fn answers(&self) -> bool {
        matches!(self, Self::RequestRedirect { .. } | Self::DirectResponse { .. })
    }

    /// A list of them.
    pub(super) fn each(at: &At<'_>, of: Of) -> Result<Vec<Self>, ApiError> {
        let mut seen = [false; KINDS.len()];
        let mut out = Vec::new();
        for at in at.list(0..=16)? {
            let (filter, kind) = Self::read(&at, of)?;
            if seen[usize::from(kind)] && kind != 4 {
                return Err(at.refuse(Reason::Conflict, "each type once, but RequestMirror"));
            }
            seen[usize::from(kind)] = true;
            if [2, 3, 5].iter().filter(|kind| seen[**kind]).count() > 1 {
                let accepted = "one of RequestRedirect, URLRewrite and DirectResponse";
                return Err(at.refuse(Reason::Conflict, accepted));
            }
            out.push(filter);
        }
        Ok(out)
    }

    fn read(at: &At<'_>, of: Of) -> Result<(Self, u8), ApiError> {
        let known = [
            "type",
            "requestHeaderModifier",
            "responseHeaderModifier",
            "requestRedirect",
            "urlRewrite",
            "requestMirror",
            "directResponse",
        ];
        let fields = at.object(&known, &["extensionRef", "cors", "externalAuth"])?;
        let (kinds, unbuilt) = of.kinds();
        let kind = fields.need("type", "the filter's type")?.one_of(kinds, unbuilt)?;
        let own = known[usize::from(kind) + 1];
        for other in known[1..].iter().filter(|other| **other != own) {
            if let Some(at) = fields.get(other) {
                return Err(at.refuse(Reason::Conflict, format!("{own} alone, as the type says")));
            }
        }
        let at = fields.need(own, "what the type names")?;
        let filter = match kind {
            0 => Self::RequestHeaderModifier { edits: HeaderEdits::read(&at)? },
            1 => Self::ResponseHeaderModifier { edits: HeaderEdits::read(&at)? },
            2 => Self::RequestRedirect { to: Redirect::read(&at, of)? },
            3 => Self::UrlRewrite { to: Rewrite::read(&at, of)? },
            4 => Self::RequestMirror { to: Mirror::read(&at)? },
            _ => Self::DirectResponse { answer: DirectResponse::read(&at)? },
        };
        Ok((filter, kind))
    }
}

impl HeaderEdits {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["set", "add", "remove"], &[])?;
        let edits = Self {
            set: fields.each("set", 0..=16, |at| Header::read(&at))?,
            add: fields.each("add", 0..=16, |at| Header::read(&at))?,
            remove: fields.each("remove", 0..=16, |at| editable(&at))?,
        };
        let names = edits.set.iter().chain(&edits.add).map(|header| header.name.as_str());
        if repeated(names.chain(edits.remove.iter().map(String::as_str))).is_some() {
            return Err(at.refuse(Reason::Conflict, "each name once in set, add and remove together"));
        }
        Ok(edits)
    }
}

impl Header {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["name", "value"], &[])?;
        Ok(Self {
            name: editable(&fields.need("name", "the name of a header")?)?,
            value: fields.need("value", "the value of a header")?.header_value()?,
        })
    }
}

/// Headers that are the proxy's: they say where a message ends, what the connection is, or to whom it goes.
const FIXED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-mesh-reason",
];

fn editable(at: &At<'_>) -> Result<String, ApiError> {
    let name = at.header_name()?;
    let lower = name.to_ascii_lowercase();
    if FIXED.contains(&lower.as_str()) || lower.starts_with("proxy-") {
        let accepted = "a header that is not the connection's own (host: use URLRewrite)";
        return Err(at.refuse(Reason::BadFormat, accepted));
    }
    Ok(name)
}

impl PathEdit {
    fn read(at: &At<'_>, of: Of) -> Result<Self, ApiError> {
        let fields = at.object(&["type", "replaceFullPath", "replacePrefixMatch"], &[])?;
        let kinds = [("ReplaceFullPath", false), ("ReplacePrefixMatch", true)];
        let kind = fields.need("type", "ReplaceFullPath, ReplacePrefixMatch")?;
        let prefix = kind.one_of(&kinds, &[])?;
        let (own, other) = if prefix {
            ("replacePrefixMatch", "replaceFullPath")
        } else {
            ("replaceFullPath", "replacePrefixMatch")
        };
        if let Some(at) = fields.get(other) {
            return Err(at.refuse(Reason::Conflict, format!("{own} alone, as the type says")));
        }
        let accepted = "a path of 1..=1024 printable ASCII characters from '/' on, or nothing";
        let value = fields
            .need(own, accepted)?
            .parsed(accepted, |text| if text.is_empty() { Some(String::new()) } else { path_value(text) })?;
        if prefix && of != (Of::Rule { prefixes: true }) {
            let accepted = "ReplaceFullPath, where a match of the rule is no PathPrefix";
            return Err(kind.refuse(Reason::Conflict, accepted));
        }
        Ok(if prefix {
            Self::ReplacePrefixMatch { prefix: value }
        } else {
            Self::ReplaceFullPath { path: value }
        })
    }
}

fn host(at: &At<'_>) -> Result<String, ApiError> {
    let accepted = "a lower-case host name without a wildcard, not an address";
    at.parsed(accepted, |text| (!text.starts_with('*') && (HOSTNAME.holds)(text)).then(|| text.to_owned()))
}

impl Redirect {
    fn read(at: &At<'_>, of: Of) -> Result<Self, ApiError> {
        let fields = at.object(&["scheme", "hostname", "path", "port", "statusCode"], &[])?;
        let status = fields.read("statusCode", |at| {
            let code = at.integer(301..=308)?;
            let holds = matches!(code, 301 | 302 | 303 | 307 | 308);
            if holds {
                Ok(code as u16)
            } else {
                Err(at.refuse(Reason::OutOfRange, "301, 302, 303, 307, 308"))
            }
        })?;
        Ok(Self {
            scheme: fields.read("scheme", |at| at.one_of(&[("http", "http"), ("https", "https")], &[]))?,
            hostname: fields.read("hostname", |at| host(&at))?,
            path: fields.read("path", |at| PathEdit::read(&at, of))?,
            port: fields.read("port", |at| at.port())?,
            status_code: status.unwrap_or(302),
        })
    }
}

impl Rewrite {
    fn read(at: &At<'_>, of: Of) -> Result<Self, ApiError> {
        let fields = at.object(&["hostname", "path"], &[])?;
        Ok(Self {
            hostname: fields.read("hostname", |at| host(&at))?,
            path: fields.read("path", |at| PathEdit::read(&at, of))?,
        })
    }
}

impl DirectResponse {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["statusCode", "contentType", "body"], &[])?;
        let body = "0..=4096 bytes of text";
        let holds = |text: &str| (text.len() <= 4096).then(|| text.to_owned());
        let answer = Self {
            status_code: fields.need("statusCode", "200..=599")?.integer(200..=599)? as u16,
            content_type: fields.read("contentType", |at| at.header_value())?,
            body: fields.read("body", |at| at.parsed(body, holds))?.unwrap_or_default(),
        };
        if let Some(at) = fields.get("body").filter(|_| !answer.body.is_empty())
            && matches!(answer.status_code, 204 | 205 | 304)
        {
            return Err(at.refuse(Reason::Conflict, "none: answers of this status have no body"));
        }
        Ok(answer)
    }
}

impl Mirror {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["backendRef", "percent", "fraction"], &[])?;
        let backend = BackendRef::read(&fields.need("backendRef", "a Service and its port")?)?;
        let percent = fields.read("percent", |at| at.integer(0..=100))?;
        let fraction = fields.read("fraction", |at| {
            if percent.is_some() {
                return Err(at.refuse(Reason::Conflict, "percent or fraction, not both"));
            }
            let fields = at.object(&["numerator", "denominator"], &[])?;
            let denominator = fields.read("denominator", |at| at.integer(1..=1_000_000))?.unwrap_or(100);
            let numerator = fields.need("numerator", "0..=denominator")?.integer(0..=denominator)?;
            Ok((numerator as u32, denominator as u32))
        })?;
        Ok(Self { backend_ref: backend, fraction: fraction.unwrap_or((percent.unwrap_or(100) as u32, 100)) })
    }
}

//! `AuthorizationPolicy`: who may connect to which workloads of its namespace, and with which requests.
//!
//! Built: terms that a connection shows (identity, namespace, address, port) and that a request shows (method, path,
//! host, headers, tokens); `allow`, `deny`, `audit`, `custom`. What is negated is refused by name.
//! Not here: what several policies come to (mesh-core's authorise), the forms of paths (http_path).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::envelope::labels;
use super::jwt::JwtTerms;
use crate::error::{ApiError, Reason};
use crate::http_path::PathPattern;
use crate::name::{Form, HOSTNAME, LABEL, SUBDOMAIN};
use crate::spiffe::SpiffeId;
use crate::walk::At;

/// Most rules of a policy.
const MAX_RULES: usize = 64;
/// Most entries of a rule's `from` and `to`.
const MAX_ENTRIES: usize = 16;
/// Most values of one term.
const MAX_VALUES: usize = 64;
/// Longest path.
const MAX_PATH: usize = 1024;

/// What an `AuthorizationPolicy` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuthorizationPolicySpec {
    /// Workloads of the policy's namespace that it is for; empty: all.
    #[serde(skip_serializing_if = "Selector::is_empty")]
    pub selector: Selector,
    /// What becomes of connections that match.
    pub action: Action,
    /// Who is asked about what matches, of the mesh's `extAuthz`; with `custom` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// One of them must match; none: nothing matches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AuthorizationRule>,
}

/// Workloads by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that a workload must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl Selector {
    pub(super) fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }
}

/// What becomes of connections that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// They are let in, unless another policy denies them; what no such policy matches is refused.
    #[default]
    Allow,
    /// They are refused.
    Deny,
    /// They are counted, and nothing is decided.
    Audit,
    /// A provider is asked about requests that nothing else refuses.
    Custom,
}

/// Matches where one entry of `from`, one of `to` and all of `headers` do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuthorizationRule {
    /// Who calls; none: anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<SourceTerms>,
    /// What is called; none: every port, and every request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<TargetTerms>,
    /// Headers that the request has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderTerm>,
}

/// Matches where every kind of term that is there has a value that does; accounts and principals are one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceTerms {
    /// Service accounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<Account>,
    /// Identities.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_texts")]
    pub principals: Vec<SpiffeId>,
    /// Namespaces of the caller.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Addresses of the caller.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<Cidr>,
    /// A token that the request must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtTerms>,
}

/// What is called. Matches where every kind of term that is there has a value that does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetTerms {
    /// Ports of the workload (not of a service).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Methods of requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths of requests.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_texts")]
    pub paths: Vec<PathPattern>,
    /// Hosts of requests: exact, or `*.` and a domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// The header fields of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTerm {
    /// In lower case.
    pub name: String,
    /// What they must be.
    pub is: HeaderIs,
}

/// What the header fields of a name must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderIs {
    /// One of these.
    Values(Vec<String>),
    /// Something that begins so.
    Prefix(String),
    /// There.
    Present,
    /// Not there.
    Absent,
}

/// A service account: `<name>` of the policy's namespace, or `<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace; `None`: the policy's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A network: an address and how many bits of it count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// Its first address.
    pub address: IpAddr,
    /// Bits that count, 0..=32 or 0..=128.
    pub length: u8,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

fn as_texts<S: Serializer>(all: &[impl fmt::Display], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(all.iter().map(ToString::to_string))
}

impl Serialize for HeaderTerm {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(2))?;
        map.serialize_entry("name", &self.name)?;
        match &self.is {
            HeaderIs::Values(values) => map.serialize_entry("values", values)?,
            HeaderIs::Prefix(prefix) => map.serialize_entry("prefix", prefix)?,
            HeaderIs::Present => map.serialize_entry("present", &true)?,
            HeaderIs::Absent => map.serialize_entry("absent", &true)?,
        }
        map.end()
    }
}

impl Cidr {
    /// `<address>/<length>`, or an address alone; bits beyond the length are zero.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address.parse().ok()?, Some(length.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let (bits, host) = match address {
            IpAddr::V4(v4) => {
                let length = length.unwrap_or(32);
                (32, u32::MAX.checked_shr(length.into()).unwrap_or(0) & u32::from(v4) != 0)
            }
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return None,
            IpAddr::V6(v6) => {
                let length = length.unwrap_or(128);
                (128, u128::MAX.checked_shr(length.into()).unwrap_or(0) & u128::from(v6) != 0)
            }
        };
        let length = length.unwrap_or(bits);
        (length <= bits && !host).then_some(Self { address, length })
    }
}

impl AuthorizationPolicySpec {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["selector", "action", "provider", "rules"], &["targetRef", "targetRefs"])?;
        let actions = [
            ("allow", Action::Allow),
            ("deny", Action::Deny),
            ("audit", Action::Audit),
            ("custom", Action::Custom),
        ];
        let action = fields.read("action", |at| at.one_of(&actions, &[]))?.unwrap_or_default();
        let accepted = "the name of one of the mesh's extAuthz, with action: custom and no other";
        let provider = match (action, fields.get("provider")) {
            (Action::Custom, _) => Some(fields.need("provider", accepted)?.checked(&LABEL)?),
            (_, Some(provider)) => return Err(provider.refuse(Reason::Conflict, accepted)),
            (_, None) => None,
        };
        Ok(Self {
            selector: fields.read("selector", |at| Selector::read(&at))?.unwrap_or_default(),
            action,
            provider,
            rules: fields.each("rules", 0..=MAX_RULES, |at| AuthorizationRule::read(&at))?,
        })
    }
}

impl Selector {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["matchLabels"], &["matchExpressions"])?;
        Ok(Self { match_labels: fields.read("matchLabels", |at| labels(&at))?.unwrap_or_default() })
    }
}

impl AuthorizationRule {
    /// Are there terms on requests?
    pub fn asks_requests(&self) -> bool {
        let asks = |to: &TargetTerms| !(to.methods.is_empty() && to.paths.is_empty() && to.hosts.is_empty());
        let token = |from: &SourceTerms| from.jwt.is_some();
        !self.headers.is_empty() || self.to.iter().any(asks) || self.from.iter().any(token)
    }

    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["from", "to", "headers"], &["when"])?;
        Ok(Self {
            // An empty list could be read as "nobody" and as "anybody".
            from: fields.each("from", 1..=MAX_ENTRIES, |at| SourceTerms::read(&at))?,
            to: fields.each("to", 1..=MAX_ENTRIES, |at| TargetTerms::read(&at))?,
            headers: fields.each("headers", 1..=MAX_ENTRIES, |at| HeaderTerm::read(&at))?,
        })
    }
}

impl SourceTerms {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = ["serviceAccounts", "principals", "namespaces", "cidrs", "jwt"];
        let unbuilt = [
            "notServiceAccounts",
            "notPrincipals",
            "notNamespaces",
            "notCidrs",
            "requestPrincipals",
            "notRequestPrincipals",
            "remoteCidrs",
        ];
        let fields = at.object(&known, &unbuilt)?;
        let account = "a service account: NAME of the policy's namespace, or NAMESPACE/NAME";
        let cidr = "a network such as 10.0.0.0/8 or fd00::/8 with zeros behind its length, or an address";
        let principal = "an identity: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT";
        let terms = Self {
            service_accounts: fields
                .each("serviceAccounts", 1..=MAX_VALUES, |at| at.parsed(account, parse_account))?,
            principals: fields
                .each("principals", 1..=MAX_VALUES, |at| at.parsed(principal, |text| text.parse().ok()))?,
            namespaces: fields.each("namespaces", 1..=MAX_VALUES, |at| at.checked(&LABEL))?,
            cidrs: fields.each("cidrs", 1..=MAX_VALUES, |at| at.parsed(cidr, Cidr::parse))?,
            jwt: fields.read("jwt", |at| JwtTerms::read(&at))?,
        };
        if terms == Self::default() {
            let accepted = format!("an object with {}; for anybody leave `from` out", known.join(", "));
            return Err(at.refuse(Reason::OutOfRange, accepted));
        }
        Ok(terms)
    }
}

impl TargetTerms {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = ["ports", "methods", "paths", "hosts"];
        let fields = at.object(&known, &["headers", "notPorts", "notPaths", "notMethods", "notHosts"])?;
        let host =
            "a lower-case host name such as shop.example, *.shop.example for those below, or an address";
        let terms = Self {
            ports: fields.each("ports", 1..=MAX_VALUES, |at| at.port())?,
            methods: fields.each("methods", 1..=MAX_VALUES, |at| at.checked(&METHOD))?,
            paths: fields
                .each("paths", 1..=MAX_VALUES, |at| at.parsed(PathPattern::ACCEPTED, path_pattern))?,
            hosts: fields.each("hosts", 1..=MAX_VALUES, |at| at.parsed(host, parse_host))?,
        };
        if terms == Self::default() {
            let accepted =
                format!("an object with {}; for whatever is called leave `to` out", known.join(", "));
            return Err(at.refuse(Reason::OutOfRange, accepted));
        }
        Ok(terms)
    }
}

impl HeaderTerm {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = ["name", "values", "prefix", "present", "absent"];
        let fields = at.object(&known, &["regex", "notValues"])?;
        let name = fields.need("name", HEADER_NAME.accepted)?.checked(&HEADER_NAME)?.to_ascii_lowercase();
        let yes =
            |at: At<'_>| if at.boolean()? { Ok(()) } else { Err(at.refuse(Reason::OutOfRange, "true")) };
        let values = fields.each("values", 1..=MAX_VALUES, |at| at.checked(&HEADER_VALUE))?;
        let said = [
            (!values.is_empty()).then_some(HeaderIs::Values(values)),
            fields.read("prefix", |at| at.checked(&HEADER_VALUE))?.map(HeaderIs::Prefix),
            fields.read("present", yes)?.map(|()| HeaderIs::Present),
            fields.read("absent", yes)?.map(|()| HeaderIs::Absent),
        ];
        let mut said = said.into_iter().flatten();
        match (said.next(), said.next()) {
            (Some(is), None) => Ok(Self { name, is }),
            _ => Err(at.refuse(Reason::OutOfRange, "exactly one of values, prefix, present, absent")),
        }
    }
}

/// A method of HTTP.
const METHOD: Form = Form {
    accepted: "a method as requests write it, such as GET: 1..=32 letters, digits and !#$%&'*+-.^_`|~",
    holds: |text| text.len() <= 32 && is_token(text),
};

/// Name of a header.
const HEADER_NAME: Form = Form {
    accepted: "a header's name: 1..=64 letters, digits and !#$%&'*+-.^_`|~; for Host use to[].hosts",
    holds: |text| text.len() <= 64 && is_token(text) && !text.eq_ignore_ascii_case("host"),
};

/// Value of a header.
const HEADER_VALUE: Form = Form {
    accepted: "1..=256 printable characters of ASCII, no space at either end",
    holds: |text| {
        let printable = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        (1..=256).contains(&text.len()) && printable && text.trim_ascii() == text
    },
};

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn path_pattern(text: &str) -> Option<PathPattern> {
    (text.len() <= MAX_PATH).then(|| PathPattern::parse(text)).flatten()
}

fn parse_host(text: &str) -> Option<String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_string()),
        Err(_) => (HOSTNAME.holds)(text).then(|| text.to_owned()),
    }
}

fn parse_account(text: &str) -> Option<Account> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let holds = namespace.is_none_or(|namespace| (LABEL.holds)(namespace)) && (SUBDOMAIN.holds)(name);
    holds.then(|| Account { namespace: namespace.map(str::to_owned), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_zeros_behind_its_length() {
        let text = |text: &str| Cidr::parse(text).map(|cidr| cidr.to_string());
        for good in ["10.0.0.0/8", "0.0.0.0/0", "10.1.2.3/32", "fd00::/8", "::/0", "fd00::1/128"] {
            assert_eq!(text(good).as_deref(), Some(good));
        }
        assert_eq!(text("10.1.2.3").as_deref(), Some("10.1.2.3/32"));
        assert_eq!(text("fd00::1").as_deref(), Some("fd00::1/128"));
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "::ffff:10.0.0.0/104", "10.0.0.0/", "x/8", ""]
        {
            assert_eq!(text(bad), None, "{bad}");
        }
    }
}

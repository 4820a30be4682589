//! `explain` of `agent.sock`: what would become of a request of a workload of this node.
//!
//! query ──names──▶ **explain** ──Question──▶ mesh-core's explain ──▶ answer
//!
//! Here the text becomes a question: who asks, what the host's name stands for (the names that workloads are answered
//! with). Not here: any decision.

use std::net::IpAddr;

use http::Uri;
use mesh_api::local::{Answer, ExplainQuery, Explanation, Step, names_match};
use mesh_core::check::Sample;
use mesh_core::explain::{Question, explain};
use mesh_core::snapshot::{Snapshot, WorkloadId};

use super::Admin;
use crate::dns::zone::{self, DOMAIN};
use crate::path::Sockets;

const URL: &str = "http://HOST[:PORT]/PATH";

/// Bytes of an explanation that fit a packet, with what JSON adds.
const TEXT: usize = 40 * 1024;

/// Answers.
pub fn answer(admin: &Admin, query: &ExplainQuery) -> Result<Answer, String> {
    let snapshot = admin.config.snapshot();
    let (steps, question) = asked(&snapshot, query)?;
    let mut said = Explanation { steps, ..Explanation::default() };
    if let Some(question) = question {
        let loads: &dyn Sockets = &*admin.kernel;
        let rest = explain(&snapshot, &question, loads)?;
        said.steps.extend(rest.steps);
        said.elsewhere = rest.elsewhere;
    }
    shorten(&mut said);
    Ok(Answer { explanation: Some(said), ..Answer::ok() })
}

/// What the name says, and the question; `None`: it ends with the name.
fn asked(snapshot: &Snapshot, query: &ExplainQuery) -> Result<(Vec<Step>, Option<Question>), String> {
    let source = source(snapshot, &query.source)?;
    let refuse = |why: &str| format!("url: {:?} is not {URL}: {why}", query.url);
    let uri: Uri = query.url.parse().map_err(|error| refuse(&format!("{error}")))?;
    let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), Some("http" | "https")) => port,
        (None, Some("http")) => 80,
        (None, Some("https")) => 443,
        _ => return Err(refuse("its scheme is not http or https")),
    };
    let headers = query.headers.iter().map(|line| {
        let read = line.split_once(':').filter(|(name, _)| !name.is_empty());
        read.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .ok_or_else(|| format!("headers: {line:?} is not NAME: VALUE"))
    });
    let mut headers = headers.collect::<Result<Vec<_>, _>>()?;
    let mut host = authority.as_str().rsplit('@').next().unwrap_or_default().to_owned();
    // What a client says of its host in a header is what counts.
    if let Some(at) = headers.iter().position(|(name, _)| name.eq_ignore_ascii_case("host")) {
        host = headers.remove(at).1;
    }
    let (step, address) = resolve(snapshot, authority.host());
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let method = if query.method.is_empty() { "GET".to_owned() } else { query.method.clone() };
    let request = Sample { method, path, host, headers };
    Ok((vec![step], address.map(|address| Question { source, address, port, request })))
}

fn source(snapshot: &Snapshot, name: &str) -> Result<WorkloadId, String> {
    let mut found = snapshot.workloads.values().filter(|w| w.local && names_match(name, &w.full_name));
    let first = found.next().ok_or_else(|| {
        format!("source: {name:?} is not a workload of this node: NAMESPACE/NAME or NAME; ask on the node where it runs")
    })?;
    if found.next().is_some() {
        return Err(format!(
            "source: several workloads of this node are called {name:?}: say NAMESPACE/NAME"
        ));
    }
    Ok(first.id)
}

/// What a host's name stands for, as the agent answers the workload.
fn resolve(snapshot: &Snapshot, host: &str) -> (Step, Option<IpAddr>) {
    let step = |says: String| Step { what: "name".into(), says, more: Vec::new() };
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse() {
        return (step(format!("{address} is an address")), Some(address));
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let below = name.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.'));
    let labels: Vec<String> = below.unwrap_or_default().split('.').map(str::to_owned).collect();
    let found = match below {
        Some(_) => zone::look_up(snapshot, &labels, 0),
        None => zone::of_host(snapshot, &name),
    };
    let Some(found) = found else {
        let says = if below.is_some() {
            format!("there is no {name}: NXDOMAIN")
        } else {
            format!(
                "{name} is no name of the mesh: its workload's resolver is asked, and what it answers is dialled"
            )
        };
        return (step(says), None);
    };
    let all: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    let first = found.addresses.iter().find(|address| address.is_ipv4()).or(found.addresses.first()).copied();
    let says = match first {
        Some(first) => format!("{name} is {}; explained for {first}", all.join(", ")),
        None => format!("{name} exists and has no address"),
    };
    (step(says), first)
}

/// Leaves out what does not fit, and says so.
fn shorten(said: &mut Explanation) {
    let length = |step: &Step| step.says.len() + step.more.iter().map(String::len).sum::<usize>() + 64;
    let (mut room, mut fit) = (TEXT, 0);
    for step in &said.steps {
        let Some(left) = room.checked_sub(length(step)) else { break };
        (room, fit) = (left, fit + 1);
    }
    if fit < said.steps.len() {
        let says = format!("{} steps more", said.steps.len() - fit);
        said.steps.truncate(fit);
        said.steps.push(Step { what: "…".into(), says, more: Vec::new() });
    }
    let text = |one: &mesh_api::local::Elsewhere| serde_json::to_string(one).map_or(TEXT, |text| text.len());
    let mut room = room.min(16 * 1024);
    said.elsewhere.retain(|one| {
        let left = room.checked_sub(text(one));
        room = left.unwrap_or(0);
        left.is_some()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::tests::snapshot;

    #[test]
    fn names_stand_for_what_workloads_are_told() {
        let says = |host: &str| {
            let (step, address) = resolve(&snapshot(), host);
            (step.says, address.map(|address| address.to_string()))
        };
        let (text, address) = says("Shop.default.mesh");
        assert_eq!(address.as_deref(), Some("240.240.0.1"));
        assert!(text.contains("fd00::1"), "{text}");
        assert_eq!(says("[fd00::1]").1.as_deref(), Some("fd00::1"));
        assert!(says("gone.default.mesh").0.contains("NXDOMAIN"));
        assert!(says("example.com").0.contains("resolver is asked"));
    }

    #[test]
    fn who_asks_is_of_this_node() {
        let query = ExplainQuery {
            source: "nobody".into(),
            url: "http://shop.default.mesh/".into(),
            ..ExplainQuery::default()
        };
        assert!(asked(&snapshot(), &query).unwrap_err().contains("not a workload of this node"));
    }

    #[test]
    fn an_explanation_fits_a_packet() {
        let step = Step { what: "x".into(), says: "y".repeat(1000), more: Vec::new() };
        let mut said = Explanation { steps: vec![step; 100], ..Explanation::default() };
        shorten(&mut said);
        assert!(said.steps.len() < 50 && said.steps.last().unwrap().says.ends_with("steps more"));
        assert!(serde_json::to_string(&said).unwrap().len() < mesh_api::local::MAX_PACKET);
    }
}

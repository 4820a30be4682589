//! `meshctl flows`: the connections of this node's workloads, from its agent.
//!
//! Open ones first; with `-f` on and on: those that begin, and those that end. Lines of text whose columns have
//! fixed widths, because nobody knows what comes; `-o json` gives an object a line, and one of `lost` and `unrecorded` where
//! flows are missing.

use std::io::{self, Write};

use anyhow::{Result, bail};
use clap::Args;
use mesh_api::local::{FlowLine, FlowPage, FlowQuery, Request, VERSION};

use crate::agent::{RunDir, refusal};
use crate::table::or_dash;

/// Shows the connections of this node's workloads.
#[derive(Args, Debug)]
pub struct Flows {
    /// Go on: those that begin, and those that end
    #[arg(short, long)]
    follow: bool,
    /// Only those of this workload, at either end: NAMESPACE/NAME or NAME
    #[arg(long, default_value = "")]
    workload: String,
    /// Only those to this service: NAMESPACE/NAME:PORT, NAMESPACE/NAME or NAME
    #[arg(long, default_value = "")]
    service: String,
    /// Only those of which the kernel decided this: balanced, direct, outside, captured, …
    #[arg(long, default_value = "")]
    verdict: String,
    /// Only those that take this path
    #[arg(long, default_value = "", value_parser = ["", "kernel", "proxy"], hide_possible_values = true, value_name = "kernel|proxy")]
    path: String,
    /// How to show them
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    #[command(flatten)]
    agent: RunDir,
}

impl Flows {
    pub fn run(self) -> Result<()> {
        let Self { follow, workload, service, verdict, path, output, agent } = self;
        let mut agent = agent.connect()?;
        let flows = FlowQuery { follow, workload, service, verdict, path };
        agent.send(&Request { v: VERSION, op: "flows".into(), flows, ..Request::default() }, &[])?;
        let json = output == "json";
        let mut out = io::stdout().lock();
        if !json {
            say(&mut out, HEAD)?;
        }
        let mut first = true;
        loop {
            let page: FlowPage = agent.receive()?;
            if !page.ok {
                bail!(refusal(page.error.as_deref()));
            }
            let told = tell(&mut out, &page, json);
            // Whoever reads us has seen enough.
            if told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return Ok(());
            }
            told?;
            if page.done {
                return Ok(());
            }
            if std::mem::take(&mut first) && follow {
                agent.be_patient()?;
            }
        }
    }
}

const HEAD: &str = "STATE   SOURCE                    DESTINATION               ENDPOINT                  PATH    VERDICT         AGE  RECEIVED      SENT      SRTT";

fn say(out: &mut impl Write, line: &str) -> io::Result<()> {
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")
}

fn tell(out: &mut impl Write, page: &FlowPage, json: bool) -> io::Result<()> {
    if json {
        if page.lost > 0 || page.unrecorded > 0 {
            say(out, &serde_json::json!({"lost": page.lost, "unrecorded": page.unrecorded}).to_string())?;
        }
        for flow in &page.flows {
            say(out, &serde_json::to_string(flow)?)?;
        }
    } else {
        if page.lost > 0 {
            say(out, &format!("-- {} ended flows are missing here: this reader was too slow", page.lost))?;
        }
        if page.unrecorded > 0 {
            say(
                out,
                &format!("-- {} ended flows left no record: the kernel's ring was full", page.unrecorded),
            )?;
        }
        for flow in &page.flows {
            say(out, &row(flow))?;
        }
    }
    out.flush()
}

fn row(flow: &FlowLine) -> String {
    let FlowLine { state, source, destination, path, verdict, .. } = flow;
    // Outside the mesh a name says nothing.
    let destination = if destination == "outside" { &flow.address } else { destination };
    let endpoint = or_dash(&*flow.endpoint);
    let srtt = if flow.srtt_us == 0 { "-".to_owned() } else { time(f64::from(flow.srtt_us) / 1e6) };
    format!(
        "{state:<6}  {source:<24}  {destination:<24}  {endpoint:<24}  {path:<6}  {verdict:<10}  {:>7}  {:>8}  {:>8}  {srtt:>8}",
        time(flow.seconds),
        bytes(flow.received),
        bytes(flow.sent),
    )
}

/// Three figures and a unit.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}us", s * 1e6),
        s if s < 1.0 => format!("{:.1}ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s => format!("{:.0}h", s / 3600.0),
    }
}

/// Exact up to a megabyte.
fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        _ => format!("{:.1}G", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_under_their_heads() {
        let flow = FlowLine {
            state: "ended".into(),
            source: "default/client".into(),
            destination: "default/web:80".into(),
            path: "kernel".into(),
            verdict: "balanced".into(),
            seconds: 0.0042,
            sent: 77,
            received: 2_500_000,
            srtt_us: 61,
            ..FlowLine::default()
        };
        let row = row(&flow);
        for (title, word) in [("SOURCE", "default/client"), ("PATH", "kernel"), ("VERDICT", "balanced")] {
            assert_eq!(HEAD.find(title), row.find(word), "{title}\n{HEAD}\n{row}");
        }
        for (title, word) in [("AGE", "4.2ms"), ("RECEIVED", "2.5M"), ("SENT", "77"), ("SRTT", "61us")] {
            let end = |text: &str, word: &str| text.find(word).map(|at| at + word.len());
            assert_eq!(end(HEAD, title), end(&row, word), "{title}\n{HEAD}\n{row}");
        }
    }

    #[test]
    fn a_reader_is_told_what_is_missing() {
        let page = FlowPage { ok: true, lost: 7, unrecorded: 2, ..FlowPage::default() };
        let mut text = Vec::new();
        tell(&mut text, &page, false).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("7 ended flows are missing") && text.contains("2 ended flows left no record"));
        let mut text = Vec::new();
        tell(&mut text, &page, true).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "{\"lost\":7,\"unrecorded\":2}\n");
    }
}

//! `meshctl tap`: requests of this node's workloads as they end, from its agent.
//!
//! A line a request until Ctrl-C, or until `--count` have come; `-o json` gives the access log's objects.

use std::io::{self, Write};

use anyhow::{Result, bail};
use clap::Args;
use mesh_api::local::{Request, RequestLine, TapPage, TapQuery, VERSION};

use crate::agent::{RunDir, refusal};
use crate::table::or_dash;

/// Shows requests of this node's workloads as they end.
#[derive(Args, Debug)]
pub struct Tap {
    /// Only those of this caller: NAMESPACE/NAME or NAME
    #[arg(long, default_value = "")]
    source: String,
    /// Only those to this service: NAMESPACE/NAME:PORT, NAMESPACE/NAME or NAME
    #[arg(long, default_value = "")]
    service: String,
    /// Only those of this method
    #[arg(short = 'X', long, default_value = "")]
    method: String,
    /// Only those whose path begins so
    #[arg(long, default_value = "")]
    path: String,
    /// Only those with this status: 503, or 5xx
    #[arg(long, default_value = "")]
    status: String,
    /// Only those that the proxy refused or cut for this reason
    #[arg(long, default_value = "")]
    reason: String,
    /// Only those that came out so
    #[arg(long, default_value = "", value_parser = ["", "ok", "client_error", "server_error"], hide_possible_values = true, value_name = "ok|client_error|server_error")]
    outcome: String,
    /// End after so many
    #[arg(short = 'n', long)]
    count: Option<u64>,
    /// How to show them
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    #[command(flatten)]
    agent: RunDir,
}

impl Tap {
    pub fn run(self) -> Result<()> {
        let Self { source, service, method, path, status, reason, outcome, count, output, agent } = self;
        let mut agent = agent.connect()?;
        let tap = TapQuery { source, service, method, path, status, reason, outcome };
        agent.send(&Request { v: VERSION, op: "tap".into(), tap, ..Request::default() }, &[])?;
        let json = output == "json";
        let mut left = count.unwrap_or(u64::MAX);
        let mut out = io::stdout().lock();
        let mut first = true;
        loop {
            let page: TapPage = agent.receive()?;
            if !page.ok {
                bail!(refusal(page.error.as_deref()));
            }
            if std::mem::take(&mut first) {
                agent.be_patient()?;
                if !json {
                    say(&mut out, HEAD)?;
                }
            }
            let told = tell(&mut out, &page, json, &mut left);
            // Whoever reads us has seen enough.
            if left == 0 || told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return Ok(());
            }
            told?;
        }
    }
}

const HEAD: &str = "TIME          DIR  SOURCE                    DESTINATION               ENDPOINT                  STATUS        TOOK  REQUEST";

fn say(out: &mut impl Write, line: &str) -> io::Result<()> {
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")
}

fn tell(out: &mut impl Write, page: &TapPage, json: bool, left: &mut u64) -> io::Result<()> {
    if page.lost > 0 {
        let lost = page.lost;
        say(
            out,
            &if json {
                serde_json::json!({"lost": lost}).to_string()
            } else {
                format!("-- {lost} requests are missing here: this reader was too slow")
            },
        )?;
    }
    for line in page.requests.iter().take(usize::try_from(*left).unwrap_or(usize::MAX)) {
        say(out, &if json { serde_json::to_string(line)? } else { row(line) })?;
        *left -= 1;
    }
    out.flush()
}

fn row(line: &RequestLine<'_>) -> String {
    let RequestLine {
        time, direction, source, destination, protocol, method, authority, path, reason, ..
    } = line;
    let clock = time.split_once('T').map_or(&**time, |(_, clock)| clock).trim_end_matches('Z');
    let status = match (line.grpc_status, line.status) {
        (Some(code), _) => format!("grpc {code}"),
        (None, 0) => "-".to_owned(),
        (None, status) => status.to_string(),
    };
    let mut text = format!(
        "{clock:<12}  {direction:<3}  {source:<24}  {destination:<24}  {:<24}  {status:<7}  {:>7.1}ms  {protocol}",
        or_dash(&*line.endpoint),
        line.seconds * 1e3,
    );
    if !method.is_empty() {
        text.extend([" ", method, " ", authority, path]);
    }
    if line.tries > 1 {
        text.extend([" tries=", &line.tries.to_string()]);
    }
    if !reason.is_empty() {
        text.extend([" reason=", reason]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> RequestLine<'static> {
        RequestLine {
            time: "2026-11-22T08:00:00.123Z".into(),
            direction: "out".into(),
            source: "default/client".into(),
            destination: "default/web:80".into(),
            endpoint: "default/web-1".into(),
            protocol: "http".into(),
            method: "GET".into(),
            authority: "web".into(),
            path: "/a".into(),
            status: 503,
            reason: "no_endpoints".into(),
            seconds: 0.0042,
            tries: 3,
            ..RequestLine::default()
        }
    }

    #[test]
    fn rows_stand_under_their_heads() {
        let row = row(&line());
        let words = [
            ("TIME", "08:00"),
            ("DIR", "out"),
            ("SOURCE", "default/client"),
            ("ENDPOINT", "default/web-1"),
            ("STATUS", "503"),
            ("REQUEST", "http GET"),
        ];
        for (title, word) in words {
            assert_eq!(HEAD.find(title), row.find(word), "{title}\n{HEAD}\n{row}");
        }
        assert!(row.ends_with("4.2ms  http GET web/a tries=3 reason=no_endpoints"), "{row}");
    }

    #[test]
    fn as_many_are_shown_as_were_asked_for() {
        let page = TapPage { ok: true, requests: vec![line(), line()], lost: 3, ..TapPage::default() };
        let (mut text, mut left) = (Vec::new(), 1);
        tell(&mut text, &page, true, &mut left).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!((left, text.lines().count()), (0, 2), "{text}");
        assert!(text.starts_with("{\"lost\":3}\n{\"time\""), "{text}");
    }
}

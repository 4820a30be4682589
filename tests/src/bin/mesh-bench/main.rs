//! `cargo xtask bench l4|mtls|l7 [--json FILE] [--rounds N] [--only WORD] [--gate]`: what the mesh costs.
//!
//! `WORD` is a part of a case's name, which is "group place metric": `l4`, `same-node connect`, `program`.
//!
//! Always against a peer in the same run; a goal that is not met is printed as such and fails the run only
//! with `--gate`. A case that could not be measured is an error, never a blank.
//!
//! [`l4`]: kernel path against no mesh. [`udp`]: the same for datagrams. [`many`]: does it matter how many
//! services and endpoints there are? [`scale`]: a thousand services: propagation, memory. [`telemetry`]: what
//! noting flows costs. [`mtls`]: tunnels between agents against a pair of Envoys ([`envoy`]). [`l7`]: the proxy against
//! HAProxy and Envoy ([`peers`]).

#![forbid(unsafe_code)]

mod envoy;
mod l4;
mod l7;
mod load;
mod many;
mod mtls;
mod peers;
mod report;
mod router;
mod scale;
mod stats;
mod telemetry;
mod udp;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use report::Report;

/// What was asked for.
pub struct Options {
    /// Rounds of ABBA a case.
    pub rounds: usize,
    /// Cases whose name contains this.
    pub only: String,
}

impl Options {
    /// Was this case asked for?
    pub fn wants(&self, group: &str, place: &str, metric: &str) -> bool {
        format!("{group} {place} {metric}").contains(&self.only)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    let name =
        args.next().context("usage: bench l4|mtls|l7 [--json FILE] [--rounds N] [--only WORD] [--gate]")?;
    let (mut json, mut gate) = (None, false);
    let mut options = Options { rounds: 12, only: String::new() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => json = Some(value()?),
            "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
            "--only" => options.only = value()?,
            "--gate" => gate = true,
            other => bail!("unknown argument {other}"),
        }
    }
    if options.rounds < 6 {
        bail!("--rounds: at least 6, fewer have no interval");
    }
    let rounds = options.rounds;
    let report = match &*name {
        "l4" => {
            println!("bench l4: kernel path against no mesh; mTLS off; {rounds} rounds of ABBA a case");
            let mut report = Report::new("l4", "off");
            l4::run(&options, &mut report)?;
            udp::run(&options, &mut report)?;
            many::run(&options, &mut report)?;
            scale::run(&options, &mut report)?;
            telemetry::run(&options, &mut report)?;
            report
        }
        "mtls" => {
            println!("bench mtls: tunnels against a pair of Envoys; {rounds} rounds of ABBA a case");
            let mut report = Report::new("mtls", "on");
            mtls::run(&options, &mut report)?;
            report
        }
        "l7" => {
            println!(
                "bench l7: the proxy against HAProxy and Envoy; mTLS off; {rounds} rounds of ABBA a case"
            );
            let mut report = Report::new("l7", "off");
            l7::run(&options, &mut report)?;
            report
        }
        other => bail!("no bench {other}; there are l4, mtls and l7"),
    };
    if let Some(path) = json {
        report.write(path.as_ref())?;
        println!("written to {path}");
    }
    println!("{} goals were not met", report.missed());
    Ok(!gate || report.missed() == 0)
}

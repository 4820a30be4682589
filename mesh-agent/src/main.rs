//! `mesh-agent`: parses the command line and says in one sentence why it ends.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::args::{Cli, Command};
use mesh_agent::{admin, agent, telemetry};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => {
            let log = admin::log::init(&args.log, args.log_json)?;
            agent::run(*args, log)
        }
        Command::Cleanup(args) => agent::cleanup(&args),
        Command::MetricsDoc => {
            print!("{}", telemetry::metrics::markdown());
            Ok(())
        }
    }
}

//! The project's own commands: `cargo xtask {build-ebpf, test, demo, bench, fuzz, tidy}`.
//!
//! One file a command. What a command needs on the machine (tool chain, Debian packages) is looked for and,
//! as root on Debian, installed by [`tools`]; a command that can't go on says what to install.
//! Few dependencies on purpose: this is the first thing that a fresh clone compiles.
//!
//! Not here: what demo, stories and benches do. They are programs of the `tests` crate.

#![forbid(unsafe_code)]

mod ebpf;
mod fuzz;
mod run;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};
use test::Profile;

const USAGE: &str = "\
usage: cargo xtask <command>

  build-ebpf             build the BPF object that mesh-agent embeds
  build                  build-ebpf, then every program of the workspace
  test [--all] [NAME]    unit tests and stories (--all: the long ones too; NAME: stories that contain it)
  demo [--once]          two nodes, a control plane and a small shop, until Ctrl-C (--once: exit by itself)
  bench l4 [--json FILE] kernel path against no mesh
  bench mtls [...]       tunnels between agents against a pair of Envoys
  bench l7 [...]         the proxy against HAProxy and Envoy
  bench core [NAME]      single decisions: route, balance, authorise, heads of HTTP/1
  fuzz [NAME] [--seconds N]  bytes of strangers: connect_head, certificate, http1_head
  envoy-api              write mesh-envoy/envoy-v3.binpb anew, from PyPI's xds-protos
  tidy                   checks on the source that the compiler does not make";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    std::env::set_current_dir(run::root())?;
    let Some((command, rest)) = args.split_first() else { bail!("no command\n{USAGE}") };
    match command.as_str() {
        "build-ebpf" => ebpf::build(),
        "build" => test::build(Profile::Dev),
        "test" => test::test(rest),
        "demo" => test::program("mesh-demo", Profile::Dev, rest),
        "bench" => {
            if let Some((name, args)) = rest.split_first()
                && name == "core"
            {
                return test::bench_core(args);
            }
            if rest.first().is_some_and(|name| name == "mtls" || name == "l7") {
                tools::envoy()?;
            }
            test::program("mesh-bench", Profile::Release, rest)
        }
        "fuzz" => fuzz::fuzz(rest),
        "envoy-api" => tools::envoy_api(),
        "tidy" => tidy::tidy(),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown command {other:?}\n{USAGE}"),
    }
}

//! `fuzz`: random and not so random bytes against what reads bytes of strangers, for a time.
//!
//! The targets are programs of `fuzz/`, a workspace of its own in cargo-fuzz's layout; `cargo fuzz` runs them as well,
//! with a nightly compiler. Here they are built as the stable compiler can: counters of coverage by LLVM's own pass, no
//! address sanitizer. libFuzzer comes with the crate `libfuzzer-sys` and is compiled by the C++ compiler.
//!
//! What is found on the way goes to `target/fuzz/corpus`; what fails, to `target/fuzz`: put it into `fuzz/corpus`
//! with its cause mended.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    run::{cargo, output, root, run},
    tools,
};

/// All targets.
pub const TARGETS: [&str; 3] = ["connect_head", "certificate", "http1_head"];

/// Counters of edges and their places, and what is compared with what.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=on \
                     -Coverflow-checks=on";

/// `[TARGET] [--seconds N]`: all targets, half a minute each, where nobody says otherwise.
pub fn fuzz(args: &[String]) -> Result<()> {
    let (mut seconds, mut wanted) = (30_u64, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let number = args.next().and_then(|text| text.parse().ok());
                seconds = number.context("--seconds takes a number")?;
            }
            name if TARGETS.contains(&name) => wanted.push(name),
            other => bail!("no target {other:?}: there are {}", TARGETS.join(", ")),
        }
    }
    if wanted.is_empty() {
        wanted.extend(TARGETS);
    }
    build()?;
    for name in wanted {
        run(&format!("fuzz {name} for {seconds} s"), &mut command(name, seconds)?)?;
    }
    Ok(())
}

/// Builds all targets.
pub fn build() -> Result<()> {
    tools::programs(&[("c++", "g++")])?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"])).context("rustc says no host")?;
    let mut command = cargo(&["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target, what runs while building is not instrumented.
    command.args(["--target", &host, "--target-dir", "target/fuzz"]).env("RUSTFLAGS", FLAGS);
    run("build the fuzz targets", &mut command)?;
    fs::create_dir_all(built()).context("target/fuzz")?;
    for name in TARGETS {
        let from = root().join(format!("target/fuzz/{host}/release/{name}"));
        fs::copy(&from, built().join(name)).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// One target, built before, for so many seconds.
pub fn command(name: &str, seconds: u64) -> Result<Command> {
    let found = root().join("target/fuzz/corpus").join(name);
    fs::create_dir_all(&found).context("target/fuzz/corpus")?;
    let mut command = Command::new(built().join(name));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg("-artifact_prefix=target/fuzz/")
        .arg("-verbosity=0");
    command.args(["-timeout=10", "-max_len=4096", "-print_final_stats=1"]);
    command.arg(found).arg(root().join("fuzz/corpus").join(name));
    Ok(command)
}

fn built() -> PathBuf {
    root().join("target/fuzz/bin")
}

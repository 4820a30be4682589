//! `build`, `test`, and the programs of the `tests` crate (`demo`, `bench`).
//!
//! A test run: Debian packages, BPF object, every program, unit tests, stories; then a summary that ends
//! with cargo's own result lines. A part that fails does not hide the parts after it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    ebpf, fuzz,
    run::{cargo, root, run, say},
    tools,
};

/// Program → Debian package: what stories, demo and benches run.
const PROGRAMS: [(&str, &str); 23] = [
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("python3", "python3"),
    ("ps", "procps"),
    ("strace", "strace"),
    ("bpftool", "bpftool"),
    ("setsid", "util-linux"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("gtlsclient", "ngtcp2-client"),
    ("gtlsserver", "ngtcp2-server"),
    ("openssl", "openssl"),
    ("promtool", "prometheus"),
    ("haproxy", "haproxy"),
    ("h2load", "nghttp2-client"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("tinyproxy", "tinyproxy-bin"),
    ("etcd", "etcd-server"),
];

/// A fuzz target in `test --all`.
const FUZZ_SECONDS: u64 = 15;

/// What tests and demo run, or what benches do.
#[derive(Clone, Copy)]
pub enum Profile {
    /// Builds fast.
    Dev,
    /// Runs fast.
    Release,
}

/// The BPF object, then everything that runs.
pub fn build(profile: Profile) -> Result<()> {
    ebpf::build()?;
    let mut command = cargo(&["build", "--workspace", "--bins"]);
    if let Profile::Release = profile {
        command.arg("--release");
    }
    run("build the workspace", &mut command)?;
    Ok(())
}

/// What a part of the test run came to.
struct Part {
    name: &'static str,
    failed: Vec<String>,
    results: Vec<String>,
    ok: bool,
    seconds: u64,
}

/// Unit tests and stories.
pub fn test(args: &[String]) -> Result<()> {
    let all = args.iter().any(|a| a == "--all");
    let filter: Vec<&str> = args.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    let begin = Instant::now();
    tools::programs(&PROGRAMS)?;
    tools::python_modules()?;
    tools::xds_protos()?;
    tools::envoy()?;
    tools::grpcio()?;
    tools::schemathesis()?;
    build(Profile::Dev)?;
    let mut parts = Vec::new();
    if filter.is_empty() {
        let mut unit = cargo(&["test", "--workspace", "--lib", "--bins", "--no-fail-fast"]);
        parts.push(part("unit tests", &mut unit)?);
        let others = ["test", "--workspace", "--exclude", "mesh-tests", "--test", "*", "--no-fail-fast"];
        parts.push(part("tests of crates", &mut cargo(&others))?);
    }
    // The whole workspace each time: with fewer packages cargo gives what they share other features, and builds
    // it again.
    let mut stories = cargo(&["test", "--workspace", "--test", "stories", "--"]);
    stories.args(&filter);
    if !all {
        stories.args(["--skip", "long::"]);
    }
    parts.push(part("stories", &mut stories)?);
    if all {
        fuzz::build()?;
        for name in fuzz::TARGETS {
            parts.push(part("fuzz", &mut fuzz::command(name, FUZZ_SECONDS)?)?);
        }
        build(Profile::Release)?;
        let mut bench = Command::new(root().join("target/release/mesh-bench"));
        bench.args(["l4", "--json", "target/bench-l4.json"]);
        parts.push(part("bench l4", &mut bench)?);
    }
    summary(&parts, begin.elapsed().as_secs())
}

fn summary(parts: &[Part], seconds: u64) -> Result<()> {
    println!("\n==> summary after {} min {} s", seconds / 60, seconds % 60);
    for part in parts {
        println!("    {:<22} {:>4} s  {}", part.name, part.seconds, if part.ok { "ok" } else { "FAILED" });
        for name in &part.failed {
            println!("        {name}");
        }
    }
    println!();
    for line in parts.iter().flat_map(|part| &part.results) {
        println!("{line}");
    }
    let failed: Vec<_> = parts.iter().filter(|part| !part.ok).map(|part| part.name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs one part, its output passing through, cargo's result lines kept.
fn part(name: &'static str, command: &mut Command) -> Result<Part> {
    say(name);
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("can't start {name}"))?;
    let output = child.stdout.take().context("no output of the child")?;
    let (mut failed, mut results) = (Vec::new(), Vec::new());
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(output).lines() {
        let line = line?;
        writeln!(out, "{line}")?;
        // Doc tests of crates without any, and binaries without tests, say nothing of use.
        if line.starts_with("test result:") && !line.contains(" 0 passed; 0 failed; 0 ignored;") {
            results.push(line);
        } else if line.starts_with("test ") && line.ends_with("FAILED") {
            failed.push(line);
        }
    }
    let ok = child.wait()?.success();
    Ok(Part { name, failed, results, ok, seconds: begin.elapsed().as_secs() })
}

/// Times single decisions; `args` are criterion's.
pub fn bench_core(args: &[String]) -> Result<()> {
    let mut command = cargo(&["bench", "--workspace", "--bench", "core", "--"]);
    run("bench core", command.args(args))?;
    Ok(())
}

/// Builds everything and becomes the program `name` of the `tests` crate: Ctrl-C goes straight to it.
pub fn program(name: &str, profile: Profile, args: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    if !tools::is_root() {
        bail!("{name} makes network namespaces and loads BPF programs: run it as root");
    }
    tools::programs(&PROGRAMS)?;
    build(profile)?;
    let folder = match profile {
        Profile::Dev => "target/debug",
        Profile::Release => "target/release",
    };
    let path = root().join(folder).join(name);
    let error = Command::new(&path).args(args).exec();
    Err(error).with_context(|| format!("can't run {}", path.display()))
}

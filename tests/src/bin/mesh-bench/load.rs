//! Programs that make load, what they say of it, and what a process has burnt.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::Pod;

use crate::stats::percentile;

/// Ticks of `/proc/PID/stat` a second.
const TICKS: f64 = 100.0;

/// What a load came to.
pub struct Done {
    /// Requests that were answered.
    pub requests: f64,
    /// A second.
    pub rate: f64,
    /// Microseconds, the median of their times.
    pub median_us: f64,
}

/// Runs wrk in a pod; an answer that is none is an error.
pub fn wrk(pod: &Pod, args: &[&str]) -> Result<Done> {
    let output = pod.run("wrk", &[&["--latency"], args].concat())?;
    ensure!(!output.contains("Socket errors") && !output.contains("Non-2xx"), "wrk: {output}");
    let said = |prefix: &str| {
        let mut lines = output.lines().map(str::trim);
        let line = lines.find_map(|line| line.strip_prefix(prefix)).map(str::trim);
        line.with_context(|| format!("wrk said no {prefix}: {output}"))
    };
    let line = output.lines().find(|line| line.contains(" requests in "));
    let count = line.and_then(|line| line.trim().split(' ').next()).context("wrk counted nothing")?;
    Ok(Done {
        requests: count.parse()?,
        rate: said("Requests/sec:")?.parse()?,
        median_us: microseconds(said("50%")?)?,
    })
}

/// Runs h2load in a pod; every request must have been answered with 2xx.
pub fn h2load(pod: &Pod, args: &[&str]) -> Result<Done> {
    let output = pod.run("h2load", args)?;
    // requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout
    let line =
        output.lines().find(|line| line.starts_with("requests: ")).context("h2load counted nothing")?;
    let count = |what: &str| -> Option<f64> {
        let part = line.trim_start_matches("requests: ").split(", ").find(|part| part.ends_with(what))?;
        part.split(' ').next()?.parse().ok()
    };
    let bad = count("failed").unwrap_or(1.0) + count("errored").unwrap_or(1.0);
    ensure!(bad == 0.0, "h2load: {output}");
    // finished in 2.00s, 12345.50 req/s, 1.2MB/s
    let finished =
        output.lines().find(|line| line.starts_with("finished in ")).context("h2load did not finish")?;
    let rate = finished.split(", ").nth(1).and_then(|part| part.split(' ').next()).context("no rate")?;
    let requests = count("succeeded").context("h2load counted nothing")?;
    ensure!(requests > 0.0, "h2load: {output}");
    Ok(Done { requests, rate: rate.parse()?, median_us: f64::NAN })
}

/// Requests of HTTP/1 at a steady rate, spread over `connections`: the 99th percentile of their times, microseconds.
pub fn p99_at(pod: &Pod, url: &str, connections: usize, rate: f64, time: Duration) -> Result<f64> {
    let log = pod.work().join("h2load.log");
    // It appends.
    let _ = fs::remove_file(&log);
    let each = (rate / connections as f64).max(1.0).round();
    let total = (each * connections as f64 * time.as_secs_f64()).round();
    let (connections, each, total) = (connections.to_string(), each.to_string(), total.to_string());
    let path = log.to_string_lossy().into_owned();
    let args = ["--h1", "-t1", "-c", &connections, "-n", &total, "--rps", &each, "--log-file", &path, url];
    h2load(pod, &args)?;
    // Start in microseconds, status, duration in microseconds.
    let text = fs::read_to_string(&log)?;
    let times: Vec<f64> = text.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    ensure!(!times.is_empty(), "h2load wrote no times");
    Ok(percentile(&times, 99.0))
}

/// `1.23ms` as wrk writes it.
fn microseconds(text: &str) -> Result<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).context("no unit")?);
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        _ => 1e6,
    };
    Ok(number.parse::<f64>()? * scale)
}

/// User and system time of a process, all threads.
pub fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything: state is the third field, utime the fourteenth.
    let after = stat.rsplit_once(") ").context("/proc/PID/stat")?.1;
    let ticks: Vec<f64> = after.split(' ').skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    ensure!(ticks.len() == 2, "/proc/{pid}/stat: {stat}");
    Ok((ticks[0] + ticks[1]) / TICKS)
}

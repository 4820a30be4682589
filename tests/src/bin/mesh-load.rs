//! Opens connections and sends requests, and counts exactly what became of each.
//!
//! `mesh-load ADDRESS:PORT [--threads N] [--rate R] [--count N] [--seconds S] [--host H] [--path P]
//! [--keep-alive | --hang-up | --connect-only]`. Runs until its standard input ends, the count is reached or the time is
//! over. Prints a [`Report`] as a JSON line ten times a second and at the end.
//!
//! An operation is one of: connection, request, whole answer, end (default: the server's, then ours; to hang up:
//! ours, then the server's); request and answer on a kept connection; connection and reset. A connection that breaks is opened anew and the break is counted.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mesh_tests::{
    clock::monotonic_ns,
    load::{LOST_MAX, Lost, Report},
};
use rustix::net::{AddressFamily, SocketType, socket, sockopt::set_socket_linger};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Latencies kept a thread: what comes after does not change a percentile by much.
const SAMPLES_MAX: usize = 1 << 20;

#[derive(Clone)]
struct Options {
    to: SocketAddr,
    threads: u32,
    rate: Option<f64>,
    count: u64,
    seconds: f64,
    host: String,
    path: String,
    keep_alive: bool,
    hang_up: bool,
    connect_only: bool,
}

/// What one thread has counted; read by the printer.
#[derive(Default)]
struct Counts {
    ok: u64,
    errors: BTreeMap<String, u64>,
    servers: BTreeMap<String, u64>,
    connect_ns: Vec<u64>,
    total_ns: Vec<u64>,
    lost: Vec<Lost>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    begun: AtomicU64,
    counts: Vec<Mutex<Counts>>,
}

fn main() -> Result<()> {
    let options = options()?;
    let counts = (0..options.threads).map(|_| Mutex::default()).collect();
    let shared = Arc::new(Shared { counts, ..Shared::default() });
    let begin = Instant::now();
    let workers: Vec<_> = (0..options.threads as usize)
        .map(|index| {
            let (options, shared) = (options.clone(), shared.clone());
            thread::spawn(move || work(&options, &shared, index))
        })
        .collect();
    let watcher = shared.clone();
    thread::spawn(move || {
        // Whatever is said, or nothing: the end of the input is the end of the load.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        watcher.stop.store(true, Ordering::Relaxed);
    });
    let mut printed = Instant::now();
    while workers.iter().any(|worker| !worker.is_finished()) {
        thread::sleep(Duration::from_millis(2));
        if begin.elapsed().as_secs_f64() >= options.seconds {
            shared.stop.store(true, Ordering::Relaxed);
        }
        if printed.elapsed() >= Duration::from_millis(100) {
            printed = Instant::now();
            print(&shared, begin, false);
        }
    }
    print(&shared, begin, true);
    Ok(())
}

fn options() -> Result<Options> {
    let mut args = std::env::args().skip(1);
    let to = args.next().context("no ADDRESS:PORT")?.parse().context("ADDRESS:PORT")?;
    let mut options = Options {
        to,
        threads: 1,
        rate: None,
        count: u64::MAX,
        seconds: f64::INFINITY,
        host: to.to_string(),
        path: "/".to_owned(),
        keep_alive: false,
        hang_up: false,
        connect_only: false,
    };
    while let Some(name) = args.next() {
        let mut value = || args.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--threads" => options.threads = value()?.parse()?,
            "--rate" => options.rate = Some(value()?.parse()?),
            "--count" => options.count = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--host" => options.host = value()?,
            "--path" => options.path = value()?,
            "--keep-alive" => options.keep_alive = true,
            "--hang-up" => options.hang_up = true,
            "--connect-only" => options.connect_only = true,
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(options)
}

fn work(options: &Options, shared: &Shared, index: usize) {
    let pause = options.rate.map(|rate| Duration::from_secs_f64(f64::from(options.threads) / rate));
    let mut next = Instant::now();
    let mut kept = None;
    while !shared.stop.load(Ordering::Relaxed) && shared.begun.fetch_add(1, Ordering::Relaxed) < options.count
    {
        if let Some(pause) = pause {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += pause;
        }
        let outcome = operation(options, &mut kept);
        let mut counts = shared.counts[index].lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(done) => {
                counts.ok += 1;
                if let Some(server) = done.server {
                    *counts.servers.entry(server).or_default() += 1;
                }
                if let Some(ns) = done.connect_ns.filter(|_| counts.connect_ns.len() < SAMPLES_MAX) {
                    counts.connect_ns.push(ns);
                }
                if counts.total_ns.len() < SAMPLES_MAX {
                    counts.total_ns.push(done.total_ns);
                }
            }
            Err((cause, lost)) => {
                kept = None;
                *counts.errors.entry(cause).or_default() += 1;
                if counts.lost.len() < LOST_MAX {
                    counts.lost.push(lost);
                }
            }
        }
    }
}

struct Done {
    server: Option<String>,
    connect_ns: Option<u64>,
    total_ns: u64,
}

/// A connection that is kept, and when it was begun.
struct Kept {
    stream: TcpStream,
    begun: u64,
}

fn operation(options: &Options, kept: &mut Option<Kept>) -> Result<Done, (String, Lost)> {
    let begun = kept.as_ref().map_or_else(monotonic_ns, |kept| kept.begun);
    let done = if options.connect_only {
        connect_alone(options.to).map_err(|error| named("connect", &error))
    } else {
        request(options, kept, begun)
    };
    done.map_err(|cause| (cause, Lost { begun, seen: monotonic_ns() }))
}

fn request(options: &Options, kept: &mut Option<Kept>, begun: u64) -> Result<Done, String> {
    let begin = Instant::now();
    let mut connect_ns = None;
    let mut stream = if let Some(kept) = kept.take() {
        kept.stream
    } else {
        let stream = connect(options.to).map_err(|error| named("connect", &error))?;
        connect_ns = Some(begin.elapsed().as_nanos() as u64);
        stream
    };
    let stays = options.keep_alive || options.hang_up;
    let close = if stays { "" } else { "Connection: close\r\n" };
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n{close}\r\n", options.path, options.host);
    stream.write_all(request.as_bytes()).map_err(|error| named("write", &error))?;
    let (server, ends) = answer(&mut stream, stays)?;
    let server = Some(server);
    if options.keep_alive && !ends {
        *kept = Some(Kept { stream, begun });
    }
    Ok(Done { server, connect_ns, total_ns: begin.elapsed().as_nanos() as u64 })
}

/// The system call alone, between two looks at the clock; then a reset: no TIME_WAIT, ports are free at once.
fn connect_alone(to: SocketAddr) -> io::Result<Done> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    let begin = Instant::now();
    rustix::net::connect(&socket, &to)?;
    let ns = begin.elapsed().as_nanos() as u64;
    Ok(Done { server: None, connect_ns: Some(ns), total_ns: ns })
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Reads one whole answer; the name of who gave it, and whether he ends the connection with it.
fn answer(stream: &mut TcpStream, stays: bool) -> Result<(String, bool), String> {
    let mut bytes = Vec::with_capacity(512);
    let mut chunk = [0; 4096];
    loop {
        let length = stream.read(&mut chunk).map_err(|error| named("read", &error))?;
        bytes.extend_from_slice(&chunk[..length]);
        let text = String::from_utf8_lossy(&bytes);
        let whole = complete(&text);
        if length == 0 && !whole {
            return Err(if bytes.is_empty() { "read Closed" } else { "read Truncated" }.to_owned());
        }
        if whole && (stays || length == 0) {
            let status = text.split(' ').nth(1).unwrap_or_default();
            if status != "200" {
                let head = text.to_ascii_lowercase();
                let reason = head.lines().find_map(|line| line.strip_prefix("x-mesh-reason:"));
                return Err(format!("status {status} {}", reason.unwrap_or_default().trim())
                    .trim_end()
                    .to_owned());
            }
            let mut words = text.split_whitespace();
            let name = words.find_map(|word| word.strip_prefix("name=")).unwrap_or("?").to_owned();
            let head = text.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
            return Ok((name, head.contains("\r\nconnection: close")));
        }
    }
}

/// Whether `text` holds a head and as many bytes of body as it promises.
fn complete(text: &str) -> bool {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.and_then(|(_, value)| value.trim().parse().ok()).is_none_or(|length: usize| body.len() >= length)
}

fn named(operation: &str, error: &io::Error) -> String {
    format!("{operation} {:?}", error.kind())
}

fn print(shared: &Shared, begin: Instant, last: bool) {
    let mut report = Report { seconds: begin.elapsed().as_secs_f64(), ..Report::default() };
    let (mut connect_ns, mut total_ns) = (Vec::new(), Vec::new());
    for counts in &shared.counts {
        let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        report.ok += counts.ok;
        for (name, count) in &counts.errors {
            *report.errors.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &counts.servers {
            *report.servers.entry(name.clone()).or_default() += count;
        }
        report.lost.extend_from_slice(&counts.lost);
        if last {
            connect_ns.extend_from_slice(&counts.connect_ns);
            total_ns.extend_from_slice(&counts.total_ns);
        }
    }
    report.connect_ns = percentiles(connect_ns);
    report.total_ns = percentiles(total_ns);
    if let Ok(line) = serde_json::to_string(&report) {
        println!("{line}");
    }
}

fn percentiles(mut samples: Vec<u64>) -> [u64; 2] {
    samples.sort_unstable();
    [50, 99].map(|percent| samples.get(samples.len() * percent / 100).copied().unwrap_or(0))
}

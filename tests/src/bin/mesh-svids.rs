//! A node of nothing but identities: joins, registers workloads that do not exist, each of a service account of its own,
//! and has all their certificates renewed, as fast as agents do after a rotation, each time it is told to.
//!
//! `mesh-svids NODE CONTROL TOKEN-FILE STATE-DIR COUNT SECONDS`. Prints `registered`, then for each line on its
//! standard input `rotated COUNT in MILLISECONDS`, having spread the calls over so many seconds; ends with the input.

#![forbid(unsafe_code)]

use std::{
    io::BufRead,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::{
    config::connect::ControlPlane,
    identity::{make, member::Member},
};
use mesh_api::proto::v1::{
    Heartbeat, Hello, SessionUp, SignRequest, SigningRequest, Workload, WorkloadUpsert,
    identity_client::IdentityClient, node_client::NodeClient, session_down::Message as Down,
    session_up::Message as Up, signed,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// Requests in a call, as agents send them.
const BATCH: usize = 256;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [node, control, token, state, count, seconds] = &args[..] else {
        bail!("usage: mesh-svids NODE CONTROL TOKEN-FILE STATE-DIR COUNT SECONDS")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(
        node,
        control,
        (token, state),
        count.parse()?,
        Duration::from_secs(seconds.parse()?),
    ))
}

async fn run(
    node: &str,
    control: &str,
    files: (&String, &String),
    count: usize,
    spread: Duration,
) -> Result<()> {
    let member = Member::open(node, Path::new(files.0), Path::new(files.1))?;
    let control = ControlPlane::new(control, "", member)?;
    let (channel, _) = control.connect().await?;
    let (up, messages) = mpsc::channel(64);
    let hello = Hello { node: node.to_owned(), ..Hello::default() };
    say(&up, Up::Hello(hello)).await?;
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut down = NodeClient::new(channel.clone()).session(stream).await?.into_inner();
    let told = tokio::spawn({
        let (up, node) = (up.clone(), node.to_owned());
        async move {
            for number in 0..count {
                say(&up, Up::Upsert(workload(&node, number))).await?;
            }
            say(&up, Up::Heartbeat(Heartbeat {})).await
        }
    });
    let mut accepted = 0;
    while accepted < count {
        match down.message().await?.context("the session ended")?.message {
            Some(Down::Accepted(_)) => accepted += 1,
            Some(Down::Refused(refused)) => bail!("refused: {}", refused.reason),
            _ => {}
        }
    }
    told.await??;
    println!("registered");
    // The session's answers are read as long as it lasts: here they are of no interest.
    tokio::spawn(async move { while let Ok(Some(_)) = down.message().await {} });
    tokio::spawn(async move {
        while say(&up, Up::Heartbeat(Heartbeat {})).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    let (lines, mut asked) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() || lines.blocking_send(()).is_err() {
                return;
            }
        }
    });
    while asked.recv().await.is_some() {
        let begun = Instant::now();
        let mut client = IdentityClient::new(channel.clone());
        for first in (0..count).step_by(BATCH) {
            tokio::time::sleep_until((begun + spread.mul_f64(first as f64 / count as f64)).into()).await;
            sign(&mut client, first..count.min(first + BATCH)).await?;
        }
        println!("rotated {count} in {}", begun.elapsed().as_millis());
    }
    Ok(())
}

async fn sign(client: &mut IdentityClient<Channel>, numbers: std::ops::Range<usize>) -> Result<()> {
    let requests = numbers.map(|number| {
        let identity = format!("spiffe://mesh.local/ns/default/sa/sa-{number}");
        let (_, csr) = make::key(Some(&identity))?;
        Ok(SigningRequest { identity, csr })
    });
    let requests: Vec<_> = requests.collect::<Result<_>>()?;
    let wanted = requests.len();
    let results = client.sign(SignRequest { requests }).await?.into_inner().results;
    let signed =
        results.iter().filter(|one| matches!(one.result, Some(signed::Result::Certificate(_)))).count();
    ensure!(signed == wanted, "{signed} of {wanted} were signed: {:?}", results.first());
    Ok(())
}

async fn say(up: &mpsc::Sender<SessionUp>, message: Up) -> Result<()> {
    up.send(SessionUp { message: Some(message) }).await.context("the session ended")
}

/// Somewhere that nobody calls.
fn workload(node: &str, number: usize) -> WorkloadUpsert {
    // Each node's of their own.
    let crowd = 200 + node.bytes().last().unwrap_or_default() % 10;
    let address = format!("10.{crowd}.{}.{}", number / 250, number % 250 + 1);
    let workload = Workload {
        namespace: "default".to_owned(),
        name: format!("{node}-{number}"),
        service_account: format!("sa-{number}"),
        node: node.to_owned(),
        addresses: vec![address],
        ..Workload::default()
    };
    WorkloadUpsert {
        request: number as u64 + 1,
        workload: Some(workload),
        memberships: Vec::new(),
        starting: false,
    }
}

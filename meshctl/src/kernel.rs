//! `meshctl status --kernel`: the kernel's side of this node, from its agent.

use std::time::Duration;

use anyhow::{Result, anyhow};
use mesh_api::local::{FeatureStatus, KernelStatus, MapStatus, ProgramStatus, Request, VERSION};

use crate::agent::RunDir;
use crate::table::{self, or_dash};

/// How long the programs' runs are counted.
const MEASURE: Duration = Duration::from_secs(1);
/// Link ids in a row; of more only how many there are.
const LINKS: usize = 4;

/// Asks and shows; `measure`: what the programs cost, over a second.
pub fn show(agent: &RunDir, measure: bool, json: bool) -> Result<()> {
    let measure_ms = if measure { MEASURE.as_millis() as u32 } else { 0 };
    let request = Request { v: VERSION, op: "kernel".into(), measure_ms, ..Request::default() };
    let answer = agent.connect()?.ask(&request, &[])?;
    let status = answer.kernel.ok_or_else(|| anyhow!("the agent's answer says nothing of the kernel"))?;
    if json {
        println!("{:#}", serde_json::to_value(&status)?);
        return Ok(());
    }
    let KernelStatus { kernel, pins, adopted, programs, features, maps, verdicts } = status;
    let since = if adopted { "; maps of an earlier agent were kept" } else { "" };
    println!("Linux {kernel}, pinned at {pins}{since}\n");
    table::print(&PROGRAMS, &programs.iter().map(program).collect::<Vec<_>>());
    println!();
    table::print(&["FEATURE", "ON", "WHY NOT"], &features.iter().map(feature).collect::<Vec<_>>());
    println!();
    table::print(
        &["MAP", "ENTRIES", "ROOM", "FULL", "MEMORY", "KIND"],
        &maps.iter().map(map).collect::<Vec<_>>(),
    );
    println!();
    let counts: Vec<_> = verdicts
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(verdict, count)| vec![verdict, count.to_string()])
        .collect();
    table::print(&["VERDICT", "CONNECTIONS"], &counts);
    Ok(())
}

const PROGRAMS: [&str; 8] = ["PROGRAM", "ID", "LINKS", "ORDER", "RUNS", "NS/RUN", "ATTACHED TO", "AT"];

fn program(p: &ProgramStatus) -> Vec<String> {
    let links = if p.links.len() > LINKS {
        format!("{} links", p.links.len())
    } else {
        p.links.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    };
    let (runs, each) = match p.runs {
        0 => (String::new(), String::new()),
        runs => (runs.to_string(), (p.run_ns / runs).to_string()),
    };
    let (id, order) = (p.id.to_string(), p.order.clone().unwrap_or_default());
    let words = [p.name.clone(), id, links, order, runs, each, p.attach.clone(), p.target.clone()];
    words.map(or_dash).into()
}

fn feature(f: &FeatureStatus) -> Vec<String> {
    vec![f.name.clone(), if f.on { "yes" } else { "no" }.to_owned(), or_dash(&*f.why)]
}

fn map(m: &MapStatus) -> Vec<String> {
    if let Some(error) = &m.error {
        return [&m.name, "", "", "", "", error].map(or_dash).into();
    }
    let entries = m.entries.map(|n| n.to_string()).unwrap_or_default();
    let room = if m.capacity == 0 { String::new() } else { m.capacity.to_string() };
    let full = match (m.entries, m.capacity) {
        (Some(n), capacity) if capacity > 0 => format!("{} %", n * 100 / capacity),
        _ => String::new(),
    };
    let memory = m.bytes.map(|bytes| format!("{} KiB", bytes.div_ceil(1024))).unwrap_or_default();
    [m.name.clone(), entries, room, full, memory, m.kind.clone()].map(or_dash).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_counted_is_a_dash() {
        let mut p = ProgramStatus { name: "p".into(), links: vec![3, 4], ..ProgramStatus::default() };
        assert_eq!(program(&p), ["p", "0", "3,4", "-", "-", "-", "-", "-"]);
        (p.runs, p.run_ns, p.links) = (10, 1234, vec![1; 9]);
        assert_eq!(program(&p)[2..6], ["9 links", "-", "10", "123"]);
        let m = MapStatus { name: "M".into(), entries: Some(3), capacity: 4, ..MapStatus::default() };
        assert_eq!(map(&m)[1..5], ["3", "4", "75 %", "-"]);
    }
}

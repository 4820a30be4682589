//! `meshctl explain`: what would become of a request, decision by decision, without sending it.
//!
//! The agent of the caller's node says what it would do; who may call workloads of other nodes the control plane is
//! asked for, where it can be.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use mesh_api::local::{Elsewhere, ExplainQuery, Explanation, Request, Step, VERSION};

use crate::agent::RunDir;
use crate::authz::Check;
use crate::client::{Client, Connection};

/// Says what would become of a request of a workload of this node.
#[derive(Args, Debug)]
pub struct Explain {
    /// Who calls: a workload of this node, [NAMESPACE/]NAME
    source: String,
    /// Method
    method: String,
    /// What is called: http://HOST[:PORT]/PATH
    url: String,
    /// A header, NAME:VALUE; may be repeated
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// How to show it
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    output: String,
    #[command(flatten)]
    agent: RunDir,
}

impl Explain {
    pub fn run(self, control: &Connection) -> Result<()> {
        let Self { source, method, url, headers, output, agent } = self;
        let explain = ExplainQuery { source, method, url, headers };
        let request = Request { v: VERSION, op: "explain".into(), explain, ..Request::default() };
        let Some(mut said) = agent.connect()?.ask(&request, &[])?.explanation else {
            bail!("the agent explains nothing: it is of another version");
        };
        if !said.elsewhere.is_empty() {
            let client = control.open();
            for one in std::mem::take(&mut said.elsewhere) {
                said.steps.push(elsewhere(client.as_ref(), one));
            }
        }
        if output == "json" {
            println!("{}", serde_json::to_string_pretty(&said)?);
        } else {
            print!("{}", text(&said));
        }
        Ok(())
    }
}

/// What the control plane says of a workload of another node.
fn elsewhere(client: Result<&Client, &anyhow::Error>, one: Elsewhere) -> Step {
    let step = |says: String| Step { what: "authorisation".into(), says, more: Vec::new() };
    let name = one.workload.clone();
    let answer = client
        .map_err(|error| format!("{error:#}"))
        .and_then(|client| client.get(&Check::of(one).asks()).map_err(|error| format!("{error:#}")));
    match answer {
        Err(why) => step(format!("{name}: not known, the control plane cannot be asked: {why}")),
        Ok(answer) => {
            let item = &answer["items"][0];
            let end = if item["allowed"] == true { "let in" } else { "refused" };
            step(format!("{name}: {end}, {}", item["decided"].as_str().unwrap_or("?")))
        }
    }
}

fn text(said: &Explanation) -> String {
    // Writing to a string cannot fail.
    let mut text = String::new();
    for Step { what, says, more } in &said.steps {
        let _ = writeln!(text, "{what:<14}{says}");
        for line in more {
            let _ = writeln!(text, "{:14}  {line}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_with_what_else_there_was() {
        let step = Step { what: "route".into(), says: "rule d/r/0".into(), more: vec!["d/r/1: no".into()] };
        let said = Explanation { steps: vec![step], elsewhere: vec![] };
        assert_eq!(text(&said), "route         rule d/r/0\n                d/r/1: no\n");
    }

    #[test]
    fn who_cannot_be_asked_is_said() {
        let one = Elsewhere { workload: "d/db".into(), ..Elsewhere::default() };
        let step = elsewhere(Err(&anyhow::anyhow!("no token")), one);
        assert!(step.says.starts_with("d/db: not known") && step.says.ends_with("no token"), "{step:?}");
    }
}

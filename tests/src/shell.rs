//! Running a program to its end and taking its output.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs `command`, `stdin` going in; what it printed. A non-zero exit is an error with its standard error.
pub fn run(command: &mut Command, stdin: &str) -> Result<String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {shown}"))?;
    // What goes in is small: it fits the pipe, so writing all of it before reading can't dead-lock.
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read its input is free to.
        let _ = pipe.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Many `ip` commands in one process, in the namespace `netns`.
pub fn ip(netns: &str, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", netns, "-batch", "-"]);
    run(&mut command, &(lines.join("\n") + "\n")).map(drop)
}

//! The node's own commands: a file of the agent (`--commands`), which services name commands of.
//!
//! ```yaml
//! commands:
//!   pg-ready: {run: [/usr/bin/pg_isready, -q]}
//!   restart-cart: {run: [/usr/local/bin/restart-cart], timeout: 20s}
//! ```
//! Read whenever a command is to be run: what it says now holds. Invariant: nobody but its owner and the agent's user
//! can write it, or nothing of it is run. Not here: running (command).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_api::duration;
use serde::Deserialize;

/// Most bytes of the file.
const MOST: u64 = 1 << 20;
/// How long a restart may take where its command does not say.
const TIME: Duration = Duration::from_secs(30);
/// At most.
const LONGEST: Duration = Duration::from_mins(10);

/// The file, if the node has one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands(Option<PathBuf>);

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub run: Vec<String>,
    /// How long it may take, where it is no check.
    pub timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    commands: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    run: Vec<String>,
    timeout: Option<String>,
}

impl Commands {
    /// Of this file.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// The command of this name, or why there is none.
    pub async fn find(&self, name: &str) -> Result<Command, String> {
        let Some(path) = self.0.clone() else {
            return Err(format!(
                "this node has no commands, and {name} none: start mesh-agent with --commands FILE"
            ));
        };
        let name = name.to_owned();
        let found = tokio::task::spawn_blocking(move || {
            let all = read(&path)?;
            let known: Vec<&str> = all.keys().map(String::as_str).take(16).collect();
            let known = known.join(", ");
            all.get(&name)
                .cloned()
                .ok_or_else(|| format!("{}: has no command {name}; it has: {known}", path.display()))
        });
        found.await.map_err(|error| error.to_string())?
    }
}

/// What the file says; an error names the file and what is wrong with it.
pub fn read(path: &Path) -> Result<BTreeMap<String, Command>, String> {
    let at = path.display();
    let meta = std::fs::metadata(path).map_err(|error| format!("{at}: {error}"))?;
    if !meta.is_file() || meta.len() > MOST {
        return Err(format!("{at}: not a file of at most {MOST} bytes"));
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o022 != 0 || (meta.uid() != own && meta.uid() != 0) {
        return Err(format!(
            "{at}: others than the agent's user can write it, and would run what they like: chown root, chmod 644"
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{at}: {error}"))?;
    parse(&text).map_err(|error| format!("{at}: {error}"))
}

fn parse(text: &str) -> Result<BTreeMap<String, Command>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    file.commands
        .into_iter()
        .map(|(name, entry)| command(&name, entry).map(|command| (name, command)))
        .collect()
}

fn command(name: &str, entry: Entry) -> Result<Command, String> {
    if !entry.run.first().is_some_and(|program| program.starts_with('/')) {
        return Err(format!("commands.{name}.run: not a program by its whole path, and its arguments"));
    }
    let timeout = match entry.timeout {
        None => TIME,
        Some(text) => {
            duration::parse(&text).filter(|time| !time.is_zero() && *time <= LONGEST).ok_or_else(|| {
                format!("commands.{name}.timeout: {text:?} is not {} in 1ms..=10m", duration::ACCEPTED)
            })?
        }
    };
    Ok(Command { run: entry.run, timeout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn commands_are_programs_by_their_whole_path() {
        let all =
            parse("commands:\n  a: {run: [/bin/true, -x]}\n  b: {run: [/bin/false], timeout: 5s}\n").unwrap();
        assert_eq!(all["a"], Command { run: vec!["/bin/true".into(), "-x".into()], timeout: TIME });
        assert_eq!(all["b"].timeout, Duration::from_secs(5));
        for (bad, want) in [
            ("commands: {a: {run: [true]}}", "commands.a.run"),
            ("commands: {a: {run: []}}", "commands.a.run"),
            ("commands: {a: {run: [/x], timeout: 1h}}", "commands.a.timeout"),
            ("commands: {a: {run: [/x], as: root}}", "as"),
            ("x: 1", "x"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(want), "{bad}: {error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_others_can_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("commands.yaml");
        std::fs::write(&path, "commands: {a: {run: [/bin/true]}}").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let commands = Commands::new(Some(path.clone()));
        assert!(commands.find("a").await.is_ok());
        assert!(commands.find("b").await.unwrap_err().contains("has no command b; it has: a"));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(commands.find("a").await.unwrap_err().contains("chmod"));
        assert!(Commands::new(None).find("a").await.unwrap_err().contains("--commands"));
    }
}

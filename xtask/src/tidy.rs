//! `tidy`: rules of this code base that the compiler does not know.
//!
//! Each rule is one function from a file (path and text) to complaints. A rule that needs more than one
//! file (metrics, README, links) stands at the end. All complaints are printed, not only the first.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::run::{output, say};

/// Longer files are two files.
const LINES_MAX: usize = 500;
/// Longer READMEs are documentation.
const README_MAX: usize = 150;
/// Where `unsafe` may stand.
const UNSAFE_PLACES: [&str; 4] =
    ["mesh-ebpf/", "mesh-common/src/pod.rs", "mesh-agent/src/sys/", "tests/src/sys/"];
/// Crates that have no such place forbid it.
const SAFE_CRATES: [&str; 7] =
    ["mesh-api", "mesh-core", "mesh-envoy", "mesh-registry", "mesh-control", "meshctl", "xtask"];
/// Written apart, so that this file keeps its own rule.
const UNFINISHED: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[ign", "ore"),
];

struct Source {
    path: String,
    text: String,
}

/// Runs every rule.
pub fn tidy() -> Result<()> {
    let sources = sources()?;
    say(format!("tidy: {} files", sources.len()));
    let maps = map_names();
    let mut complaints = Vec::new();
    if maps.is_empty() {
        complaints.push("mesh-common/src/maps.rs: no map names found".to_owned());
    }
    for source in &sources {
        let mut found = Vec::new();
        page(source, &mut found);
        unfinished(source, &mut found);
        map_literals(source, &maps, &mut found);
        clocks(source, &mut found);
        unsafe_places(source, &mut found);
        complaints.extend(found.into_iter().map(|what| format!("{}{what}", source.path)));
    }
    forbids(&mut complaints);
    readme(&mut complaints);
    links(&mut complaints)?;
    metrics(&mut complaints)?;
    for complaint in &complaints {
        println!("{complaint}");
    }
    if !complaints.is_empty() {
        bail!("tidy: {} complaints", complaints.len());
    }
    say("tidy: ok");
    Ok(())
}

/// Every Rust file under version control, or about to be.
fn sources() -> Result<Vec<Source>> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rs"]);
    let Some(list) = output(&mut command) else { bail!("tidy needs git and a work tree") };
    let mut sources = Vec::new();
    for path in list.lines() {
        // A file that git knows and somebody has just removed is no complaint.
        if let Ok(text) = fs::read_to_string(path) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    Ok(sources)
}

/// A page at the top; not too long.
fn page(source: &Source, found: &mut Vec<String>) {
    if !source.text.lines().take(3).any(|line| line.starts_with("//!")) {
        found.push(": no //! page at the top".to_owned());
    }
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        found.push(format!(": {lines} lines, more than {LINES_MAX}"));
    }
}

fn unfinished(source: &Source, found: &mut Vec<String>) {
    for (number, line) in numbered(source) {
        for word in UNFINISHED {
            if line.contains(word) {
                found.push(format!(":{number}: {word}"));
            }
        }
    }
}

/// A map's name stands once, in mesh-common.
fn map_literals(source: &Source, maps: &[String], found: &mut Vec<String>) {
    // Elsewhere the same words are column heads and the like.
    let places = ["mesh-agent/", "mesh-core/", "mesh-ebpf/", "tests/"];
    if !places.iter().any(|place| source.path.starts_with(place)) {
        return;
    }
    for (number, line) in numbered(source) {
        for name in maps {
            if line.contains(&format!("\"{name}\"")) {
                found.push(format!(
                    ":{number}: map name {name} as a literal; use mesh_common::maps::{name}.name"
                ));
            }
        }
    }
}

/// mesh-core gets the time as an argument.
fn clocks(source: &Source, found: &mut Vec<String>) {
    let pure = ["mesh-core/src/", "mesh-envoy/src/", "mesh-registry/src/"]
        .iter()
        .any(|place| source.path.starts_with(place));
    if !pure || source.path.contains("/tests") {
        return;
    }
    // Tests stand at the end.
    for (number, line) in numbered(source).take_while(|(_, line)| !line.starts_with("#[cfg(test)]")) {
        if line.contains("Instant::now") || line.contains("SystemTime::now") {
            found.push(format!(":{number}: reads a clock; take `now` as an argument"));
        }
    }
}

fn unsafe_places(source: &Source, found: &mut Vec<String>) {
    if UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place)) || source.path.starts_with("xtask/") {
        return;
    }
    for (number, line) in numbered(source) {
        let code = line.split("//").next().unwrap_or_default();
        let words: Vec<_> = code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '"').collect();
        if words.contains(&"unsafe") {
            found.push(format!(":{number}: unsafe outside {}", UNSAFE_PLACES.join(", ")));
        }
    }
}

fn numbered(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source.text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// The names in `mesh-common::maps`.
fn map_names() -> Vec<String> {
    let text = fs::read_to_string("mesh-common/src/maps.rs").unwrap_or_default();
    let specs = text.split("spec(").skip(1);
    specs
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
        .map(str::to_owned)
        .collect()
}

fn forbids(complaints: &mut Vec<String>) {
    for name in SAFE_CRATES {
        let roots = ["src/lib.rs", "src/main.rs"].map(|file| Path::new(name).join(file));
        for root in roots.iter().filter(|root| root.exists()) {
            if !fs::read_to_string(root).unwrap_or_default().contains("#![forbid(unsafe_code)]") {
                complaints.push(format!("{}: no #![forbid(unsafe_code)]", root.display()));
            }
        }
    }
}

fn readme(complaints: &mut Vec<String>) {
    let lines = fs::read_to_string("README.md").unwrap_or_default().lines().count();
    if lines == 0 || lines > README_MAX {
        complaints.push(format!("README.md: {lines} lines, not in 1..={README_MAX}"));
    }
}

/// Links in Markdown lead to files that are there.
fn links(complaints: &mut Vec<String>) -> Result<()> {
    let mut pages = vec![PathBuf::from("README.md")];
    for folder in ["docs", "docs/decisions", "benches"] {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            pages.push(entry?.path());
        }
    }
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(page).unwrap_or_default();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let base = page.parent().unwrap_or(Path::new(""));
            if !file.is_empty() && !file.contains("://") && !base.join(file).exists() {
                complaints.push(format!("{}: link to {file}, which is not there", page.display()));
            }
        }
    }
    Ok(())
}

/// `docs/metrics.md` is what the agent says about its metrics.
fn metrics(complaints: &mut Vec<String>) -> Result<()> {
    // As the test command builds it: another choice of packages would mean other features, and all anew.
    crate::test::build(crate::test::Profile::Dev)?;
    let Some(says) = output(Command::new("target/debug/mesh-agent").arg("metrics-doc")) else {
        complaints.push("mesh-agent metrics-doc: fails".to_owned());
        return Ok(());
    };
    if says.is_empty() || fs::read_to_string("docs/metrics.md").unwrap_or_default().trim() != says {
        complaints.push(
            "docs/metrics.md: not what mesh-agent says; run target/debug/mesh-agent metrics-doc > docs/metrics.md"
                .to_owned(),
        );
    }
    Ok(())
}

//! Files of objects, from a file, a directory or standard input.
//!
//! Every object is parsed here before anything is sent, so that a mistake in the last document does not
//! leave the first ones applied; errors name file, line and field.
//!
//! Not here: the texts themselves (`mesh_api::manifest`), what the control plane alone can know.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::manifest::{self, Object, TEXT_MAX};

/// `-f`, as often as wanted.
#[derive(Args)]
pub struct Files {
    /// File, directory of .yaml, .yml and .json files, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
}

impl Files {
    /// All objects, in the order in which they are best written.
    pub fn read(&self) -> Result<Vec<Object>> {
        read_all(&self.filename)
    }
}

/// All objects of these, in the order in which they are best written.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for path in paths {
        let before = objects.len();
        if path == Path::new("-") {
            objects.extend(manifest::parse("standard input", &text(std::io::stdin(), "standard input")?)?);
        } else if path.is_dir() {
            for file in files(path)? {
                objects.extend(read_file(&file)?);
            }
        } else {
            objects.extend(read_file(path)?);
        }
        if objects.len() == before {
            bail!("{} has no objects (of a directory .yaml, .yml and .json files are read)", path.display());
        }
    }
    // Stable: what a kind refers to is written before it, files keep their order.
    objects.sort_by_key(|object| object.key.kind);
    Ok(objects)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read the directory {}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if manifest::is_manifest(path.extension().and_then(|end| end.to_str())) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Vec<Object>> {
    let name = path.display().to_string();
    let file = fs::File::open(path).with_context(|| format!("cannot open {name}; check -f"))?;
    Ok(manifest::parse(&name, &text(file, &name)?)?)
}

fn text(from: impl Read, name: &str) -> Result<String> {
    let mut text = String::new();
    let read = from.take(TEXT_MAX as u64 + 1).read_to_string(&mut text);
    let length = read.with_context(|| format!("cannot read {name} as UTF-8 text"))?;
    if length > TEXT_MAX {
        bail!("{name} is larger than {TEXT_MAX} bytes; split it");
    }
    Ok(text)
}

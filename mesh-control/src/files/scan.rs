//! Reads the files of a directory: `.yaml`, `.yml` and `.json`, not what is below it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_api::manifest::{self, TEXT_MAX};
use mesh_api::resource::Resource;

/// Most objects of a directory.
const OBJECTS_MAX: usize = 100_000;

/// Objects in the order in which they are best written, or what is wrong, a sentence each.
pub type Scanned = Result<Vec<Resource>, Vec<String>>;

/// By file: size, time of change (seconds, nanoseconds) and inode.
pub type Fingerprint = Vec<(PathBuf, u64, i64, i64, u64)>;

/// What tells one state of a directory from another, without reading it.
pub fn fingerprint(directory: &Path) -> Fingerprint {
    let Ok(paths) = files(directory) else { return Vec::new() };
    let one = |path: PathBuf| {
        let meta = fs::metadata(&path).ok()?;
        Some((path, meta.len(), meta.ctime(), meta.ctime_nsec(), meta.ino()))
    };
    paths.into_iter().filter_map(one).collect()
}

/// Everything that stands in it.
pub fn scan(directory: &Path) -> Scanned {
    let paths =
        files(directory).map_err(|error| vec![format!("cannot read {}: {error}", directory.display())])?;
    let (mut objects, mut problems, mut places) = (Vec::new(), Vec::new(), BTreeMap::new());
    for path in paths {
        let name = path.display().to_string();
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) => {
                problems.push(format!("{name}: cannot be read: {error}"));
                continue;
            }
        };
        match manifest::parse(&name, &text) {
            Err(mistake) => problems.push(mistake.to_string()),
            Ok(found) => {
                for object in found {
                    if let Some(first) = places.insert(object.key.clone(), object.place.clone()) {
                        problems.push(format!("{}: {} stands at {first} as well", object.place, object.key));
                    }
                    objects.push(object.resource);
                }
            }
        }
    }
    if objects.len() > OBJECTS_MAX {
        problems.push(format!("{} objects are more than {OBJECTS_MAX}", objects.len()));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    objects.sort_by_key(Resource::kind);
    Ok(objects)
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // Editors and mounted volumes keep what is not meant yet under such names.
        if !hidden && manifest::is_manifest(path.extension().and_then(|end| end.to_str())) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = fs::File::open(path)?.take(TEXT_MAX as u64 + 1).read_to_string(&mut text)?;
    if length > TEXT_MAX {
        return Err(io::Error::other(format!("it is larger than {TEXT_MAX} bytes; split it")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "apiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

    #[test]
    fn a_directory_is_whole_or_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(scan(dir.path()), Ok(vec![]));
        write("a.yaml", WEB.as_bytes());
        write("notes.txt", b"not ours");
        write(".b.yaml.swp.yaml", b"half");
        let before = fingerprint(dir.path());
        assert_eq!(scan(dir.path()).unwrap().len(), 1);
        write("b.yml", WEB.as_bytes());
        write("c.json", b"{");
        write("d.yaml", b"\xff\xfe");
        assert_ne!(fingerprint(dir.path()), before);
        let problems = scan(dir.path()).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems[0].contains("b.yml:1: Service default/web stands at")
                && problems[0].contains("a.yaml:1")
        );
        assert!(problems[1].contains("c.json") && problems[2].contains("UTF-8"), "{problems:?}");
        assert!(scan(&dir.path().join("none")).unwrap_err()[0].contains("cannot read"));
    }
}

//! What the mirror answers of the present and the past.

use super::super::layout::{write_ttl, write_value};
use super::*;

fn layout() -> Layout {
    Layout::new("/m")
}

fn kv(key: Vec<u8>, value: Vec<u8>, created: i64, modified: i64) -> pb::KeyValue {
    pb::KeyValue { key, value, create_revision: created, mod_revision: modified, lease: 0 }
}

fn put(kv: pb::KeyValue) -> pb::Event {
    pb::Event { r#type: EventType::Put.into(), kv: Some(kv) }
}

fn gone(key: Vec<u8>, revision: i64) -> pb::Event {
    pb::Event { r#type: EventType::Delete.into(), kv: Some(kv(key, Vec::new(), 0, revision)) }
}

fn write(key: &str, value: &str, lease: Option<&str>, created: i64, revision: i64) -> [pb::Event; 2] {
    let head = kv(layout().head(), b"w:1".to_vec(), 1, revision);
    [put(kv(layout().key(key), write_value(value.as_bytes(), lease), created, revision)), put(head)]
}

fn shown(mirror: &Mirror, at: Option<u64>) -> String {
    let text = |entry: &Entry| format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value));
    mirror.range("/", at).unwrap().entries.iter().map(text).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_past_is_the_present_undone_and_ends_where_it_was_loaded() {
    let mut mirror = Mirror::default();
    let loaded = [
        kv(layout().id(), b"store".to_vec(), 1, 1),
        kv(layout().head(), b"w:0".to_vec(), 1, 7),
        kv(layout().key("/a"), write_value(b"1", None), 7, 7),
        kv(b"/m/later/thing".to_vec(), b"?".to_vec(), 9, 9),
    ];
    mirror.load(&layout(), &loaded);
    assert_eq!(
        (mirror.id.as_str(), mirror.revision()),
        ("store", 7),
        "its own head, whatever else was written"
    );
    mirror.apply(&layout(), &write("/a", "2", None, 7, 12));
    mirror.apply(&layout(), &write("/b", "1", None, 13, 13));
    mirror
        .apply(&layout(), &[gone(layout().key("/a"), 15), put(kv(layout().head(), b"w:9".to_vec(), 1, 15))]);
    assert_eq!(shown(&mirror, None), "/b=1");
    assert_eq!(shown(&mirror, Some(14)), "/a=2 /b=1");
    assert_eq!(shown(&mirror, Some(7)), "/a=1");
    assert_eq!(mirror.range("/", Some(6)), Err(StoreError::Compacted { asked: 6, oldest: 7 }));
    assert_eq!(mirror.changes("/", 16, 9), Err(StoreError::Future { asked: 16, newest: 15 }));
    let told = mirror.changes("/", 7, 1).unwrap();
    assert_eq!((told.upto, told.changes.len()), (12, 1));
    assert_eq!((mirror.marked(b"w:9"), mirror.marked(b"w:8")), (Some(15), None));
    // Loaded anew: who asks from before must read it all.
    mirror.load(&layout(), &loaded[..2]);
    assert_eq!(mirror.changes("/", 8, 9), Err(StoreError::Compacted { asked: 8, oldest: 15 }));
    assert_eq!(mirror.revision(), 15, "revisions never go back");
}

#[test]
fn leases_know_their_keys() {
    let mut mirror = Mirror::default();
    mirror.apply(&layout(), &[put(kv(layout().lease("n"), write_ttl(Duration::from_secs(3)), 2, 2))]);
    mirror.apply(&layout(), &write("/w/a", "1", Some("n"), 2, 2));
    mirror.apply(&layout(), &write("/w/b", "1", Some("n"), 3, 3));
    mirror.apply(&layout(), &write("/w/a", "2", None, 2, 4));
    assert_eq!(mirror.keys_of("n").collect::<Vec<_>>(), ["/w/b"]);
    assert_eq!(mirror.leases()[0].ttl, Duration::from_secs(3));
    mirror.apply(&layout(), &[gone(layout().lease("n"), 5), gone(layout().key("/w/b"), 5)]);
    assert!(mirror.leases().is_empty() && mirror.keys_of("n").next().is_none());
}

#[test]
fn the_past_is_bounded_by_whole_revisions() {
    let mut mirror = Mirror::default();
    for revision in 1..=(LOG_MAX as i64 + 10) {
        mirror.apply(&layout(), &write("/a", "x", None, 1, revision));
    }
    assert_eq!(mirror.log.len(), LOG_MAX);
    assert_eq!(mirror.changes("/", 9, 1), Err(StoreError::Compacted { asked: 9, oldest: 10 }));
    assert_eq!(mirror.changes("/", 10, 1).map(|changes| changes.changes[0].revision), Ok(11));
}

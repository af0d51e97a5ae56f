use std::fs;

use tempfile::TempDir;

use super::super::open::Opened;
use super::*;
use crate::broker::embedded::codec::Raw;

const MESSAGES: u64 = 40;

fn spec() -> ChannelSpec {
    crate::broker::conformance::channel("salvage", 1, &["all"])
}

/// A folder with a channel of one partition whose first half is settled, and its file.
fn filled() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let Opened { database, path, .. } = open::open(folder.path()).expect("a file");
    load::save_channel(&database, 1, &spec()).expect("a channel");
    let group = load::add_group(&database, 1, "all").expect("a group");
    for offset in 0..MESSAGES {
        let message = Raw { id: format!("m-{offset}").into(), payload: vec![7; 900].into(), ..Raw::default() };
        rows::insert(&database, place(1, 0, offset), 1, &message).expect("a row");
    }
    let partition = Partition { first: 0, next: MESSAGES, bytes: MESSAGES * 900 };
    load::save_partition(&database, 1, 0, partition).expect("a partition");
    let cursor = Cursor { settled: Settled::below(MESSAGES / 2), processed: MESSAGES / 2, ..Cursor::default() };
    load::save_cursor(&database, group, 0, &cursor).expect("a cursor");
    (folder, path)
}

fn change(path: &Path, sql: &str) {
    let database = Connection::open(path).expect("it opens");
    assert!(database.execute(sql, []).expect("it is changed") > 0);
}

/// Partition, cursor and number of messages after the next start.
fn reopened(folder: &TempDir) -> (Partition, Cursor, u64) {
    let opened = open::open(folder.path()).expect("it opens");
    let channel = load::channels(&opened.database).expect("they can be read").remove(0);
    let count = rows::count(&opened.database, 1, 0, 0, u64::MAX >> 25).expect("they can be counted");
    (channel.partitions[0], channel.groups["all"].cursors[0].clone(), count)
}

/// A start after an end between any two steps has everything.
#[test]
fn an_interrupted_salvage_is_finished() {
    for steps in 0..=5 {
        let (folder, path) = filled();
        if steps >= 1 {
            fs::write(with_suffix(&path, ".part"), "half a file").expect("it is written");
        }
        if steps >= 2 {
            build(&path).expect("a new file");
        }
        if steps >= 3 {
            set_aside(&path).expect("the old one is set aside");
            // As if its log had been there: it must not be taken for the new one's.
            fs::write(with_suffix(&path, "-wal"), "a log").expect("it is written");
        }
        if steps >= 4 {
            let aside = latest_aside(&path).expect("a list").expect("a file");
            rename(&with_suffix(&path, "-wal"), &with_suffix(&aside, "-wal")).expect("the log too");
        }
        if steps >= 5 {
            put_in_place(&path).expect("the new one is there");
        }
        let (partition, cursor, count) = reopened(&folder);
        assert_eq!((partition.next, cursor.settled.floor(), count), (MESSAGES, MESSAGES / 2, MESSAGES), "{steps}");
    }
}

#[test]
fn a_file_that_was_taken_away_is_not_replaced_silently() {
    let (folder, path) = filled();
    salvage(&path).expect("it is salvaged");
    fs::remove_file(&path).expect("it is removed");
    let refused = open::open(folder.path()).err().expect("a refusal");
    assert!(matches!(refused, StoreError::Missing { .. }), "{refused}");
    assert!(!path.exists());
}

/// Without the row, no message is given an offset that a group has settled already.
#[test]
fn a_lost_partition_goes_on_behind_everything_that_is_known() {
    let (folder, path) = filled();
    change(&path, "DELETE FROM partitions");
    change(&path, "DELETE FROM messages WHERE place & 0xffffffff >= 10");
    // Removed rows would be found in unused pages, where nobody knows that they were removed.
    Connection::open(&path).expect("it opens").execute_batch("VACUUM").expect("they are gone");
    let (partition, cursor, count) = reopened(&folder);
    assert_eq!((partition.first, partition.next, count), (0, MESSAGES / 2, 10));
    assert_eq!(cursor.settled.floor(), MESSAGES / 2);
}

#[test]
fn an_altered_cursor_is_given_everything_again() {
    let (folder, path) = filled();
    change(&path, "UPDATE cursors SET floor = floor + 8");
    let (partition, cursor, count) = reopened(&folder);
    assert_eq!((partition.next, count), (MESSAGES, MESSAGES));
    assert_eq!(cursor.settled, Settled::below(0));
}

#[test]
fn messages_behind_the_next_offset_are_kept() {
    let (folder, path) = filled();
    change(&path, "DELETE FROM cursors");
    let database = Connection::open(&path).expect("it opens");
    load::save_partition(&database, 1, 0, Partition { first: 5, next: 30, bytes: 0 }).expect("an old row");
    drop(database);
    let (partition, _, count) = reopened(&folder);
    assert_eq!(partition, Partition { first: 5, next: MESSAGES, bytes: (MESSAGES - 5) * 900 });
    assert_eq!(count, MESSAGES - 5);
}

/// What only the log has is found there, even where SQLite cannot follow any tree.
#[test]
fn messages_in_the_log_are_found() {
    let (folder, path) = filled();
    let database = super::super::writer(&path).expect("it opens");
    for offset in MESSAGES..2 * MESSAGES {
        let message = Raw { id: format!("m-{offset}").into(), payload: vec![8; 9_000].into(), ..Raw::default() };
        rows::insert(&database, place(1, 0, offset), 1, &message).expect("a row");
    }
    let copy = folder.path().join("copy");
    fs::copy(&path, &copy).expect("a copy");
    fs::copy(with_suffix(&path, "-wal"), with_suffix(&copy, "-wal")).expect("a copy of the log");
    let (file, log) = (File::open(&copy).expect("a file"), File::open(with_suffix(&copy, "-wal")).expect("a log"));
    let mut found = std::collections::BTreeSet::new();
    pages::scan(&file, Some(&log), |place, _, _| {
        found.insert(position_of(place).offset);
        Ok::<_, std::io::Error>(())
    })
    .expect("a scan");
    assert_eq!(found, (0..2 * MESSAGES).collect());
}

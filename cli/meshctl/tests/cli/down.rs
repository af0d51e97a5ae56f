//! Taking everything down, and removing it.

use serde_json::json;

use crate::support::{Daemon, Piece, Script, command, event, ran, status, told};

fn daemon() -> Daemon {
    let watch = vec![
        Piece::Told(10, told("snapshot", status())),
        Piece::Stay,
        Piece::Told(11, told("event", event(11, "system.down", json!(null)))),
    ];
    Daemon::play(Script { watches: vec![watch].into(), ..Script::default() })
}

#[test]
fn down_returns_when_nothing_is_left() {
    let daemon = daemon();
    let ran = daemon.run(&["down", "--reason", "moving house"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "shop stopped\n"), "{}", ran.stderr);
    let asked = daemon.asked();
    assert_eq!(
        asked.last().map(|(call, body)| (call.as_str(), &body["reason"])),
        Some(("POST /v1/down", &json!("moving house")))
    );
    assert!(daemon.dir.path().join("state.db").exists(), "the data stays");
}

#[test]
fn purging_is_asked_for_or_said() {
    let daemon = daemon();
    let ran = daemon.run(&["down", "--purge"]);
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("add --yes"), "{}", ran.stderr);
    let ran = daemon.run(&["down", "--purge", "--dry-run"]);
    assert_eq!(ran.status, 0);
    assert!(ran.stdout.contains("service/orders would be stopped (dry run)"), "{}", ran.stdout);
    assert!(daemon.asked().is_empty(), "nothing has been changed so far");
    let ran = daemon.run(&["down", "--purge", "--yes"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(!daemon.dir.path().exists());
}

#[test]
fn a_folder_of_somebody_else_is_never_removed() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("letters.txt"), "").expect("written");
    let purged = ran(command(dir.path(), &["down", "--purge", "--yes"]).output().expect("meshctl runs"));
    assert_eq!((purged.status, purged.stdout.as_str()), (1, ""));
    assert!(dir.path().join("letters.txt").exists());
}

#[test]
fn nothing_to_stop_is_no_failure() {
    let dir = tempfile::tempdir().expect("a folder");
    let nowhere = dir.path().join("never-used");
    for words in [["down"].as_slice(), &["down", "--purge", "--yes"], &["down", "--dry-run"]] {
        let ran = ran(command(&nowhere, words).output().expect("meshctl runs"));
        assert_eq!((ran.status, ran.stdout.as_str()), (0, "nothing is running\n"), "{words:?} {}", ran.stderr);
    }
    assert!(!nowhere.exists(), "nothing was made for it");
}

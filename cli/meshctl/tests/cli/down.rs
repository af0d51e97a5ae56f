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
    assert!(ran.stdout.contains("dead letter"), "{}", ran.stdout);
    assert!(daemon.asked().is_empty(), "nothing has been changed so far");
    // What a system with channels leaves beside the rest.
    std::fs::create_dir(daemon.dir.path().join("broker")).expect("made");
    for name in ["deadletters.db", "deadletters.db-wal", "deadletters.db-shm", "broker/broker.db"] {
        std::fs::write(daemon.dir.path().join(name), "").expect("written");
    }
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
fn what_is_not_ours_stays_when_a_directory_is_purged() {
    let daemon = daemon();
    let dir = daemon.dir.path();
    for name in ["instances", "data", "photos"] {
        std::fs::create_dir(dir.join(name)).expect("made");
        std::fs::write(dir.join(name).join("file"), "").expect("written");
    }
    for name in ["notes.txt", "daemon.log.1", "state.db-wal", "state.db.damaged-1"] {
        std::fs::write(dir.join(name), "").expect("written");
    }
    let ran = daemon.run(&["down", "--purge", "--yes"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("what is not of meshctl stays: notes.txt, photos"), "{}", ran.stdout);
    let mut left: Vec<_> = std::fs::read_dir(dir).expect("it is there").map(|e| e.expect("read").file_name()).collect();
    left.sort();
    assert_eq!(left, ["notes.txt", "photos"]);
    assert!(dir.join("photos/file").exists());
}

#[test]
fn what_runs_is_ended_though_its_directory_was_removed() {
    let above = tempfile::tempdir().expect("a folder");
    let dir = above.path().canonicalize().expect("it is there").join("removed");
    let mut left = std::process::Command::new("sleep")
        .arg("600")
        .env("MESHCTL_STATE_DIR", &dir)
        .env("MESHCTL_INSTANCE", "orders-1")
        .spawn()
        .expect("sleep runs");
    let wanted = format!("orders-1 (pid {})", left.id());
    let dry = ran(command(&dir, &["down", "--dry-run"]).output().expect("meshctl runs"));
    assert_eq!(dry.stdout, format!("{wanted} would be ended (dry run)\n"));
    let down = ran(command(&dir, &["down"]).output().expect("meshctl runs"));
    let ended = left.try_wait().expect("it is a child");
    let _ = left.kill();
    let _ = left.wait();
    assert_eq!((down.status, down.stdout), (0, format!("ended what a daemon had left: {wanted}\n")), "{}", down.stderr);
    assert!(ended.is_some(), "it runs on");
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

//! A full disk: what runs goes on, what is asked is refused with a reason, and all is well once there is room.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use meshctl_tests::{Load, System, installed, skip};

use crate::HELLO;

/// A small file system of its own, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there lets go of it when it ends.
        let _mounted_on = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_changes_and_nothing_else() {
    if !rustix::process::geteuid().is_root() || !installed("mount") {
        skip!("only root may mount a small file system");
    }
    let system = System::new();
    let Some(_small) = Small::mount(system.state_dir()) else { skip!("this machine does not let root mount a tmpfs") };
    system.apply(HELLO);
    let pids = system.all_pids();
    let load = Load::start(&system.url("/"), 4);
    load.pass(50);

    let filler = system.state_dir().join("filler");
    let mut file = std::fs::File::create(&filler).expect("a file");
    // In ever smaller pieces, so that not a byte is left.
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    let changed = HELLO.replace("builtin: hello,", "builtin: hello, env: { CHANGED: yes },");
    let refused = system.try_apply(&changed);
    assert_ne!(refused.status, 0, "nothing could be kept, and yet: {refused}");
    let told = format!("{}{}", refused.stdout, refused.stderr).to_lowercase();
    assert!(told.contains("disk") || told.contains("space"), "the reason is not told by {refused}");
    load.pass(100);
    assert_eq!(system.all_pids(), pids, "what was refused changed nothing");

    drop(file);
    std::fs::remove_file(&filler).expect("removed");
    system.apply(&changed);
    load.pass(50);
    load.finish().expect_no_failure();
    system.down();
}

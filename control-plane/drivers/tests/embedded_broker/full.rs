//! A full disk: publishers are refused, consumers are served, and it ends by itself.

use std::fs;
use std::io::Write;
use std::process::Command;

use meshctl_drivers::broker::conformance::{
    Subject, balanced, channel, consume, message, receive, settle, state, within,
};
use meshctl_drivers::broker::{BrokerError, Outcome, Settlement};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::Bench;

/// A file system of a few megabytes; unmounted when dropped.
struct Small(TempDir);

impl Small {
    fn mount() -> Result<Self, String> {
        let folder = TempDir::new().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(why) => Err(why.to_string()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_publishers_only() {
    let small = match Small::mount() {
        Ok(small) => small,
        Err(why) => return eprintln!("SKIPPED: no small file system can be mounted: {why}"),
    };
    let ballast = small.0.path().join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let bench = Bench::start_in(small.0.path()).await;
    let broker = bench.client();
    let (spec, other) = (channel("disk", 2, &["all"]), channel("disk-other", 1, &["all"]));
    broker.ensure(&spec).await.unwrap();
    broker.ensure(&other).await.unwrap();
    let sized = |id: &str, size: usize| {
        let mut publish = message(id, None);
        publish.message.payload = vec![3; size].into();
        publish
    };
    let mut confirmed = 0;
    let mut fill = async |batch: usize, size: usize| loop {
        let messages = (0..batch).map(|at| sized(&format!("m-{}", confirmed + at), size)).collect();
        match within("an answer", broker.publish(&spec.name, messages)).await {
            Ok(_) => confirmed += batch,
            Err(why) => break why,
        }
        assert!(confirmed < 10_000, "the disk is never full");
    };
    let why = fill(3, 20_000).await;
    assert!(matches!(&why, BrokerError::Full(text) if text.contains("disk full")), "{why}");
    // The rest of the disk is somebody else's, and what room the log has left is filled.
    let mut rest = fs::File::options().append(true).open(&ballast).unwrap();
    while rest.write_all(&[0; 4096]).is_ok() {}
    drop(rest);
    fill(1, 1000).await;
    let mut consumer = consume(&broker, &spec, "all", 10_000).await;
    let held = receive(&mut consumer, confirmed).await;
    settle(&consumer, &held[..confirmed / 2]).await;
    let moved = Outcome::Moved { channel: other.name.clone(), message: sized("moved", 500_000).message };
    let moving = vec![
        Settlement { position: held[confirmed - 2].position, outcome: Outcome::Processed },
        Settlement { position: held[confirmed - 1].position, outcome: moved },
    ];
    let refused = within("an answer", consumer.settler.settle(moving.clone())).await;
    assert!(matches!(refused, Err(BrokerError::Full(_))), "{refused:?}");
    let refused = within("an answer", broker.publish(&spec.name, vec![sized("no", 500_000)])).await;
    assert!(matches!(refused, Err(BrokerError::Full(_))), "{refused:?}");
    balanced(&state(&broker, &spec.name).await.groups[0]);

    fs::remove_file(&ballast).unwrap();
    within("room", async {
        while broker.publish(&spec.name, vec![sized("yes", 1000)]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("moving", consumer.settler.settle(moving)).await.expect("it still holds it");
    let group = state(&broker, &spec.name).await.groups.remove(0);
    balanced(&group);
    let half = (confirmed / 2) as u64 + 1;
    assert_eq!((group.processed, group.moved), (half, 1), "what was settled meanwhile is written now");
    bench.crash().await;
    let group = state(&broker, &spec.name).await.groups.remove(0);
    balanced(&group);
    assert_eq!((group.processed, group.moved, group.accepted), (half, 1, confirmed as u64 + 1));
    drop(consumer);
    assert!(bench.down(Signal::TERM).success());
}

//! Waiting for what happens to files and processes, without looking again and again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells that something in a folder has changed.
pub(super) struct FolderWatch(AsyncFd<OwnedFd>);

impl FolderWatch {
    /// Changes count from now on.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        inotify::add_watch(&inotify, dir, changes | WatchFlags::ONLYDIR)?;
        Ok(Self(readable(inotify)?))
    }

    /// Completes when there was at least one change since the last time.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // What has changed is for the caller to see; here it only has to be taken out.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while rustix::io::read(self.0.get_ref(), &mut buffer).is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

/// Completes when the process of this pidfd has ended.
pub(in crate::runtime) async fn end_of(process: OwnedFd) -> io::Result<()> {
    readable(process)?.readable().await.map(|_| ())
}

/// The successor of the deprecated function is unsafe, because it cannot know that its argument keeps its descriptor open
/// for as long as it is watched. An `OwnedFd` does.
#[allow(deprecated)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

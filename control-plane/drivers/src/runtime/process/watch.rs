//! Waiting for what happens to files and processes, without looking again and again where that can be avoided.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often a folder is looked at that cannot be watched.
const GLANCE: Duration = Duration::from_millis(150);

/// Tells that something in a folder has changed.
pub(super) enum FolderWatch {
    Inotify(AsyncFd<OwnedFd>),
    /// The kernel gives each user 128 inotify instances unless told otherwise: with more readers than that, the rest look for
    /// themselves.
    Glances,
}

impl FolderWatch {
    /// Changes count from now on.
    ///
    /// # Errors
    /// When there is no such folder.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        match Self::inotify(dir) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(error),
            Err(error) => {
                tracing::debug!(dir = %dir.display(), %error, "cannot be watched; looking every {GLANCE:?}");
                Ok(Self::Glances)
            }
            watch => watch,
        }
    }

    fn inotify(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF;
        inotify::add_watch(&inotify, dir, changes | WatchFlags::ONLYDIR)?;
        Ok(Self::Inotify(readable(inotify)?))
    }

    /// Completes when there may have been a change since the last time.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let Self::Inotify(inotify) = self else {
            tokio::time::sleep(GLANCE).await;
            return Ok(());
        };
        let mut ready = inotify.readable().await?;
        // What has changed is for the caller to see; here it only has to be taken out.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while rustix::io::read(inotify.get_ref(), &mut buffer).is_ok() {}
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

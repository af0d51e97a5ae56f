//! The names of Unix sockets in the gateway's folder. Whoever binds last has the name, as a newer gateway does beside
//! the one that it takes over from; so only the one whose socket is there may remove it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use meshctl_drivers::socket_path::SocketPath;

/// A name that was given to a socket of ours, and perhaps to another one since.
#[derive(Debug)]
pub(crate) struct Name {
    path: PathBuf,
    /// Of the file system and in it.
    inode: (u64, u64),
}

impl Name {
    /// Gives `name` in `dir` to the socket that `bind` makes at the path it is given: never before only its owner can
    /// open it, and in one step in the place of another's, so that at no moment there is none.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn give<S>(dir: &Path, name: &str, bind: impl FnOnce(&Path) -> io::Result<S>) -> io::Result<(S, Self)> {
        let unfinished = SocketPath::inside(dir, &format!("{name}.new"))?;
        let _stale = fs::remove_file(unfinished.as_path());
        let socket = bind(unfinished.as_path())?;
        fs::set_permissions(unfinished.as_path(), Permissions::from_mode(0o600))?;
        let inode = inode(unfinished.as_path())?;
        let path = dir.join(name);
        fs::rename(unfinished.as_path(), &path)?;
        Ok((socket, Self { path, inode }))
    }

    /// Removes the name unless it is another's by now.
    pub(crate) fn remove(&self) {
        if inode(&self.path).is_ok_and(|present| present == self.inode) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_the_last_one_removes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let give = || Name::give(folder.path(), "a.sock", |path| UnixListener::bind(path)).expect("bound");
        let ((older, first), (newer, second)) = (give(), give());
        first.remove();
        drop(older);
        let path = folder.path().join("a.sock");
        assert!(UnixStream::connect(&path).is_ok(), "the newer one is still there");
        drop(newer);
        second.remove();
        assert!(!path.exists());
        second.remove();
    }
}

//! The last good snapshot on disk: what a gateway serves from when it starts while the control plane is away.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use meshctl_drivers::gateway::embedded::place::SNAPSHOT;
use meshctl_model::snapshot::Snapshot;

/// Replaces the file as a whole or not at all: a reader never sees half of it, not even after a power cut.
///
/// # Errors
/// When it cannot be written; what was there before is still there.
pub(crate) fn save(dir: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let unfinished = dir.join(format!("{SNAPSHOT}.tmp"));
    let written = (|| {
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(snapshot)?)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, dir.join(SNAPSHOT))?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // On a full disk, half a file only makes it fuller.
        let _gone = std::fs::remove_file(&unfinished);
    }
    written
}

/// `None` if there has never been one.
///
/// # Errors
/// When it cannot be read, or is not a snapshot.
pub(crate) fn load(dir: &Path) -> io::Result<Option<Snapshot>> {
    match std::fs::read(dir.join(SNAPSHOT)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Moves a file that cannot be used out of the way, for whoever wants to know why.
pub(crate) fn set_aside(dir: &Path) {
    if let Err(error) = std::fs::rename(dir.join(SNAPSHOT), dir.join(format!("{SNAPSHOT}.unusable"))) {
        tracing::warn!(%error, "cannot set the unusable snapshot aside");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_torn_files_are_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(load(dir.path()).expect("readable").is_none());
        let snapshot = Snapshot { topology: "shop".into(), generation: 7, ..Snapshot::default() };
        save(dir.path(), &snapshot).expect("saved");
        assert_eq!(load(dir.path()).expect("readable"), Some(snapshot));
        let path = dir.path().join(SNAPSHOT);
        let whole = std::fs::read(&path).expect("readable");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            assert!(load(dir.path()).is_err(), "{length} bytes of {}", whole.len());
        }
    }

    #[test]
    fn a_failed_save_leaves_what_was_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = Snapshot { generation: 1, ..Snapshot::default() };
        save(dir.path(), &first).expect("saved");
        // A folder in the place of the temporary file stands for a disk that cannot be written; root ignores permissions.
        std::fs::create_dir(dir.path().join(format!("{SNAPSHOT}.tmp"))).expect("made");
        assert!(save(dir.path(), &Snapshot { generation: 2, ..Snapshot::default() }).is_err());
        assert_eq!(load(dir.path()).expect("readable"), Some(first));
    }
}

//! Opens the file: as it is when it was closed properly, after a check when it was not, and salvaged when it is broken.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{SCHEMA, SCHEMA_VERSION, StoreError, load, salvage, writer};
use crate::broker::embedded::place::{CLEAN, DATABASE};

/// The file, open.
pub struct Opened {
    pub database: Connection,
    pub path: PathBuf,
    /// Whether whoever had it last closed it.
    pub clean: bool,
}

/// # Errors
/// When the folder cannot be written to, the file is another meshctl's, or it is missing where there was one.
pub fn open(folder: &Path) -> Result<Opened, StoreError> {
    let path = folder.join(DATABASE);
    let mark = folder.join(CLEAN);
    salvage::resume(&path)?;
    let mut clean = mark.exists() || !path.exists();
    let opened = match try_open(&path, clean) {
        Err(why) if why.is_damage() => {
            tracing::error!(file = %path.display(), %why, "the broker's file is damaged; salvaging what can be read");
            salvage::salvage(&path)?;
            clean = false;
            try_open(&path, true)
        }
        other => other,
    };
    let database = opened?;
    if let Err(why) = std::fs::remove_file(&mark)
        && why.kind() != io::ErrorKind::NotFound
    {
        return Err(StoreError::Io { attempt: "remove", path: mark, why });
    }
    sync_folder(folder)?;
    Ok(Opened { database, path, clean })
}

/// Closes the file and marks it as closed properly.
pub fn close(database: Connection, folder: &Path) -> Result<(), StoreError> {
    // The log goes into the file now: whoever copies the file while nobody has it open has everything.
    if let Err(why) = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%why, "the log stays beside the file until there is room in it");
    }
    database.close().map_err(|(_, why)| why)?;
    let mark = folder.join(CLEAN);
    File::create(&mark).map_err(|why| StoreError::Io { attempt: "create", path: mark, why })?;
    sync_folder(folder)
}

/// Makes what was created and removed in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|why| StoreError::Io { attempt: "sync", path: folder.to_owned(), why })
}

fn try_open(path: &Path, clean: bool) -> Result<Connection, StoreError> {
    let database = writer(path)?;
    complete(&database, path)?;
    if !clean {
        check(&database)?;
    }
    let version: i64 = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match version {
        0 => {
            database.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))?;
        }
        // What everything depends on must be readable before anything is decided by it.
        SCHEMA_VERSION => drop(load::channels(&database)?),
        schema => return Err(StoreError::OtherSchema { path: path.to_owned(), schema }),
    }
    Ok(database)
}

/// A file that is shorter than its header says has lost its end, unless the log still has those pages.
fn complete(database: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |why| StoreError::Io { attempt: "read", path: path.to_owned(), why };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length == 0 {
        return Ok(());
    }
    let mut header = [0u8; 100];
    let mut file = File::open(path).map_err(failed)?;
    let damaged = |why: &str| StoreError::Damaged(why.to_owned());
    file.read_exact(&mut header).map_err(|_| damaged("the file ends within its header"))?;
    let pages: u64 = database.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let page: u64 = database.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let said = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    if length < said.min(pages) * page {
        return Err(damaged(&format!("the file has {length} bytes of {}", said * page)));
    }
    Ok(())
}

fn check(database: &Connection) -> Result<(), StoreError> {
    let found: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(StoreError::Damaged(found)) }
}

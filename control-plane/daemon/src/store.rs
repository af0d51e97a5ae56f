//! What is remembered over restarts: one SQLite file.
//!
//! A commit survives the death of the daemon always; a new revision and what is said of a breaker, which an operator was told
//! is saved, also survive the death of the machine (`synchronous=FULL` for that one commit).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_model::event::{Event, EventSeverity};
use meshctl_model::plan::{Desired, Instance, Overlay, ServiceRecord, Standing};
use meshctl_model::topology::Topology;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};

/// Rises when the tables change; [`Store::open`] brings an older file forward.
const SCHEMA_VERSION: i64 = 2;

/// Revisions beyond this many cannot be gone back to any more.
const REVISIONS_KEPT: u64 = 200;

/// Events beyond this many are forgotten, oldest first.
const EVENTS_KEPT: u64 = 100_000;

const SCHEMA: &str = "
    CREATE TABLE revisions (
        revision INTEGER PRIMARY KEY, created_at TEXT NOT NULL, by_user TEXT NOT NULL, reason TEXT, cause TEXT NOT NULL,
        state TEXT NOT NULL, body TEXT NOT NULL
    ) STRICT;
    CREATE TABLE services (name TEXT PRIMARY KEY, service_id TEXT NOT NULL, body TEXT NOT NULL) STRICT;
    CREATE TABLE instances (id TEXT PRIMARY KEY, service TEXT NOT NULL, body TEXT NOT NULL) STRICT;
    CREATE TABLE events (
        event_id INTEGER PRIMARY KEY, event_type TEXT NOT NULL, subject TEXT NOT NULL, severity TEXT NOT NULL,
        message TEXT NOT NULL, data TEXT NOT NULL, created_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_subject ON events (subject, event_id);
    CREATE TABLE ports (owner TEXT PRIMARY KEY, port INTEGER NOT NULL UNIQUE) STRICT;
    CREATE TABLE leases (
        service TEXT NOT NULL, id TEXT NOT NULL, address TEXT NOT NULL, expires_at TEXT NOT NULL,
        length_ms INTEGER NOT NULL, PRIMARY KEY (service, id)
    ) STRICT;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";

/// What operators said of breakers: since version 2.
const BREAKERS: &str = "CREATE TABLE breakers (edge TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {attempt} {path}: {source}")]
    Sql { attempt: &'static str, path: String, source: rusqlite::Error },
    #[error("{path} was written by a newer meshctl (schema {found}, this one knows {SCHEMA_VERSION})")]
    Newer { path: String, found: i64 },
    #[error("{path} holds something that this version cannot read: {what}")]
    Unreadable { path: String, what: String },
    #[error("cannot start a thread for {path}: {source}")]
    Thread { path: String, source: std::io::Error },
}

impl StoreError {
    /// Whether the file itself is broken, rather than the disk full or the version wrong.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ffi::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Sql { source, .. } => matches!(source.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
            Self::Unreadable { .. } => true,
            Self::Newer { .. } | Self::Thread { .. } => false,
        }
    }
}

/// One saved state of what is wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevisionBody {
    pub topology: Topology,
    pub overlay: Overlay,
    /// The operator's variables that it was made with.
    pub environment: BTreeMap<String, String>,
    pub desired: Desired,
    /// Messages may be lost on the way to it.
    #[serde(default)]
    pub discard_messages: bool,
}

/// A revision without its body.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionRow {
    pub revision: u64,
    pub created_at: Timestamp,
    pub by: String,
    pub reason: Option<String>,
    pub cause: String,
    pub state: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LeaseRow {
    pub service: String,
    pub id: String,
    pub address: String,
    pub expires_at: Timestamp,
    pub length: Duration,
}

/// What one commit writes.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub revision: Option<(RevisionRow, RevisionBody)>,
    /// New state of revisions that exist.
    pub revision_states: Vec<(u64, &'static str)>,
    /// Whether messages may be lost on the way to a revision that exists.
    pub discard_messages: Option<(u64, bool)>,
    pub instances: Vec<Instance>,
    pub instances_gone: Vec<String>,
    pub services: Vec<(String, ServiceRecord)>,
    pub events: Vec<Event>,
    /// All ports, when they changed.
    pub ports: Option<BTreeMap<String, u16>>,
    pub leases: Vec<LeaseRow>,
    /// `(service, id)`.
    pub leases_gone: Vec<(String, String)>,
    pub breakers: Vec<(String, Standing)>,
    pub breakers_gone: Vec<String>,
    pub generation: Option<u64>,
}

/// What a daemon starts from.
#[derive(Debug, Default)]
pub struct Remembered {
    pub revision: Option<(RevisionRow, RevisionBody)>,
    pub instances: Vec<Instance>,
    pub services: Vec<(String, ServiceRecord)>,
    pub ports: BTreeMap<String, u16>,
    pub leases: Vec<LeaseRow>,
    pub breakers: Vec<(String, Standing)>,
    pub generation: u64,
    pub last_event: u64,
}

#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: String,
}

impl Store {
    /// Opens or makes the file, mode 0600.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged, or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let sql = |attempt| {
            let path = shown.clone();
            move |source| StoreError::Sql { attempt, path, source }
        };
        let connection = Connection::open(path).map_err(sql("open"))?;
        restrict(path);
        let prepare = || -> rusqlite::Result<i64> {
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "journal_size_limit", 8 << 20)?;
            connection.pragma_query_value(None, "user_version", |row| row.get(0))
        };
        let found = prepare().map_err(sql("read"))?;
        let missing = match found {
            0 => Some(format!("{SCHEMA} {BREAKERS}")),
            1 => Some(BREAKERS.to_owned()),
            SCHEMA_VERSION => None,
            _ => return Err(StoreError::Newer { path: shown, found }),
        };
        if let Some(missing) = missing {
            let schema = format!("BEGIN; {missing} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;");
            connection.execute_batch(&schema).map_err(sql("create"))?;
        }
        Ok(Self { connection, path: shown })
    }

    /// Writes everything or nothing.
    ///
    /// # Errors
    /// When the file cannot be written, for example because the disk is full; nothing has changed then.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let durable = changes.revision.is_some() || !changes.breakers.is_empty();
        let path = self.path.clone();
        let write = |connection: &mut Connection| -> rusqlite::Result<()> {
            if durable {
                connection.pragma_update(None, "synchronous", "FULL")?;
            }
            let transaction = connection.transaction()?;
            write_all(&transaction, changes)?;
            transaction.commit()
        };
        let outcome = write(&mut self.connection);
        if durable {
            // Only the speed of later commits depends on it.
            let _ = self.connection.pragma_update(None, "synchronous", "NORMAL");
        }
        outcome.map_err(|source| StoreError::Sql { attempt: "write", path, source })
    }

    /// # Errors
    /// When the file cannot be read or holds something unknown.
    pub fn remembered(&self) -> Result<Remembered, StoreError> {
        let current = self.read("SELECT max(revision) FROM revisions", |row| row.get::<_, Option<u64>>(0))?;
        let revision = match current.first().copied().flatten() {
            Some(number) => self.revision(number)?,
            None => None,
        };
        let bodies = self.read("SELECT body FROM instances", |row| row.get::<_, String>(0))?;
        let instances = bodies.iter().map(|body| self.parse(body)).collect::<Result<_, _>>()?;
        let records =
            self.read("SELECT name, body FROM services", |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let services = records
            .into_iter()
            .map(|(name, body): (String, String)| Ok((name, self.parse(&body)?)))
            .collect::<Result<_, StoreError>>()?;
        let ports = self.read("SELECT owner, port FROM ports", |row| Ok((row.get(0)?, row.get(1)?)))?;
        let leases = self.read("SELECT service, id, address, expires_at, length_ms FROM leases", |row| {
            Ok(LeaseRow {
                service: row.get(0)?,
                id: row.get(1)?,
                address: row.get(2)?,
                expires_at: timestamp(row.get(3)?)?,
                length: Duration::from_millis(row.get(4)?),
            })
        })?;
        let breakers =
            self.read("SELECT edge, body FROM breakers", |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let breakers = breakers
            .into_iter()
            .map(|(edge, body): (String, String)| Ok((edge, self.parse(&body)?)))
            .collect::<Result<_, StoreError>>()?;
        let generation = self.read("SELECT value FROM meta WHERE key = 'generation'", |row| row.get::<_, String>(0))?;
        let last_event = self.read("SELECT max(event_id) FROM events", |row| row.get::<_, Option<u64>>(0))?;
        Ok(Remembered {
            revision,
            instances,
            services,
            ports: ports.into_iter().collect(),
            leases,
            breakers,
            generation: generation.first().and_then(|text| text.parse().ok()).unwrap_or(0),
            last_event: last_event.first().copied().flatten().unwrap_or(0),
        })
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn revisions(&self) -> Result<Vec<RevisionRow>, StoreError> {
        self.read(
            "SELECT revision, created_at, by_user, reason, cause, state FROM revisions ORDER BY revision",
            revision_row,
        )
    }

    /// # Errors
    /// When the file cannot be read.
    pub fn revision(&self, number: u64) -> Result<Option<(RevisionRow, RevisionBody)>, StoreError> {
        let query =
            "SELECT revision, created_at, by_user, reason, cause, state, body FROM revisions WHERE revision = ?1";
        let found = self
            .connection
            .query_row(query, [number], |row| Ok((revision_row(row)?, row.get::<_, String>(6)?)))
            .optional()
            .map_err(|source| self.sql(source))?;
        found.map(|(row, body)| Ok((row, self.parse(&body)?))).transpose()
    }

    /// Events after `after` whose subject begins with `subject`, oldest first; without `after` the last `limit`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn events(&self, after: Option<u64>, subject: &str, limit: u64) -> Result<Vec<Event>, StoreError> {
        let order = if after.is_some() { "ASC" } else { "DESC" };
        let query = format!(
            "SELECT event_id, event_type, subject, severity, message, data, created_at FROM events
             WHERE event_id > ?1 AND substr(subject, 1, length(?2)) = ?2 ORDER BY event_id {order} LIMIT ?3"
        );
        let mut statement = self.connection.prepare_cached(&query).map_err(|source| self.sql(source))?;
        let rows = statement
            .query_map(params![after.unwrap_or(0), subject, limit], event_row)
            .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>);
        let mut events = rows.map_err(|source| self.sql(source))?;
        if after.is_none() {
            events.reverse();
        }
        Ok(events)
    }

    fn read<T>(
        &self,
        query: &str,
        row: impl FnMut(&rusqlite::Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(query).map_err(|source| self.sql(source))?;
        let rows = statement.query_map([], row).and_then(Iterator::collect);
        rows.map_err(|source| self.sql(source))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, body: &str) -> Result<T, StoreError> {
        serde_json::from_str(body)
            .map_err(|why| StoreError::Unreadable { path: self.path.clone(), what: why.to_string() })
    }

    fn sql(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sql { attempt: "read", path: self.path.clone(), source }
    }
}

/// The file holds what the topology's variables were, which may be secrets.
pub fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Err(why) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
        tracing::warn!(path = %path.display(), %why, "cannot make the state private");
    }
}

/// Gives a damaged file another name, which is returned, so that a new one can be begun.
pub fn set_aside(path: &Path) -> String {
    let aside = format!("{}.damaged-{}", path.display(), Timestamp::now().as_second());
    let _ = std::fs::rename(path, &aside);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::rename(format!("{}{suffix}", path.display()), format!("{aside}{suffix}"));
    }
    aside
}

fn write_all(to: &Transaction, changes: &Changes) -> rusqlite::Result<()> {
    if let Some((row, body)) = &changes.revision {
        // What was wholly applied can be gone back to; what failed, or was never finished, stays known as that.
        to.execute("UPDATE revisions SET state = 'superseded' WHERE state = 'applied'", [])?;
        to.execute("UPDATE revisions SET state = 'abandoned' WHERE state = 'applying'", [])?;
        to.execute(
            "INSERT INTO revisions (revision, created_at, by_user, reason, cause, state, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![row.revision, row.created_at.to_string(), row.by, row.reason, row.cause, row.state, json(body)],
        )?;
    }
    if let Some((row, _)) = &changes.revision {
        to.execute("DELETE FROM revisions WHERE revision <= ?1", [row.revision.saturating_sub(REVISIONS_KEPT)])?;
    }
    for (revision, state) in &changes.revision_states {
        to.execute("UPDATE revisions SET state = ?2 WHERE revision = ?1", params![revision, state])?;
    }
    if let Some((revision, discard)) = changes.discard_messages {
        to.execute(
            "UPDATE revisions SET body = json_set(body, '$.discard_messages', json(?2)) WHERE revision = ?1",
            params![revision, if discard { "true" } else { "false" }],
        )?;
    }
    let mut put = to.prepare_cached("INSERT OR REPLACE INTO instances (id, service, body) VALUES (?1, ?2, ?3)")?;
    for instance in &changes.instances {
        put.execute(params![instance.spec.id, instance.spec.service, json(instance)])?;
    }
    let mut gone = to.prepare_cached("DELETE FROM instances WHERE id = ?1")?;
    for id in &changes.instances_gone {
        gone.execute([id])?;
    }
    for (name, record) in &changes.services {
        to.execute(
            "INSERT OR REPLACE INTO services (name, service_id, body) VALUES (?1, ?2, ?3)",
            params![name, record.service_id, json(record)],
        )?;
    }
    let mut add = to.prepare_cached(
        "INSERT INTO events (event_id, event_type, subject, severity, message, data, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for event in &changes.events {
        let id: u64 = event.id.parse().unwrap_or(0);
        let created_at = event.created_at.to_string();
        let severity = severity_name(event.severity);
        add.execute(params![id, event.kind, event.subject, severity, event.message, json(&event.data), created_at])?;
        if id.is_multiple_of(1000) {
            to.execute("DELETE FROM events WHERE event_id <= ?1", [id.saturating_sub(EVENTS_KEPT)])?;
        }
    }
    if let Some(ports) = &changes.ports {
        to.execute("DELETE FROM ports", [])?;
        let mut put = to.prepare_cached("INSERT INTO ports (owner, port) VALUES (?1, ?2)")?;
        for (owner, port) in ports {
            put.execute(params![owner, port])?;
        }
    }
    for lease in &changes.leases {
        to.execute(
            "INSERT OR REPLACE INTO leases (service, id, address, expires_at, length_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                lease.service,
                lease.id,
                lease.address,
                lease.expires_at.to_string(),
                lease.length.as_millis() as u64
            ],
        )?;
    }
    for (service, id) in &changes.leases_gone {
        to.execute("DELETE FROM leases WHERE service = ?1 AND id = ?2", params![service, id])?;
    }
    for (edge, standing) in &changes.breakers {
        to.execute("INSERT OR REPLACE INTO breakers (edge, body) VALUES (?1, ?2)", params![edge, json(standing)])?;
    }
    for edge in &changes.breakers_gone {
        to.execute("DELETE FROM breakers WHERE edge = ?1", [edge])?;
    }
    if let Some(generation) = changes.generation {
        to.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('generation', ?1)", [generation.to_string()])?;
    }
    Ok(())
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn timestamp(text: String) -> rusqlite::Result<Timestamp> {
    text.parse().map_err(|why| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(why)))
}

fn revision_row(row: &rusqlite::Row) -> rusqlite::Result<RevisionRow> {
    Ok(RevisionRow {
        revision: row.get(0)?,
        created_at: timestamp(row.get(1)?)?,
        by: row.get(2)?,
        reason: row.get(3)?,
        cause: row.get(4)?,
        state: row.get(5)?,
    })
}

fn event_row(row: &rusqlite::Row) -> rusqlite::Result<Event> {
    let severity: String = row.get(3)?;
    let data: String = row.get(5)?;
    Ok(Event {
        id: row.get::<_, u64>(0)?.to_string(),
        kind: row.get(1)?,
        subject: row.get(2)?,
        severity: [EventSeverity::Info, EventSeverity::Warning, EventSeverity::Error]
            .into_iter()
            .find(|known| severity_name(*known) == severity)
            .unwrap_or_default(),
        message: row.get(4)?,
        data: serde_json::from_str(&data).unwrap_or_default(),
        created_at: timestamp(row.get(6)?)?,
    })
}

fn severity_name(severity: EventSeverity) -> &'static str {
    match severity {
        EventSeverity::Info => "info",
        EventSeverity::Warning => "warning",
        EventSeverity::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_remembered_and_the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let event = |id: u64, subject: &str| Event {
            id: id.to_string(),
            kind: "instance.ready".into(),
            subject: subject.into(),
            message: "orders-1 is ready".into(),
            severity: EventSeverity::Warning,
            data: serde_json::json!({"a": 1}),
            created_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
        };
        let changes = Changes {
            events: vec![event(1, "instance/orders-1"), event(2, "instance/billing-1"), event(3, "instance/orders-1")],
            ports: Some([("edge/a:b".to_owned(), 20_001)].into()),
            generation: Some(7),
            services: vec![("orders".into(), ServiceRecord { next_ordinal: 4, ..ServiceRecord::default() })],
            ..Changes::default()
        };
        Store::open(&path).expect("opens").commit(&changes).expect("commits");
        let store = Store::open(&path).expect("opens again");
        let remembered = store.remembered().expect("reads");
        assert_eq!((remembered.generation, remembered.last_event), (7, 3));
        assert_eq!(remembered.ports["edge/a:b"], 20_001);
        assert_eq!(remembered.services[0].1.next_ordinal, 4);
        let found = store.events(Some(1), "instance/orders", 10).expect("reads");
        assert_eq!(found, vec![event(3, "instance/orders-1")]);
        assert_eq!(store.events(None, "", 2).expect("reads").len(), 2);
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_of_the_first_version_gains_what_it_lacks() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let first = format!("BEGIN; {SCHEMA} PRAGMA user_version = 1; COMMIT;");
        Connection::open(&path).and_then(|c| c.execute_batch(&first)).expect("written");
        let standing = Standing { epoch: 3, ..Standing::default() };
        let breakers = vec![("a:b".to_owned(), standing.clone()), ("a:c".to_owned(), Standing::default())];
        let changes = Changes { breakers, ..Changes::default() };
        Store::open(&path).expect("opens").commit(&changes).expect("commits");
        let gone = Changes { breakers_gone: vec!["a:c".into()], ..Changes::default() };
        Store::open(&path).expect("opens again").commit(&gone).expect("commits");
        let remembered = Store::open(&path).expect("opens").remembered().expect("reads");
        assert_eq!(remembered.breakers, [("a:b".to_owned(), standing)]);
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        Connection::open(&path).and_then(|c| c.pragma_update(None, "user_version", 99)).expect("written");
        assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 99, .. })));
    }
}

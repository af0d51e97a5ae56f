//! Who did what, why, and what came of it: refusals too. Entries are only ever added, and each holds the digest of itself and
//! of the one before it, so that one that was changed or taken out is found when the audit is read. That the newest
//! were cut off shows only to whoever kept a digest elsewhere.

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::AuditEntry;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde_json::Value;

use crate::dead_letters::store::{Done, Store, nanos, timestamp};
use crate::operate::Asked;

/// What is to be known of a deed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deed {
    pub by: String,
    /// `deadletter.discard`, `channel.pause`.
    pub action: &'static str,
    /// `order.placed/billing`, a replay's id, or a number of dead letters.
    pub subject: String,
    pub reason: Option<String>,
    /// `done`, or why it was refused.
    pub outcome: String,
    pub data: Value,
}

impl Deed {
    pub fn done(asked: &Asked, action: &'static str, subject: impl Into<String>, data: Value) -> Self {
        Self {
            by: asked.by.clone(),
            action,
            subject: subject.into(),
            reason: asked.reason.clone(),
            outcome: "done".into(),
            data,
        }
    }

    pub fn refused(asked: &Asked, action: &'static str, subject: impl Into<String>, why: &ApiError) -> Self {
        Self { outcome: why.message.clone(), ..Self::done(asked, action, subject, Value::Null) }
    }
}

/// The way to the audit, for those who have nothing else to write with it.
#[derive(Clone, Debug)]
pub struct Audit {
    store: Store,
}

impl Audit {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written: the deed should not be done then.
    pub async fn record(&self, deed: Deed) -> Result<(), ApiError> {
        self.store.write("write the audit", move |to| write(to, &deed, Timestamp::now())).await
    }

    /// The last `limit` entries, oldest first; with `verify` only when the whole chain is unbroken.
    ///
    /// # Errors
    /// When the file cannot be read, or an entry is not what was written.
    pub async fn entries(&self, limit: u32, verify: bool) -> Result<Vec<AuditEntry>, ApiError> {
        self.store.read("read the audit", move |from| read(from, limit, verify)).await
    }
}

/// Adds an entry, in the transaction of the deed itself.
pub fn write(to: &Transaction, deed: &Deed, now: Timestamp) -> Done<()> {
    let last: Option<(i64, String)> = to
        .prepare_cached("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (number, before) = last.map_or((1, String::new()), |(number, digest)| (number + 1, digest));
    let at = nanos(now);
    let data = deed.data.to_string();
    let fields = [&deed.by, deed.action, &deed.subject, &deed.outcome, &data];
    let digest = digest(&before, number, at, fields, deed.reason.as_deref());
    to.prepare_cached(
        "INSERT INTO audit (number, at, by_user, action, subject, reason, outcome, data, digest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![number, at, deed.by, deed.action, deed.subject, deed.reason, deed.outcome, data, digest])?;
    Ok(())
}

fn read(from: &Connection, limit: u32, verify: bool) -> Done<Vec<AuditEntry>> {
    let last: i64 = from.query_row("SELECT coalesce(max(number), 0) FROM audit", [], |row| row.get(0))?;
    let first_shown = last - i64::from(limit) + 1;
    let mut statement = from.prepare_cached(
        "SELECT number, at, by_user, action, subject, reason, outcome, data, digest FROM audit
         WHERE number >= ?1 ORDER BY number",
    )?;
    let mut rows = statement.query([if verify { 0 } else { first_shown }])?;
    let (mut entries, mut before, mut expected) = (Vec::new(), String::new(), 1);
    while let Some(row) = rows.next()? {
        let (number, at): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (by, action, subject): (String, String, String) = (row.get(2)?, row.get(3)?, row.get(4)?);
        let (reason, outcome, data): (Option<String>, String, String) = (row.get(5)?, row.get(6)?, row.get(7)?);
        let written: String = row.get(8)?;
        if verify {
            let digest = digest(&before, number, at, [&by, &action, &subject, &outcome, &data], reason.as_deref());
            if number != expected || digest != written {
                let message = format!("the audit is not what was written: entry {expected} was changed or taken out");
                let hint = "`?verify=false` shows it as it is; a copy of deadletters.db from before has the truth";
                return Err(ApiError::new(ErrorCode::Internal, message).hint(hint).into());
            }
            (before, expected) = (digest, number + 1);
        }
        if number >= first_shown {
            let data = serde_json::from_str(&data).unwrap_or_default();
            let (id, at) = (number.to_string(), timestamp(at));
            entries.push(AuditEntry { id, at, by, action, subject, reason, outcome, data, digest: written });
        }
    }
    Ok(entries)
}

/// Over JSON, in which no field can run into the next.
fn digest(before: &str, number: i64, at: i64, fields: [&str; 5], reason: Option<&str>) -> String {
    use sha2::{Digest, Sha256};
    let text = serde_json::to_vec(&(before, number, at, fields, reason)).unwrap_or_default();
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::store::Trouble;

    fn written(entries: u32) -> Connection {
        let mut connection = crate::dead_letters::store::in_memory();
        let transaction = connection.transaction().expect("begins");
        for entry in 0..entries {
            let asked = Asked { by: "ann".into(), reason: (entry % 2 == 0).then(|| "because".into()) };
            let deed = Deed::done(&asked, "deadletter.discard", format!("{entry} dead letters"), entry.into());
            assert!(write(&transaction, &deed, Timestamp::now()).is_ok());
        }
        transaction.commit().expect("commits");
        connection
    }

    fn first_broken(connection: &Connection) -> Option<String> {
        match read(connection, 2, true) {
            Ok(_) => None,
            Err(Trouble::Refused(why)) => Some(why.message),
            Err(Trouble::Sql(why)) => panic!("{why}"),
        }
    }

    #[test]
    fn the_last_entries_are_read_oldest_first() {
        let entries = read(&written(5), 2, true).unwrap_or_default();
        assert_eq!(entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["4", "5"]);
        assert_eq!(entries[1].subject, "4 dead letters");
        assert_eq!(entries[1].data, Value::from(4));
    }

    #[test]
    fn what_was_changed_or_taken_out_is_found() {
        for (tampering, broken) in [
            ("UPDATE audit SET by_user = 'bob' WHERE number = 2", Some("entry 2")),
            ("UPDATE audit SET reason = NULL WHERE number = 3", Some("entry 3")),
            ("UPDATE audit SET at = at + 1 WHERE number = 5", Some("entry 5")),
            ("DELETE FROM audit WHERE number = 1", Some("entry 1")),
            ("DELETE FROM audit WHERE number = 3", Some("entry 3")),
            ("UPDATE audit SET reason = reason", None),
        ] {
            let connection = written(5);
            connection.execute(tampering, []).expect("tampered");
            let found = first_broken(&connection);
            assert_eq!(found.is_some(), broken.is_some(), "{tampering}");
            assert!(broken.is_none_or(|entry| found.as_ref().is_some_and(|why| why.contains(entry))), "{found:?}");
            assert!(read(&connection, 10, false).is_ok_and(|entries| entries.len() >= 4), "{tampering}");
        }
    }
}

//! What is in a letter is kept for a week after it was processed or discarded, as long as somebody may want to undo that; then
//! headers, payload and history go, and what is counted and listed stays.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Transaction, params};

use super::store::{Done, Store, nanos};

/// After its end.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How often somebody looks for what is old enough.
const EVERY: Duration = Duration::from_secs(600);
/// In one transaction, so that nobody waits for long.
const AT_ONCE: u64 = 500;

/// Until the runtime ends.
pub async fn now_and_then(store: Store) {
    loop {
        tokio::time::sleep(EVERY).await;
        loop {
            let before = Timestamp::now().saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
            match store.write("forget old dead letters", move |to| forget(to, before)).await {
                Ok(AT_ONCE) => {}
                Ok(_) => break,
                Err(why) => {
                    tracing::warn!(%why, "old dead letters stay for now");
                    break;
                }
            }
        }
    }
}

/// Empties letters that ended before, and says how many.
fn forget(to: &Transaction, before: Timestamp) -> Done<u64> {
    let emptied = to
        .prepare_cached(
            "DELETE FROM contents WHERE number IN (
                 SELECT number FROM letters JOIN contents USING (number) WHERE ended_at < ?1 LIMIT ?2)",
        )?
        .execute(params![nanos(before), AT_ONCE])?;
    Ok(emptied as u64)
}

#[cfg(test)]
mod tests {
    use super::super::store::in_memory;
    use super::*;

    #[test]
    fn what_ended_long_ago_is_emptied_and_what_may_be_wanted_is_not() {
        let mut store = in_memory();
        let to = store.transaction().expect("a transaction");
        for (number, state) in [(1, "dead"), (2, "processed"), (3, "discarded"), (4, "parked")] {
            to.execute(
                "INSERT INTO letters (number, id, channel, subscription, message_id, type, reason, class, error, fingerprint,
                     attempts, first_failed_at, last_failed_at, state, size_bytes)
                 VALUES (?1, ?1, 'c', 's', ?1, 't', 'poison', 'rejected', '', '', 1, 0, 0, 'dead', 1)",
                [number.to_string()],
            )
            .expect("a letter");
            to.execute("INSERT INTO contents VALUES (?1, '[]', x'00', '[]')", [number]).expect("its contents");
            to.execute("UPDATE letters SET state = ?2 WHERE number = ?1", params![number, state]).expect("its state");
        }
        let left = |to: &Transaction| {
            let mut numbers = to.prepare("SELECT number FROM contents ORDER BY number").expect("a statement");
            let numbers = numbers.query_map([], |row| row.get::<_, i64>(0)).expect("rows");
            numbers.collect::<Result<Vec<_>, _>>().expect("numbers")
        };
        let (past, future) = (Timestamp::now() - KEPT, Timestamp::now() + SignedDuration::from_secs(1));
        assert_eq!((forget(&to, past).expect("nothing is old"), left(&to)), (0, vec![1, 2, 3, 4]));
        // Taken back in time: it has not ended.
        to.execute("UPDATE letters SET state = 'dead' WHERE number = 3", []).expect("restored");
        assert_eq!((forget(&to, future).expect("one is old"), left(&to)), (1, vec![1, 3, 4]));
    }
}

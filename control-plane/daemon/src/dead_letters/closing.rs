//! A subscription's channels are made anew, or are no more: what is counted of it begins anew, too.

use jiff::Timestamp;
use meshctl_model::delivery::Behind;
use rusqlite::{Transaction, params};

use super::replays::finish;
use super::store::Done;
use super::take_in::Place;

/// Removes everything that is known of a subscription, and says how many letters of it were still to be dealt with.
pub fn close(to: &Transaction, place: &Place, now: Timestamp) -> Done<u64> {
    let of = params![place.channel, place.subscription];
    let open = to.query_row(
        "SELECT count(*) FROM letters WHERE channel = ?1 AND subscription = ?2
         AND state IN ('dead', 'parked', 'replaying')",
        of,
        |row| row.get(0),
    )?;
    for table in ["items WHERE letter", "contents WHERE number"] {
        let letters = "(SELECT number FROM letters WHERE channel = ?1 AND subscription = ?2)";
        to.execute(&format!("DELETE FROM {table} IN {letters}"), of)?;
    }
    to.execute("DELETE FROM letters WHERE channel = ?1 AND subscription = ?2", of)?;
    to.execute("DELETE FROM counts WHERE channel = ?1 AND subscription = ?2", of)?;
    for behind in [Behind::Dead, Behind::Replayed] {
        to.execute("DELETE FROM positions WHERE channel = ?1", [behind.channel(&place.channel, &place.subscription)])?;
    }
    // A replay of nothing else has nothing left to wait for.
    let mut unfinished = to.prepare("SELECT id FROM replays WHERE state IN ('running', 'paused')")?;
    let unfinished = unfinished.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    for replay in unfinished {
        finish(to, &replay, now)?;
    }
    Ok(open)
}

//! What could not be delivered: dead letters, their groups, replays; and the audit of what was done about them.

use jiff::Timestamp;
use meshctl_api::view::messages::{AuditEntry, DeadLetter, DeadLetterGroup, Replay};

use super::messages::size;
use super::{Item, Listing};
use crate::kinds::Kind;
use crate::output::{Cell, Table, age};

pub(crate) fn dead_letters(letters: Vec<DeadLetter>, now: Timestamp) -> Listing {
    let item = |letter: DeadLetter| {
        let state = match letter.state.as_str() {
            "dead" => Cell::bad("dead"),
            "processed" => Cell::good("processed"),
            "replaying" => Cell::careful("replaying"),
            other => Cell::plain(other),
        };
        let cells = vec![
            Cell::plain(&letter.id),
            Cell::plain(age(letter.last_failed_at, now)),
            Cell::plain(format_args!("{}/{}", letter.channel, letter.subscription)),
            Cell::plain(letter.reason.as_str()),
            state,
            Cell::plain(&letter.error),
            Cell::plain(letter.attempts),
            Cell::plain(&letter.class),
            Cell::plain(&letter.fingerprint),
            Cell::maybe(letter.key.as_ref()),
            Cell::plain(size(letter.size_bytes)),
            Cell::plain(age(letter.first_failed_at, now)),
            Cell::plain(&letter.message_id),
            Cell::maybe(letter.trace_id.as_ref()),
            Cell::maybe(letter.replay_id.as_ref()),
        ];
        Item::new(&letter.id, &letter, cells)
    };
    let columns = &[
        "id",
        "age",
        "subscription",
        "reason",
        "state",
        "error",
        "attempts",
        "class",
        "fingerprint",
        "key",
        "size",
        "first failed",
        "message",
        "trace",
        "replay",
    ];
    Listing::new(Kind::DeadLetter, columns, 9, letters.into_iter().map(item).collect())
}

/// Dead letters counted by what they have in common, which `by` says.
pub(crate) fn groups(groups: &[DeadLetterGroup], by: &str, header: bool, now: Timestamp) -> Table {
    let columns = [by, "count", "first", "last", "example", "error"];
    let mut table = if header { Table::new(columns) } else { Table::without_header() };
    for group in groups {
        table.row(vec![
            Cell::plain(&group.name),
            Cell::plain(group.count),
            Cell::plain(age(group.first_failed_at, now)),
            Cell::plain(age(group.last_failed_at, now)),
            Cell::plain(&group.example_id),
            Cell::plain(&group.example_error),
        ]);
    }
    table
}

pub(crate) fn replays(replays: Vec<Replay>, now: Timestamp) -> Listing {
    let item = |replay: Replay| {
        let state = match replay.state.as_str() {
            "done" if replay.processed < replay.selected => Cell::bad("done"),
            "done" => Cell::good("done"),
            "running" | "paused" => Cell::careful(&replay.state),
            other => Cell::plain(other),
        };
        let subscriptions: Vec<&str> = replay.subscriptions.keys().map(String::as_str).collect();
        let cells = vec![
            Cell::plain(&replay.replay_id),
            state,
            Cell::plain(replay.processed),
            if replay.failed_again == 0 { Cell::plain("0") } else { Cell::bad(replay.failed_again) },
            Cell::plain(replay.pending),
            Cell::plain(replay.selected),
            Cell::plain(replay.issued),
            Cell::plain(age(replay.created_at, now)),
            Cell::plain(&replay.by),
            Cell::plain(replay.reason.as_deref().unwrap_or_default()),
            Cell::plain(subscriptions.join(",")),
            Cell::maybe(replay.rate_per_s.map(|rate| format!("{rate}/s"))),
            Cell::plain(&replay.fingerprint),
        ];
        Item::new(&replay.replay_id, &replay, cells)
    };
    let columns = &[
        "replay",
        "state",
        "processed",
        "failed",
        "pending",
        "selected",
        "issued",
        "age",
        "by",
        "reason",
        "subscriptions",
        "rate",
        "fingerprint",
    ];
    Listing::new(Kind::Replay, columns, 3, replays.into_iter().map(item).collect())
}

pub(crate) fn audit(entries: Vec<AuditEntry>, now: Timestamp) -> Listing {
    let item = |entry: AuditEntry| {
        let outcome = if entry.outcome == "done" { Cell::good("done") } else { Cell::careful(&entry.outcome) };
        let cells = vec![
            Cell::plain(&entry.id),
            Cell::plain(age(entry.at, now)),
            Cell::plain(&entry.by),
            Cell::plain(&entry.action),
            Cell::plain(&entry.subject),
            outcome,
            Cell::plain(entry.reason.as_deref().unwrap_or_default()),
            Cell::plain(entry.at),
            Cell::plain(&entry.data),
            Cell::plain(&entry.digest),
        ];
        Item::new(&entry.id, &entry, cells)
    };
    let columns = &["id", "age", "by", "action", "subject", "outcome", "reason", "at", "data", "digest"];
    Listing::new(Kind::Audit, columns, 3, entries.into_iter().map(item).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::output::Format;

    #[test]
    fn a_narrow_terminal_shows_whole_ids() {
        let at = "2026-11-23T10:00:00Z";
        let letter = json!({
            "id": "4f1c09ab77d2e310", "messageId": "01936f0e-7c1a-7d3e-9a51-2f6d1b0c8e44", "type": "order.placed",
            "channel": "order.placed", "subscription": "billing", "reason": "exhausted", "class": "refused",
            "error": "POST /events/order-placed answered 500: the database is out of order, and it says so at length",
            "fingerprint": "9f2c", "attempts": 6, "firstFailedAt": at, "lastFailedAt": at, "traceId": null,
            "state": "dead", "replayId": null, "key": null, "sizeBytes": 17
        });
        let replay = json!({
            "replayId": "01936f0e-7c1a-7d3e-9a51-2f6d1b0c8e44", "fingerprint": "beef", "selected": 100_000,
            "issued": 100_000, "processed": 99_998, "failedAgain": 1, "pending": 1, "state": "running",
            "subscriptions": {}, "ratePerS": 50.0, "by": "ada", "reason": "billing 1.4 is out", "createdAt": at,
            "endedAt": null
        });
        let now = at.parse().expect("a time");
        let letters = dead_letters(vec![serde_json::from_value(letter).expect("a dead letter")], now);
        let replays = replays(vec![serde_json::from_value(replay).expect("a replay")], now);
        let drawn = [letters, replays].map(|listing| listing.table(&Format::Table, true).draw(Some(80))).join("\n");
        let drawn = anstream::adapter::strip_str(&drawn).to_string();
        assert!(drawn.lines().all(|line| line.width() <= 80), "{drawn}");
        insta::assert_snapshot!(drawn, @r"
        ID                 AGE   SUBSCRIPTION       REASON      STATE   ERROR
        4f1c09ab77d2e310   0s    order.placed/bi…   exhausted   dead    POST /events/or…

        REPLAY                                 STATE     PROCESSED   FAILED   PENDING
        01936f0e-7c1a-7d3e-9a51-2f6d1b0c8e44   running   99998       1        1
        ");
    }
}

//! What carries messages: channels, subscriptions, the ledger, and the messages themselves.

use jiff::Timestamp;
use meshctl_api::view::messages::{Channel, LedgerEntry, Message, Subscription};

use super::{Item, Listing, milliseconds};
use crate::kinds::Kind;
use crate::output::{Cell, age, sign};
use crate::payload;

pub(crate) fn channels(channels: Vec<Channel>) -> Listing {
    let item = |channel: Channel| {
        let listed = |names: Vec<&str>| if names.is_empty() { Cell::plain("-") } else { Cell::plain(names.join(",")) };
        let cells = vec![
            Cell::plain(&channel.name),
            Cell::plain(channel.depth),
            Cell::plain(channel.in_flight),
            Cell::plain(channel.lag),
            dead(channel.dead_letters),
            Cell::plain(rate(channel.published_per_s)),
            Cell::plain(rate(channel.delivered_per_s)),
            channel_state(&channel.subscriptions),
            Cell::plain(channel.partitions),
            Cell::plain(&channel.ordered),
            Cell::plain(channel.accepted),
            Cell::plain(channel.kept),
            Cell::plain(size(channel.kept_bytes)),
            Cell::plain(milliseconds(channel.retention_ms as f64)),
            listed(channel.publishers.iter().map(String::as_str).collect()),
            listed(channel.subscriptions.iter().map(|subscription| subscription.subscription.as_str()).collect()),
        ];
        Item::new(&channel.name, &channel, cells)
    };
    let columns = &[
        "channel",
        "depth",
        "in flight",
        "lag",
        "dead",
        "in/s",
        "out/s",
        "state",
        "partitions",
        "ordered",
        "accepted",
        "kept",
        "size",
        "retention",
        "publishers",
        "subscriptions",
    ];
    Listing::new(Kind::Channel, columns, 8, channels.into_iter().map(item).collect())
}

/// What is worst among the subscriptions, and where.
fn channel_state(subscriptions: &[Subscription]) -> Cell {
    let in_state = |state: &str| -> Option<String> {
        let names: Vec<&str> =
            subscriptions.iter().filter(|one| one.state == state).map(|one| one.subscription.as_str()).collect();
        (!names.is_empty()).then(|| format!("{state}: {}", names.join(",")))
    };
    match (in_state("waiting"), in_state("paused")) {
        (Some(waiting), _) => Cell::bad(waiting),
        (None, Some(paused)) => Cell::careful(paused),
        (None, None) if subscriptions.is_empty() => Cell::plain("no subscriptions"),
        (None, None) => Cell::good("flowing"),
    }
}

/// The subscriptions of `channels`.
pub(crate) fn subscriptions(channels: Vec<Channel>) -> Listing {
    let item = |subscription: Subscription| {
        let state = match subscription.state.as_str() {
            "flowing" => Cell::good("flowing"),
            "waiting" => Cell::bad("waiting"),
            other => Cell::careful(other),
        };
        let cells = vec![
            Cell::plain(&subscription.name),
            state,
            Cell::plain(subscription.lag),
            Cell::plain(subscription.in_flight),
            Cell::plain(subscription.retrying),
            dead(subscription.dead_letters),
            Cell::plain(rate(subscription.delivered_per_s)),
            Cell::maybe(subscription.oldest_ms.map(|ms| milliseconds(ms as f64))),
            Cell::plain(subscription.reason.as_deref().unwrap_or_default()),
            Cell::maybe(subscription.latency_p50_ms.map(milliseconds)),
            Cell::maybe(subscription.latency_p99_ms.map(milliseconds)),
            Cell::plain(&subscription.service),
            Cell::plain(&subscription.deliver),
            Cell::plain(subscription.concurrency),
            Cell::plain(subscription.attempts),
        ];
        Item::new(&subscription.name, &subscription, cells)
    };
    let columns = &[
        "subscription",
        "state",
        "lag",
        "in flight",
        "retrying",
        "dead",
        "out/s",
        "oldest",
        "reason",
        "p50",
        "p99",
        "service",
        "deliver",
        "concurrency",
        "attempts",
    ];
    let items = channels.into_iter().flat_map(|channel| channel.subscriptions).map(item).collect();
    Listing::new(Kind::Subscription, columns, 6, items)
}

/// Where everything is. The sign comes first, where no narrow terminal cuts it off.
pub(crate) fn ledger(entries: Vec<LedgerEntry>) -> Listing {
    let item = |entry: LedgerEntry| {
        let cells = vec![
            sign(entry.balanced),
            Cell::plain(&entry.name),
            Cell::plain(entry.accepted),
            Cell::plain(entry.processed),
            Cell::plain(entry.in_flight),
            Cell::plain(entry.retrying),
            Cell::plain(entry.dead),
            Cell::plain(entry.parked),
            Cell::plain(entry.discarded),
            if entry.missing == 0 { Cell::plain("") } else { Cell::bad(entry.missing) },
        ];
        Item::new(&entry.name, &entry, cells)
    };
    let columns = &[
        "",
        "subscription",
        "accepted =",
        "processed +",
        "in flight +",
        "retrying +",
        "dead +",
        "parked +",
        "discarded",
        "missing",
    ];
    Listing::new(Kind::Ledger, columns, 0, entries.into_iter().map(item).collect())
}

pub(crate) fn messages(messages: Vec<Message>, now: Timestamp) -> Listing {
    let item = |message: Message| {
        let status = match message.status.as_str() {
            "processed" => Cell::good("processed"),
            "dead" => Cell::bad("dead"),
            other => Cell::careful(other),
        };
        let cells = vec![
            Cell::plain(&message.message_id),
            Cell::plain(&message.channel),
            status,
            Cell::plain(age(message.timestamp, now)),
            Cell::maybe(message.key.as_ref()),
            Cell::plain(payload::one_line(
                message.payload.as_ref(),
                message.payload_base64.as_deref(),
                message.size_bytes,
            )),
            Cell::plain(&message.service),
            Cell::plain(&message.kind),
            Cell::plain(format_args!("{}@{}", message.partition, message.offset)),
            Cell::plain(&message.event_id),
        ];
        Item::new(&message.message_id, &message, cells)
    };
    let columns =
        &["message", "channel", "status", "age", "key", "payload", "service", "type", "partition@offset", "event"];
    Listing::new(Kind::Message, columns, 4, messages.into_iter().map(item).collect())
}

/// A count that should be 0.
pub(crate) fn dead(count: u64) -> Cell {
    if count == 0 { Cell::plain("0") } else { Cell::bad(count) }
}

/// Per second, in as many digits as matter.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

/// Bytes as people read them: `512B`, `1.5KiB`, `20MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let (mut amount, mut unit) = (bytes as f64 / 1024.0, UNITS[0]);
    for larger in &UNITS[1..] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    if amount < 10.0 { format!("{amount:.1}{unit}") } else { format!("{amount:.0}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!([0.0, 0.25, 9.94, 120.4].map(rate), ["0", "0.2", "9.9", "120"]);
        assert_eq!([0, 1023, 1536, 20 << 20, 3 << 40].map(size), ["0B", "1023B", "1.5KiB", "20MiB", "3.0TiB"]);
    }
}

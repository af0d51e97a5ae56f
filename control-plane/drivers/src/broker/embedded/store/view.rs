//! Questions about everything, answered by a thread and connection of their own, so that they hold up nobody: each answer is
//! from one snapshot of the file, which is one instant.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::mpsc::Receiver;

use bytes::BytesMut;
use rusqlite::Connection;
use tokio::sync::mpsc;

use super::census::Census;
use super::{load, refusal, rows};
use crate::broker::embedded::engine::Command;
use crate::broker::embedded::outbox::Reply;
use crate::broker::embedded::protocol::{Browse, Outgoing, json, put_stored, timestamp};
use crate::broker::embedded::settled::Settled;
use crate::broker::{BrokerError, ChannelState, From, GroupState, Position};

/// The most bytes of one answer to [`Browse`].
const BROWSE_BYTES: usize = 32 << 20;

pub enum ViewRequest {
    State { live: HashMap<String, Live>, reply: Reply },
    Browse { browse: Browse, reply: Reply },
}

impl ViewRequest {
    pub fn reply(self) -> Reply {
        match self {
            Self::State { reply, .. } | Self::Browse { reply, .. } => reply,
        }
    }
}

/// What no file knows of a channel.
#[derive(Default)]
pub struct Live {
    pub groups: HashMap<String, LiveGroup>,
    pub published_per_s: f64,
}

#[derive(Default)]
pub struct LiveGroup {
    pub in_flight: u64,
    pub consumers: u32,
    pub settled_per_s: f64,
}

/// Answers until nobody can ask any more. Damage that is found here ends the broker, as it does where it writes.
pub fn run(database: &Connection, requests: &Receiver<ViewRequest>, engine: &mpsc::Sender<Command>) {
    let mut census = Census::default();
    while let Ok(request) = requests.recv() {
        let answer = snapshot(database, |database| match &request {
            ViewRequest::State { live, .. } => Ok(json(&state(database, &mut census, live)?)),
            ViewRequest::Browse { browse, .. } => self::browse(database, browse),
        });
        match answer {
            Ok(body) => request.reply().done(body),
            Err(why) => {
                request.reply().failed(&why);
                if let BrokerError::Damaged(why) = why {
                    // Fails when it has ended already.
                    let _ = engine.blocking_send(Command::Damaged(why));
                }
            }
        }
    }
}

fn snapshot<T>(
    database: &Connection,
    read: impl FnOnce(&Connection) -> Result<T, ViewError>,
) -> Result<T, BrokerError> {
    let begun = database.execute_batch("BEGIN").map_err(ViewError::from);
    let answer = begun.and_then(|()| read(database));
    // A read transaction has nothing to lose.
    let _ = database.execute_batch("ROLLBACK");
    answer.map_err(|why| match why {
        ViewError::Store(why) => refusal(&why),
        ViewError::Answer(why) => why,
    })
}

enum ViewError {
    Store(rusqlite::Error),
    Answer(BrokerError),
}

impl std::convert::From<rusqlite::Error> for ViewError {
    fn from(why: rusqlite::Error) -> Self {
        Self::Store(why)
    }
}

/// How many of a partition's rows before `to` a group has yet to settle. Only those are looked at: behind one message that
/// nobody settles there may be many that are.
pub fn unsettled(
    database: &Connection,
    channel: u16,
    partition: u32,
    settled: &Settled,
    to: u64,
) -> Result<u64, rusqlite::Error> {
    settled.gaps(to).map(|gap| rows::count(database, channel, partition, gap.start, gap.end)).sum()
}

fn state(
    database: &Connection,
    census: &mut Census,
    live: &HashMap<String, Live>,
) -> Result<Vec<ChannelState>, ViewError> {
    let channels = load::channels(database)?;
    census.begin(channels.iter().map(|channel| channel.id));
    let none = Live::default();
    let mut states = Vec::with_capacity(channels.len());
    for channel in channels {
        let live = live.get(&channel.spec.name).unwrap_or(&none);
        let mut state = ChannelState {
            name: channel.spec.name.clone(),
            partitions: channel.spec.partitions,
            published_per_s: live.published_per_s,
            ..ChannelState::default()
        };
        let mut oldest = None;
        for (number, partition) in channel.partitions.iter().enumerate() {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            state.accepted += partition.next;
            state.kept_bytes += partition.bytes;
            state.kept += census.count(database, channel.id, number, *partition, partition.first)?;
            if partition.first < partition.next {
                let first = rows::next_after(database, channel.id, number, partition.first, partition.next)?;
                oldest = earlier(oldest, first.map(|(_, at)| at));
            }
        }
        state.oldest_at = oldest.and_then(|at| timestamp(at).ok());
        for (name, group) in &channel.groups {
            state.groups.push(group_state(database, census, &channel, name, group, live.groups.get(name))?);
        }
        states.push(state);
    }
    Ok(states)
}

fn group_state(
    database: &Connection,
    census: &mut Census,
    channel: &load::Channel,
    name: &str,
    group: &load::Group,
    live: Option<&LiveGroup>,
) -> Result<GroupState, rusqlite::Error> {
    let mut state = GroupState { name: name.to_owned(), paused: group.paused.clone(), ..GroupState::default() };
    let mut oldest = None;
    for (number, (partition, cursor)) in channel.partitions.iter().zip(&group.cursors).enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let settled = &cursor.settled;
        state.accepted += partition.next.saturating_sub(cursor.base);
        state.processed += cursor.processed;
        state.moved += cursor.moved;
        state.skipped += cursor.skipped;
        state.rewound += cursor.rewound;
        let end = settled.end().min(partition.next);
        state.unsettled += unsettled(database, channel.id, number, settled, end)?;
        state.unsettled += census.count(database, channel.id, number, *partition, end)?;
        // Where the first unsettled one is lost, the next row there is may be a settled one; the ranges say.
        let mut from = settled.floor();
        while from < partition.next
            && let Some((offset, at)) = rows::next_after(database, channel.id, number, from, partition.next)?
        {
            if !settled.contains(offset) {
                oldest = earlier(oldest, Some(at));
                break;
            }
            from = settled.next_unsettled(offset);
        }
    }
    state.oldest_unsettled_at = oldest.and_then(|at| timestamp(at).ok());
    if let Some(live) = live {
        state.in_flight = live.in_flight.min(state.unsettled);
        state.consumers = live.consumers;
        state.settled_per_s = live.settled_per_s;
    }
    Ok(state)
}

fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn browse(database: &Connection, browse: &Browse) -> Result<bytes::Bytes, ViewError> {
    let missing = || ViewError::Answer(BrokerError::NotFound(format!("channel {}", browse.channel)));
    let channel = load::channel(database, &browse.channel)?.ok_or_else(missing)?;
    let limit = match browse.from {
        From::Last(count) => count.min(browse.limit),
        _ => browse.limit,
    } as usize;
    let backwards = matches!(browse.from, From::Last(_));
    let mut ranges = Vec::with_capacity(channel.partitions.len());
    for (number, partition) in channel.partitions.iter().enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let (first, next) = (partition.first, partition.next);
        let start = match browse.from {
            From::Earliest | From::Last(_) => first,
            From::At(position) if position.partition == number => position.offset.max(first),
            From::At(_) => next,
            From::Time(at) => rows::first_since(database, channel.id, number, first, next, at.as_microsecond())?,
        };
        ranges.push(start..next);
    }
    // The next message of each partition, by the order of acceptance: whatever ends the answer, nothing is left out within it.
    let mut ahead = BTreeSet::new();
    for (number, range) in (0..).zip(&ranges) {
        ahead.extend(outermost(database, channel.id, number, range, backwards)?);
    }
    let (mut messages, mut bytes) = (Vec::new(), 0);
    while let Some((_, number, offset)) = if backwards { ahead.pop_last() } else { ahead.pop_first() } {
        if messages.len() >= limit {
            break;
        }
        let message = message(database, &channel, number, offset)?;
        let size = message.as_ref().map_or(0, BytesMut::len);
        if bytes > 0 && bytes + size > BROWSE_BYTES {
            break;
        }
        bytes += size;
        messages.extend(message);
        let Some(range) = ranges.get_mut(number as usize) else { continue };
        if backwards {
            range.end = offset;
        } else {
            range.start = offset + 1;
        }
        ahead.extend(outermost(database, channel.id, number, range, backwards)?);
    }
    if backwards {
        messages.reverse();
    }
    let mut body = BytesMut::with_capacity(bytes);
    messages.iter().for_each(|message| body.extend_from_slice(message));
    Ok(body.freeze())
}

/// The first row of a range, or the last one: when it was accepted, and where it is.
fn outermost(
    database: &Connection,
    channel: u16,
    partition: u32,
    range: &Range<u64>,
    last: bool,
) -> Result<Option<(i64, u32, u64)>, rusqlite::Error> {
    if range.is_empty() {
        return Ok(None);
    }
    let found = if last {
        rows::last_before(database, channel, partition, range.start, range.end)?
    } else {
        rows::next_after(database, channel, partition, range.start, range.end)?
    };
    Ok(found.map(|(offset, at)| (at, partition, offset)))
}

/// A message as an answer has it; `None` when its row is damaged.
fn message(
    database: &Connection,
    channel: &load::Channel,
    partition: u32,
    offset: u64,
) -> Result<Option<BytesMut>, rusqlite::Error> {
    let open = |group: &&String| {
        let cursor = channel.groups.get(*group).and_then(|group| group.cursors.get(partition as usize));
        cursor.is_some_and(|cursor| !cursor.settled.contains(offset))
    };
    let mut message = None;
    rows::scan(database, channel.id, partition, offset, offset + 1, |offset, row| {
        if let Some(rows::Kept { at, id, key, headers, payload, .. }) = row {
            let unsettled_by: Vec<&str> = channel.groups.keys().filter(open).map(String::as_str).collect();
            let position = Position { partition, offset };
            let out = message.insert(BytesMut::new());
            put_stored(out, &Outgoing { position, at, id, key, headers, payload }, &unsettled_by);
        }
        false
    })?;
    Ok(message)
}

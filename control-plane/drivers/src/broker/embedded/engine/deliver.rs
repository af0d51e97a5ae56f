//! Handing out what is durable: in order within each partition, as much as each consumer has room for.

use std::collections::HashMap;
use std::ops::Range;

use bytes::BytesMut;
use rusqlite::Connection;

use super::channel::{Cursor, Group};
use super::{Engine, Member, StoreError};
use crate::broker::Position;
use crate::broker::embedded::codec::{FRAME_HEAD, append_frame};
use crate::broker::embedded::outbox::Outbox;
use crate::broker::embedded::protocol::{Outgoing, kind, put_delivery};
use crate::broker::embedded::store::{place, rows};

/// Deliveries of one frame, and from one partition before it is the next one's turn.
const QUANTUM: u32 = 256;
const FRAME_BYTES: usize = 256 << 10;
/// How far a group may settle beyond its first unsettled message: what is remembered of it stays bounded.
const SPAN: u64 = 65_536;

/// What a look at a partition's rows brought.
#[derive(Default)]
struct Taken {
    count: u32,
    frame: BytesMut,
    next: u64,
    /// Offsets of which no row is there any more.
    lost: Vec<Range<u64>>,
    damaged: Vec<u64>,
}

impl Engine {
    pub(super) fn deliver(&mut self) -> Result<(), StoreError> {
        let mut damaged = Vec::new();
        for (name, channel) in &mut self.channels {
            // After each batch all channels are looked at, and few of them have anything to deliver.
            if !channel.groups.values().any(|group| group.ready) {
                continue;
            }
            let next: Vec<u64> = channel.partitions.iter().map(|partition| partition.durable.next).collect();
            for (group_name, group) in channel.groups.iter_mut().filter(|(_, group)| group.ready) {
                let losses = deliver_group(&self.database, channel.id, group, &next, &mut self.members)?;
                for (partition, taken) in losses {
                    channel.dirty = true;
                    for range in &taken.lost {
                        tracing::error!(
                            channel = %name, group = %group_name, partition, from = range.start, to = range.end,
                            "messages are lost: their rows are gone"
                        );
                    }
                    for offset in taken.damaged {
                        tracing::error!(channel = %name, partition, offset, "a message is damaged and is not delivered");
                        damaged.push((name.clone(), Position { partition, offset }));
                    }
                }
            }
        }
        if damaged.is_empty() {
            return Ok(());
        }
        for (name, position) in damaged {
            if let Err(why) = self.set_aside(&name, position) {
                return self.failed(&why);
            }
        }
        self.flush()
    }

    /// Puts a damaged message where nobody is given it, and takes its size from what is kept.
    fn set_aside(&mut self, name: &str, Position { partition, offset }: Position) -> Result<(), rusqlite::Error> {
        self.begin()?;
        let Some(channel) = self.channels.get_mut(name) else { return Ok(()) };
        let place = place(channel.id, partition, offset);
        let size = rows::size(&self.database, place)?;
        rows::set_aside(&self.database, place)?;
        if let Some(state) = channel.partitions.get_mut(partition as usize) {
            state.kept.bytes = state.kept.bytes.saturating_sub(size);
            channel.dirty = true;
        }
        Ok(())
    }
}

fn deliver_group(
    database: &Connection,
    channel: u16,
    group: &mut Group,
    next: &[u64],
    members: &mut HashMap<u64, Member>,
) -> Result<Vec<(u32, Taken)>, rusqlite::Error> {
    group.ready = false;
    let mut losses = Vec::new();
    for cursor in &mut group.cursors {
        cursor.hand_over();
    }
    if group.paused.is_some() || group.members.is_empty() {
        return Ok(losses);
    }
    let partitions = group.cursors.len();
    group.turn = group.turn.wrapping_add(1);
    let mut idle = 0;
    let mut at = group.turn;
    while idle < partitions {
        at = at.wrapping_add(1);
        let partition = at % partitions;
        idle += 1;
        let (Some(cursor), Some(next)) = (group.cursors.get_mut(partition), next.get(partition)) else { continue };
        let limit = (*next).min(cursor.kept.settled.floor() + SPAN);
        let member =
            cursor.owner.filter(|owner| cursor.wanted == Some(*owner)).and_then(|owner| members.get_mut(&owner));
        let Some(member) = member else { continue };
        let room = (member.prefetch - member.used).min(QUANTUM);
        if cursor.fetch >= limit || room == 0 || !member.outbox.takes_deliveries() {
            continue;
        }
        let number = u32::try_from(partition).unwrap_or(u32::MAX);
        let mut taken = take(database, channel, number, cursor, limit, room, member.id)?;
        cursor.fetch = taken.next;
        if !taken.lost.is_empty() || !taken.damaged.is_empty() {
            for range in taken.lost.iter().cloned().chain(taken.damaged.iter().map(|offset| *offset..*offset + 1)) {
                cursor.kept.settled.settle(range);
            }
            cursor.dirty = true;
        }
        if taken.count > 0 {
            cursor.kept.delivered = cursor.kept.delivered.max(taken.next);
            cursor.held += taken.count;
            member.used += taken.count;
            send(&member.outbox, std::mem::take(&mut taken.frame));
            idle = 0;
        }
        if !taken.lost.is_empty() || !taken.damaged.is_empty() {
            losses.push((number, taken));
            idle = 0;
        }
    }
    Ok(losses)
}

/// Reads what is to be delivered next, as a frame.
fn take(
    database: &Connection,
    channel: u16,
    partition: u32,
    cursor: &Cursor,
    limit: u64,
    room: u32,
    consumer: u64,
) -> Result<Taken, rusqlite::Error> {
    let settled = &cursor.kept.settled;
    let from = settled.next_unsettled(cursor.fetch);
    let mut taken = Taken { next: from, frame: BytesMut::with_capacity(FRAME_HEAD + 1024), ..Taken::default() };
    if from >= limit {
        taken.next = from.max(cursor.fetch);
        return Ok(taken);
    }
    let mut frame = std::mem::take(&mut taken.frame);
    let mut result = Ok(());
    let mut ended = true;
    append_frame(&mut frame, kind::DELIVER, consumer, |out| {
        result = rows::scan(database, channel, partition, from, limit, |offset, row| {
            if offset > taken.next {
                note_lost(&mut taken, settled, offset);
            }
            taken.next = offset + 1;
            if settled.contains(offset) {
                return true;
            }
            match row {
                None => taken.damaged.push(offset),
                Some(row) => {
                    let position = Position { partition, offset };
                    let rows::Kept { at, id, key, headers, payload, .. } = row;
                    let message = Outgoing { position, at, id, key, headers, payload };
                    put_delivery(out, &message, offset < cursor.kept.delivered);
                    taken.count += 1;
                }
            }
            ended = taken.count < room && out.len() < FRAME_BYTES;
            ended
        });
    });
    result?;
    if ended && taken.next < limit {
        note_lost(&mut taken, settled, limit);
        taken.next = limit;
    }
    taken.frame = frame;
    Ok(taken)
}

/// Offsets from where the scan stands to before `to` have no row. Those that are settled may be gone.
fn note_lost(taken: &mut Taken, settled: &crate::broker::embedded::settled::Settled, to: u64) {
    let mut from = settled.next_unsettled(taken.next);
    while from < to {
        let end = settled.ranges().map(|range| range.start).find(|start| *start > from).unwrap_or(to).min(to);
        taken.lost.push(from..end);
        from = settled.next_unsettled(end);
    }
}

fn send(outbox: &Outbox, frame: BytesMut) {
    outbox.deliver(frame.freeze());
}

//! Publishing and settling: what happens a hundred thousand times a second.

use bytes::{Bytes, BytesMut};
use rusqlite::{Connection, OptionalExtension, params};

use super::channel::Channel;
use super::{Engine, Fault, Staged, StoreError, Undo, begin};
use crate::broker::embedded::codec::Raw;
use crate::broker::embedded::outbox::Reply;
use crate::broker::embedded::partitioner::partition_of;
use crate::broker::embedded::protocol::{Fate, Incoming, put_confirmed};
use crate::broker::embedded::store::{place, position_of, rows};
use crate::broker::{BrokerError, Position};

impl Engine {
    /// Stages a publish; it is answered by the commit.
    pub(super) fn publish(&mut self, name: &str, messages: &[Incoming], reply: Reply) -> Result<(), StoreError> {
        let size = messages.iter().map(|incoming| incoming.message.size()).sum();
        let room = match self.make_room(name, size) {
            // What is kept already needs no room: who publishes it again is to hear that it is there.
            Err(Fault::Answer(BrokerError::Full(_) | BrokerError::Refused(_))) => {
                self.make_room_for_new(name, messages)
            }
            other => other,
        };
        if let Err(why) = room {
            return self.refuse(why, reply);
        }
        let now = self.now;
        let Some(channel) = self.channels.get_mut(name) else { return Ok(()) };
        let mut body = BytesMut::with_capacity(messages.len() * 56);
        let spread = channel.turn;
        channel.turn = channel.turn.wrapping_add(1);
        let mut write = || -> Result<u64, rusqlite::Error> {
            begin(&self.database)?;
            let mut accepted = 0;
            for incoming in messages {
                let key = incoming.idempotency_key.as_deref().map(std::str::from_utf8).transpose()?;
                if let Some(key) = key
                    && let Some((id, position)) = channel.earlier(&self.database, key, now)?
                {
                    put_confirmed(&mut body, id.as_bytes(), position, true);
                    continue;
                }
                let position = channel.append(&self.database, &incoming.message, spread, now)?;
                if let Some(key) = key {
                    channel.remember(&self.database, key, position, &incoming.message, now)?;
                }
                put_confirmed(&mut body, &incoming.message.id, position, false);
                accepted += 1;
            }
            Ok(accepted)
        };
        let written = write();
        let accepted = *written.as_ref().unwrap_or(&0);
        self.staged.push(Staged { reply, body: body.freeze(), accepted, settled: 0, holds_anyway: false });
        written.map_or_else(|why| self.failed(&why), |_| Ok(()))
    }

    fn make_room_for_new(&mut self, name: &str, messages: &[Incoming]) -> Result<(), Fault> {
        let Some(channel) = self.channels.get(name) else { return Ok(()) };
        let (mut new, mut size) = (false, 0);
        for incoming in messages {
            let key = incoming.idempotency_key.as_deref().map(std::str::from_utf8).transpose();
            let key = key.map_err(rusqlite::Error::from)?;
            let kept = key.map(|key| channel.earlier(&self.database, key, self.now)).transpose()?.flatten();
            if kept.is_none() {
                new = true;
                size += incoming.message.size();
            }
        }
        if new { self.make_room(name, size) } else { Ok(()) }
    }

    /// Stages settlements, all or none; they are answered by the commit.
    pub(super) fn settle(
        &mut self,
        consumer: u64,
        settlements: Vec<(Position, Fate)>,
        reply: Reply,
    ) -> Result<(), StoreError> {
        if let Err(why) = self.may_settle(consumer, &settlements) {
            return self.refuse(why, reply);
        }
        // What moves must be in its new place; what does not, and all that is said with it, holds in memory too.
        let holds_anyway = settlements.iter().all(|(_, fate)| matches!(fate, Fate::Processed));
        let settled = settlements.len() as u64;
        let mut accepted = 0;
        let mut failed = None;
        for (position, fate) in settlements {
            let moved = matches!(fate, Fate::Moved { .. });
            self.settle_one(consumer, position, moved);
            if !holds_anyway {
                self.undo.push(Undo { consumer, position, moved });
            }
            if let Fate::Moved { channel, message } = fate {
                accepted += 1;
                if let Err(why) = self.append_moved(&channel, &message) {
                    failed = Some(why);
                    break;
                }
            }
        }
        self.staged.push(Staged { reply, body: Bytes::new(), accepted, settled, holds_anyway });
        failed.map_or(Ok(()), |why| self.failed(&why))
    }

    /// Answers a request of which nothing was done. Where the store failed, the transaction may be gone with it, and everything
    /// that was staged in it.
    fn refuse(&mut self, why: Fault, reply: Reply) -> Result<(), StoreError> {
        match why {
            Fault::Answer(why) => {
                self.metrics.refused();
                reply.failed(&why);
                Ok(())
            }
            Fault::Store(why) => {
                self.staged.push(Staged { reply, body: Bytes::new(), accepted: 0, settled: 0, holds_anyway: false });
                self.failed(&why)
            }
        }
    }

    /// Whether the consumer holds all of it, and there is room for what moves.
    fn may_settle(&mut self, consumer: u64, settlements: &[(Position, Fate)]) -> Result<(), Fault> {
        let lost = |what: String| Fault::Answer(BrokerError::Lost(what));
        let member = self
            .members
            .get(&consumer)
            .ok_or_else(|| lost("the consumer was silent for too long, or left".to_owned()))?;
        let group = self.channels.get(&member.channel).and_then(|channel| channel.groups.get(&member.group));
        let group = group.ok_or_else(|| lost("the group is gone".to_owned()))?;
        let mut sizes: Vec<(String, u64)> = Vec::new();
        for (at, (position, fate)) in settlements.iter().enumerate() {
            let cursor = usize::try_from(position.partition).ok().and_then(|partition| group.cursors.get(partition));
            let held = cursor.is_some_and(|cursor| {
                cursor.owner == Some(consumer)
                    && position.offset < cursor.fetch
                    && !cursor.kept.settled.contains(position.offset)
            });
            let twice = settlements.len() < 64 && settlements.iter().take(at).any(|(other, _)| other == position);
            if !held || twice {
                return Err(lost(format!("message {} of partition {}", position.offset, position.partition)));
            }
            if let Fate::Moved { channel, message } = fate {
                match sizes.iter_mut().find(|(name, _)| name == channel) {
                    Some((_, size)) => *size += message.size(),
                    None => sizes.push((channel.clone(), message.size())),
                }
            }
        }
        if settlements.len() >= 64 {
            let mut positions: Vec<Position> = settlements.iter().map(|(position, _)| *position).collect();
            positions.sort_unstable();
            if positions.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(lost("one message was settled twice".to_owned()));
            }
        }
        sizes.iter().try_for_each(|(name, size)| self.make_room(name, *size))
    }

    fn settle_one(&mut self, consumer: u64, position: Position, moved: bool) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&consumer) else { return };
        let Some(channel) = self.channels.get_mut(&member.channel) else { return };
        let Some(group) = channel.groups.get_mut(&member.group) else { return };
        let Some(cursor) = group.cursors.get_mut(position.partition as usize) else { return };
        cursor.kept.settled.settle(position.offset..position.offset + 1);
        if moved {
            cursor.kept.moved += 1;
        } else {
            cursor.kept.processed += 1;
        }
        cursor.dirty = true;
        cursor.held -= 1;
        member.used -= 1;
        channel.dirty = true;
        group.settled.add(now, 1);
        group.ready = true;
        cursor.hand_over();
    }

    /// Undoes a settlement that could not be written.
    pub(super) fn take_back(&mut self, Undo { consumer, position, moved }: Undo) {
        let Some(member) = self.members.get_mut(&consumer) else { return };
        let Some(channel) = self.channels.get_mut(&member.channel) else { return };
        let Some(group) = channel.groups.get_mut(&member.group) else { return };
        let Some(cursor) = group.cursors.get_mut(position.partition as usize) else { return };
        cursor.kept.settled.unsettle(position.offset..position.offset + 1);
        if moved {
            cursor.kept.moved -= 1;
        } else {
            cursor.kept.processed -= 1;
        }
        if cursor.owner == Some(consumer) {
            cursor.held += 1;
            member.used += 1;
        } else {
            // It was handed over with its last settlement; whoever has it now is given the message too.
            cursor.fetch = cursor.fetch.min(position.offset);
        }
    }

    fn append_moved(&mut self, name: &str, message: &Raw) -> Result<(), rusqlite::Error> {
        self.begin()?;
        let now = self.now;
        let Some(channel) = self.channels.get_mut(name) else { return Ok(()) };
        let spread = channel.turn;
        channel.turn = channel.turn.wrapping_add(1);
        channel.append(&self.database, message, spread, now)?;
        Ok(())
    }
}

impl Channel {
    fn append(
        &mut self,
        database: &Connection,
        message: &Raw,
        spread: u32,
        now: i64,
    ) -> Result<Position, rusqlite::Error> {
        let count = self.spec.partitions.max(1);
        let number = message.key.as_deref().map_or(spread % count, |key| partition_of(key, count));
        let Some(partition) = self.partitions.get_mut(number as usize) else {
            return Err(rusqlite::Error::IntegralValueOutOfRange(0, i64::from(number)));
        };
        let offset = partition.kept.next;
        rows::insert(database, place(self.id, number, offset), now, message)?;
        partition.kept.next += 1;
        partition.kept.bytes += message.size();
        self.dirty = true;
        self.published.add(now, 1);
        Ok(Position { partition: number, offset })
    }

    /// The message that was published with this key within the window.
    fn earlier(
        &self,
        database: &Connection,
        key: &str,
        now: i64,
    ) -> Result<Option<(String, Position)>, rusqlite::Error> {
        let window = i64::try_from(self.spec.idempotency_window.as_micros()).unwrap_or(i64::MAX);
        database
            .prepare_cached("SELECT id, place FROM keys WHERE channel = ?1 AND key = ?2 AND at > ?3")?
            .query_row(params![self.id, key, now.saturating_sub(window)], |row| {
                Ok((row.get(0)?, position_of(row.get(1)?)))
            })
            .optional()
    }

    fn remember(
        &self,
        database: &Connection,
        key: &str,
        position: Position,
        message: &Raw,
        now: i64,
    ) -> Result<(), rusqlite::Error> {
        let id = std::str::from_utf8(&message.id)?;
        let place = place(self.id, position.partition, position.offset);
        database
            .prepare_cached("INSERT OR REPLACE INTO keys (channel, key, at, place, id) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![self.id, key, now, place, id])?;
        Ok(())
    }
}

//! Who consumes: joining, leaving, being gone.

use std::sync::Arc;

use super::Engine;
use crate::broker::BrokerError;
use crate::broker::embedded::outbox::{Outbox, Reply};
use crate::broker::embedded::protocol::kind;

/// A consumer that asks to be one.
pub struct Join {
    pub channel: String,
    pub group: String,
    pub prefetch: u32,
    pub outbox: Arc<Outbox>,
    pub reply: Reply,
}

/// A consumer.
pub struct Member {
    pub id: u64,
    pub channel: String,
    pub group: String,
    pub prefetch: u32,
    /// Of the prefetch: deliveries not settled.
    pub used: u32,
    pub outbox: Arc<Outbox>,
}

impl Engine {
    pub(super) fn join(&mut self, join: Join) {
        let Join { channel: name, group: group_name, prefetch, outbox, reply } = join;
        let Some(group) = self.channels.get_mut(&name).and_then(|channel| channel.groups.get_mut(&group_name)) else {
            return reply.failed(&BrokerError::NotFound(format!("group {group_name} of channel {name}")));
        };
        let id = self.next_member;
        self.next_member += 1;
        reply.done(id.to_be_bytes().to_vec().into());
        group.members.push(id);
        group.rebalance();
        let member = Member { id, channel: name, group: group_name, prefetch: prefetch.max(1), used: 0, outbox };
        self.members.insert(id, member);
    }

    /// It takes no more; its partitions go to others once it has settled what it holds.
    pub(super) fn leave(&mut self, consumer: u64) {
        let Some(member) = self.members.get(&consumer) else { return };
        let group = self.channels.get_mut(&member.channel).and_then(|channel| channel.groups.get_mut(&member.group));
        if let Some(group) = group {
            group.members.retain(|other| *other != consumer);
            group.rebalance();
        }
    }

    /// The consumers of a connection.
    pub(super) fn of(&self, connection: u64) -> Vec<u64> {
        self.members.values().filter(|member| member.outbox.id == connection).map(|member| member.id).collect()
    }

    pub(super) fn gone(&mut self, connection: u64) {
        for consumer in self.of(connection) {
            self.end(consumer);
        }
    }

    /// Takes everything from a consumer, and tells it.
    pub(super) fn end(&mut self, consumer: u64) {
        let Some(member) = self.members.remove(&consumer) else { return };
        member.outbox.control(kind::ENDED, consumer);
        let group = self.channels.get_mut(&member.channel).and_then(|channel| channel.groups.get_mut(&member.group));
        let Some(group) = group else { return };
        group.members.retain(|other| *other != consumer);
        for cursor in group.cursors.iter_mut().filter(|cursor| cursor.owner == Some(consumer)) {
            cursor.abandon();
        }
        group.rebalance();
    }

    /// Ends every consumer of a group: they join anew and begin where the group stands now.
    pub(super) fn end_all(&mut self, channel: &str, group: &str) {
        let of_group = |member: &&super::Member| member.channel == channel && member.group == group;
        let all: Vec<u64> = self.members.values().filter(of_group).map(|member| member.id).collect();
        all.into_iter().for_each(|consumer| self.end(consumer));
    }

    pub(super) fn drained(&mut self, connection: u64) {
        for member in self.members.values().filter(|member| member.outbox.id == connection) {
            let group =
                self.channels.get_mut(&member.channel).and_then(|channel| channel.groups.get_mut(&member.group));
            if let Some(group) = group {
                group.ready = true;
            }
        }
    }
}

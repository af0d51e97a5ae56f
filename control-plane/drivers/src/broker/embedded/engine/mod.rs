//! The broker's one thread that decides and writes. It takes whatever is waiting, does it in one transaction, and answers
//! after the one sync that makes all of it durable; then it delivers what can be delivered.
//!
//! Invariant: nothing is answered, and no message is delivered, before the transaction that holds it is durable. The one
//! exception: where the disk is full, "processed" counts in memory until it can be written; at worst it is delivered again.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use bytes::Bytes;
use rusqlite::Connection;
use tokio::sync::mpsc;

use super::metrics::Metrics;
use super::outbox::Reply;
use super::protocol::{Ask, Fate, Incoming, kind};
use super::store::view::ViewRequest;
use super::store::{StoreError, is_damage, is_full, load, open, refusal, rows};
use crate::broker::{BrokerError, Position};

mod admin;
mod channel;
mod clock;
mod deliver;
mod hot;
mod leftovers;
mod members;
mod retention;

use channel::Channel;
use clock::Clock;
pub use members::Join;
use members::Member;

/// How many requests one transaction may hold; a bound for how long one waits for another.
const BATCH: usize = 1024;

/// What the engine is asked for.
pub enum Command {
    Publish {
        channel: String,
        messages: Vec<Incoming>,
        reply: Reply,
    },
    Settle {
        consumer: u64,
        settlements: Vec<(Position, Fate)>,
        reply: Reply,
    },
    Join(Join),
    /// The connection's consumers take no more; what they hold they may still settle.
    Leave {
        connection: u64,
    },
    /// The connection is closed or silent: its consumers are gone.
    Gone {
        connection: u64,
    },
    /// The connection takes deliveries again.
    Drained {
        connection: u64,
    },
    Ask {
        ask: Ask,
        reply: Reply,
    },
    View(ViewRequest),
    Tick,
    /// Somebody else found the file damaged.
    Damaged(String),
    Stop,
}

/// An answer that waits for the commit.
struct Staged {
    reply: Reply,
    body: Bytes,
    /// Messages that it brings.
    accepted: u64,
    /// Messages that it settles.
    settled: u64,
    /// Whether the answer stands even when the commit fails, because all that it says is true in memory.
    holds_anyway: bool,
}

/// A settlement that does not hold without its transaction.
struct Undo {
    consumer: u64,
    position: Position,
    moved: bool,
}

pub struct Engine {
    database: Connection,
    folder: PathBuf,
    views: SyncSender<ViewRequest>,
    metrics: Arc<Metrics>,
    channels: HashMap<String, Channel>,
    /// Channels that are gone, but not wholly.
    leftovers: BTreeSet<u16>,
    members: HashMap<u64, Member>,
    next_member: u64,
    staged: Vec<Staged>,
    /// What is taken back when this transaction fails.
    undo: Vec<Undo>,
    clock: Clock,
    /// Microseconds since 1970 of this batch, by the clock.
    now: i64,
    tick: u64,
    /// Whether the last commit found the disk full.
    full: bool,
}

impl Engine {
    pub fn new(
        opened: open::Opened,
        folder: PathBuf,
        views: SyncSender<ViewRequest>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let channels = load::channels(&opened.database)?;
        let leftovers = leftovers::find(&opened.database, |id| channels.iter().any(|channel| channel.id == id))?;
        let clock = Clock::behind(newest(&opened.database, &channels)?);
        let channels: HashMap<String, Channel> =
            channels.into_iter().map(|kept| (kept.spec.name.clone(), Channel::of(kept, opened.clean))).collect();
        Ok(Self {
            database: opened.database,
            folder,
            views,
            metrics,
            channels,
            leftovers,
            members: HashMap::new(),
            next_member: 1,
            staged: Vec::new(),
            undo: Vec::new(),
            now: clock.now(),
            clock,
            tick: 0,
            full: false,
        })
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// When the file turns out to be damaged; opening it again repairs what can be repaired.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        while commands.blocking_recv_many(&mut batch, BATCH) > 0 {
            self.now = self.clock.now();
            for command in batch.drain(..) {
                match command {
                    Command::Publish { channel, messages, reply } => self.publish(&channel, &messages, reply)?,
                    Command::Settle { consumer, settlements, reply } => self.settle(consumer, settlements, reply)?,
                    Command::Stop => return self.stop(),
                    Command::Damaged(why) => return Err(StoreError::Damaged(why)),
                    rare => {
                        self.flush()?;
                        self.rare(rare)?;
                    }
                }
            }
            self.flush()?;
            self.deliver()?;
        }
        self.stop()
    }

    fn rare(&mut self, command: Command) -> Result<(), StoreError> {
        match command {
            Command::Join(join) => self.join(join),
            Command::Leave { connection } => self.of(connection).into_iter().for_each(|consumer| self.leave(consumer)),
            Command::Gone { connection } => self.gone(connection),
            Command::Drained { connection } => self.drained(connection),
            Command::Ask { ask: Ask::State, reply } => self.state(reply),
            Command::Ask { ask, reply } => {
                let answer = match self.ask(ask) {
                    Err(Fault::Store(why)) if is_damage(&why) => return Err(why.into()),
                    Err(Fault::Store(why)) => Err(refusal(&why)),
                    Err(Fault::Answer(why)) => Err(why),
                    Ok(()) => Ok(()),
                };
                match answer {
                    Ok(()) => reply.done(Bytes::new()),
                    Err(why) => reply.failed(&why),
                }
            }
            Command::View(request) => self.view(request),
            Command::Tick => self.on_tick()?,
            Command::Publish { .. } | Command::Settle { .. } | Command::Damaged(_) | Command::Stop => {}
        }
        Ok(())
    }

    fn view(&self, request: ViewRequest) {
        if let Err(refused) = self.views.try_send(request) {
            let (std::sync::mpsc::TrySendError::Full(request) | std::sync::mpsc::TrySendError::Disconnected(request)) =
                refused;
            request.reply().failed(&BrokerError::Unreachable("it is busy with other questions".to_owned()));
        }
    }

    fn state(&mut self, reply: Reply) {
        let now = self.now;
        let live = self.channels.iter_mut().map(|(name, channel)| (name.clone(), channel.live(now))).collect();
        self.view(ViewRequest::State { live, reply });
    }

    fn on_tick(&mut self) -> Result<(), StoreError> {
        self.tick += 1;
        if self.full {
            // Publishers try for themselves; what only memory knows is written by this. All of it, so that something is written.
            self.channels.values_mut().for_each(Channel::touch);
            self.flush()?;
        }
        match self.retain().and_then(|()| self.sweep()) {
            Err(why) if is_damage(&why) => return Err(why.into()),
            Err(why) => {
                self.roll_back();
                if !is_full(&why) {
                    tracing::warn!(%why, "old messages could not be removed");
                }
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Opens the transaction of this batch, if it is not open.
    fn begin(&self) -> Result<(), rusqlite::Error> {
        begin(&self.database)
    }

    /// Makes everything staged durable, and answers.
    fn flush(&mut self) -> Result<(), StoreError> {
        if self.staged.is_empty() && !self.channels.values().any(|channel| channel.dirty) {
            return Ok(());
        }
        let started = Instant::now();
        let committed = self.begin().and_then(|()| self.save_dirty()).and_then(|()| {
            self.database.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        });
        match committed {
            Ok(()) => {
                self.metrics.committed(started.elapsed(), self.staged.len());
                if std::mem::take(&mut self.full) {
                    tracing::info!("the disk takes writes again");
                }
                for channel in self.channels.values_mut() {
                    channel.committed();
                }
                self.undo.clear();
                for staged in self.staged.drain(..) {
                    self.metrics.accepted(staged.accepted);
                    self.metrics.settled(staged.settled);
                    staged.reply.done(staged.body);
                }
                Ok(())
            }
            Err(why) => self.failed(&why),
        }
    }

    fn save_dirty(&self) -> Result<(), rusqlite::Error> {
        self.channels.values().filter(|channel| channel.dirty).try_for_each(|channel| channel.save(&self.database))
    }

    /// Takes back what the failed transaction held, and says so to those who wait for it.
    fn failed(&mut self, why: &rusqlite::Error) -> Result<(), StoreError> {
        self.roll_back();
        let refusal = refusal(why);
        if is_full(why) && !std::mem::replace(&mut self.full, true) {
            tracing::error!(%why, "the disk is full, or refuses writes: nothing more is accepted until it takes them");
        }
        for staged in std::mem::take(&mut self.staged) {
            if staged.holds_anyway && is_full(why) {
                self.metrics.settled(staged.settled);
                staged.reply.done(staged.body);
            } else {
                self.metrics.refused();
                staged.reply.failed(&refusal);
            }
        }
        if is_full(why) {
            return Ok(());
        }
        Err(rusqlite::Error::SqliteFailure(
            why.sqlite_error().copied().unwrap_or(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR)),
            Some(why.to_string()),
        )
        .into())
    }

    fn roll_back(&mut self) {
        if !self.database.is_autocommit()
            && let Err(why) = self.database.execute_batch("ROLLBACK")
        {
            tracing::warn!(%why, "a transaction could not be rolled back");
        }
        for channel in self.channels.values_mut() {
            channel.rolled_back();
        }
        for undo in std::mem::take(&mut self.undo) {
            self.take_back(undo);
        }
    }

    /// The last commit, then the mark that says so.
    fn stop(mut self) -> Result<(), StoreError> {
        self.channels.values_mut().for_each(Channel::touch);
        self.flush()?;
        for member in self.members.values() {
            member.outbox.control(kind::ENDED, member.id);
        }
        if self.full {
            // What only memory knows is lost with it, so the next one must not believe the file.
            return Ok(());
        }
        open::close(self.database, &self.folder)
    }
}

/// [`Engine::begin`], where the engine is lent out in parts.
fn begin(database: &Connection) -> Result<(), rusqlite::Error> {
    if database.is_autocommit() {
        database.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    }
    Ok(())
}

/// When the newest message was accepted, in microseconds since 1970. A damaged one may say anything.
fn newest(database: &Connection, channels: &[load::Channel]) -> Result<i64, rusqlite::Error> {
    let mut newest = 0;
    for channel in channels {
        for (number, partition) in (0..).zip(&channel.partitions) {
            let last = rows::last_before(database, channel.id, number, partition.first, partition.next)?;
            let Some((last, _)) = last else { continue };
            rows::scan(database, channel.id, number, last, last + 1, |_, row| {
                newest = row.map_or(newest, |row| newest.max(row.at));
                false
            })?;
        }
    }
    Ok(newest)
}

/// Why a rare request was not done.
enum Fault {
    Store(rusqlite::Error),
    Answer(BrokerError),
}

impl From<rusqlite::Error> for Fault {
    fn from(why: rusqlite::Error) -> Self {
        Self::Store(why)
    }
}

impl From<BrokerError> for Fault {
    fn from(why: BrokerError) -> Self {
        Self::Answer(why)
    }
}

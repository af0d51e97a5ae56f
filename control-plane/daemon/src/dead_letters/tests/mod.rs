//! The store, the intake and the runner against brokers that can be made to fail.

mod broker;
mod flows;
mod http;
mod measure;
mod simulation;
mod store;

use bytes::Bytes;
use jiff::Timestamp;
use meshctl_drivers::broker::Position;
use meshctl_model::message::{Attempt, Death, DeathReason, Failure, Message, header};
use rusqlite::Connection;

use super::store::{Done, Trouble};
use super::take_in::{Arrived, Place};

fn place(subscription: &str) -> Place {
    Place { channel: "order.placed".into(), subscription: subscription.into() }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
}

/// A message as a courier moves it to the dead channel, after one more attempt.
fn died(place: &Place, mut message: Message, failure: Failure, when: Timestamp) -> Message {
    let mut history = message.history();
    let number = history.last().map_or(1, |attempt| attempt.number + 1);
    history.push(Attempt {
        number,
        at: when,
        failure,
        reason: format!("POST /events answered 422: no order {number}"),
        status: Some(422),
        duration_ms: 3,
        replay: message.header(header::REPLAY).map(str::to_owned),
    });
    message.set_history(&history);
    let reason = if failure == Failure::Rejected { DeathReason::Poison } else { DeathReason::Exhausted };
    let (channel, subscription) = (place.channel.clone(), place.subscription.clone());
    message.set_death(&Death { channel, subscription, reason, attempts: number, at: when });
    message
}

/// As a publisher sent it.
fn message(id: &str) -> Message {
    let headers = [("ce-type", "order.placed"), ("x-twice", "1"), ("x-twice", "2")];
    Message {
        id: id.into(),
        key: Some(format!("key of {id}")),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        payload: Bytes::from(vec![0, 159, 146, 150, b'\n', b'"']),
    }
}

fn arrived(offset: u64, message: Message) -> Arrived {
    Arrived { position: Position { partition: 0, offset }, message, accepted_at: at(0) }
}

/// One transaction.
fn write<T>(connection: &mut Connection, work: impl FnOnce(&rusqlite::Transaction) -> Done<T>) -> T {
    match try_write(connection, work) {
        Ok(done) => done,
        Err(why) => panic!("{why:?}"),
    }
}

fn try_write<T>(
    connection: &mut Connection,
    work: impl FnOnce(&rusqlite::Transaction) -> Done<T>,
) -> Result<T, Trouble> {
    let transaction = connection.transaction().expect("begins");
    let done = work(&transaction)?;
    transaction.commit().expect("commits");
    Ok(done)
}

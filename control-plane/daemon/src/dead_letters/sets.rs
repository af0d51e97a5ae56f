//! Sets of dead letters that something is to be done to: what a selection comes to, its fingerprint, and the changes of
//! state that are no replay.

use std::collections::BTreeMap;

use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::DeadLetterQuery;
use rusqlite::{Connection, Transaction, params, params_from_iter};

use super::fingerprint::digest;
use super::letters::unknown;
use super::sql::Where;
use super::store::Done;

/// What can be done to dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Replay,
    Discard,
    Park,
    Restore,
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Discard => "discard",
            Self::Park => "park",
            Self::Restore => "restore",
        }
    }

    /// As it stands in the audit.
    pub const fn deed(self) -> &'static str {
        match self {
            Self::Replay => "deadletter.replay",
            Self::Discard => "deadletter.discard",
            Self::Park => "deadletter.park",
            Self::Restore => "deadletter.restore",
        }
    }

    /// What is told of it.
    pub const fn event(self) -> &'static str {
        match self {
            Self::Replay => "replay.started",
            Self::Discard => "deadletters.discarded",
            Self::Park => "deadletters.parked",
            Self::Restore => "deadletters.restored",
        }
    }

    /// The states from which it leads on. Letters that a replay has yet to issue are in none of them.
    const fn from(self) -> &'static [&'static str] {
        match self {
            Self::Replay | Self::Park => &["dead"],
            Self::Discard => &["dead", "parked"],
            Self::Restore => &["parked", "discarded"],
        }
    }

    const fn to(self) -> &'static str {
        match self {
            Self::Replay => "replaying",
            Self::Discard => "discarded",
            Self::Park => "parked",
            Self::Restore => "dead",
        }
    }
}

/// Letters at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// In the order of their ids.
    pub letters: Vec<Selected>,
    /// Of the ids.
    pub fingerprint: String,
    /// By subscription.
    pub subscriptions: BTreeMap<String, u64>,
    /// Selected too, and in a state in which nothing can be done, or in another replay.
    pub left_out: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    pub number: i64,
    pub id: String,
}

impl Set {
    /// Of its letters, as SQL takes a list: one parameter, however many there are.
    pub fn numbers(&self) -> String {
        let numbers: Vec<i64> = self.letters.iter().map(|letter| letter.number).collect();
        serde_json::to_string(&numbers).unwrap_or_default()
    }
}

/// Those of the selected letters to which the action can be done. Others are left out, as long as there are any.
///
/// Ids that do not exist, and a selection of nothing, are [`ErrorCode::NotFound`]; where nothing can be done to any of them,
/// [`ErrorCode::Conflict`] says why. So it is where `agreed` is the fingerprint of another set.
pub fn select(
    from: &Connection,
    query: &DeadLetterQuery,
    wanted: &Where,
    action: Action,
    agreed: Option<&str>,
) -> Done<Set> {
    for id in query.ids.as_deref().into_iter().flat_map(|ids| ids.split(',')).map(str::trim) {
        if !from.prepare_cached("SELECT 1 FROM letters WHERE id = ?1")?.exists([id])? {
            return Err(unknown(id).into());
        }
    }
    let text = format!(
        "SELECT id, number, state, held_by, channel, subscription,
             (SELECT state FROM replays WHERE replays.id = letters.replay_id),
             EXISTS (SELECT 1 FROM contents WHERE contents.number = letters.number)
         FROM letters WHERE {} ORDER BY id",
        wanted.sql
    );
    let mut statement = from.prepare_cached(&text)?;
    let mut rows = statement.query(params_from_iter(&wanted.values))?;
    let mut letters = Vec::new();
    let mut subscriptions: BTreeMap<String, u64> = BTreeMap::new();
    let (mut left_out, mut obstacle) = (0, None);
    while let Some(row) = rows.next()? {
        let (id, state): (String, &str) = (row.get(0)?, row.get_ref(2)?.as_str()?);
        let held_by: Option<String> = row.get(3)?;
        let replay = row.get_ref(6)?.as_str_or_null()?;
        // A copy of it is under way, or is lost for good, which only an operator can know.
        let lost = state == "replaying" && replay == Some("cancelled");
        let given_up = lost && action == Action::Restore && query.ids.is_some();
        let forgotten = !row.get::<_, bool>(7)?;
        if held_by.is_none() && !forgotten && (given_up || action.from().contains(&state)) {
            let name = format!("{}/{}", row.get_ref(4)?.as_str()?, row.get_ref(5)?.as_str()?);
            *subscriptions.entry(name).or_default() += 1;
            letters.push(Selected { number: row.get(1)?, id });
        } else {
            left_out += 1;
            if obstacle.is_none() {
                obstacle = Some(match held_by {
                    Some(replay) => format!("{id} waits in the replay {replay}"),
                    None if forgotten => format!("{id} is {state} for so long that its payload is no longer kept"),
                    None => format!("{id} is {state}"),
                });
            }
        }
    }
    if letters.is_empty() {
        return Err(nothing(action, left_out, obstacle).into());
    }
    let fingerprint = digest(letters.iter().map(|letter| letter.id.as_str()));
    if agreed.is_some_and(|agreed| agreed != fingerprint) {
        let message = format!(
            "the set is another one now ({}, {fingerprint}) than the one that was agreed to",
            letters_count(letters.len() as u64)
        );
        return Err(ApiError::new(ErrorCode::Conflict, message).hint("look at it again with --dry-run").into());
    }
    Ok(Set { letters, fingerprint, subscriptions, left_out })
}

fn nothing(action: Action, left_out: u64, obstacle: Option<String>) -> ApiError {
    let action = action.as_str();
    match obstacle {
        None => ApiError::new(ErrorCode::NotFound, format!("there is no dead letter like that to {action}"))
            .hint("`meshctl dlq ls` lists what there is"),
        Some(obstacle) => {
            let message = format!("cannot {action} any of {}: {obstacle}", letters_count(left_out));
            let hint = "a replay is over when `meshctl replay show` says so; what is parked or discarded can be restored, and so \
                 can, by its id, what a cancelled replay has issued: should a copy of it still come through, it is \
                 processed twice";
            ApiError::new(ErrorCode::Conflict, message).hint(hint)
        }
    }
}

fn letters_count(count: u64) -> String {
    format!("{count} dead letter{}", if count == 1 { "" } else { "s" })
}

/// Brings every letter of the set into the state that the action leads to.
pub fn change(to: &Transaction, set: &Set, action: Action) -> Done<()> {
    to.prepare_cached("UPDATE letters SET state = ?2 WHERE number IN (SELECT value FROM json_each(?1))")?
        .execute(params![set.numbers(), action.to()])?;
    Ok(())
}

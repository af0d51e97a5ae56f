//! What is written of letters, and what can be done to them.

use meshctl_api::error::ErrorCode;
use meshctl_api::view::messages::{DeadLetter, DeadLetterQuery};
use meshctl_model::message::{Failure, header};
use rusqlite::Connection;

use super::super::replay::{Pace, Told, Wish};
use super::super::replays::{self, Order, Step};
use super::super::sets::{self, Action, Set};
use super::super::sql::Where;
use super::super::store::{Done, Store, Trouble, in_memory};
use super::super::take_in::{self, Letter, Taken};
use super::super::{Counts, letters};
use super::{arrived, at, died, message, place, write};

fn query(filter: &str) -> DeadLetterQuery {
    DeadLetterQuery { r#where: Some(filter.to_owned()), ..DeadLetterQuery::default() }
}

fn select(from: &Connection, query: &DeadLetterQuery, action: Action) -> Done<Set> {
    sets::select(from, query, &Where::of(query, at(0))?, action, None)
}

fn refused<T>(outcome: Done<T>) -> (ErrorCode, String) {
    match outcome {
        Ok(_) => panic!("it was not refused"),
        Err(Trouble::Refused(why)) => (why.code, why.message),
        Err(Trouble::Sql(why)) => panic!("{why}"),
    }
}

fn counts(from: &Connection) -> Counts {
    let counts = letters::counts(from).expect("counts");
    counts.get(&("order.placed".to_owned(), "billing".to_owned())).copied().unwrap_or_default()
}

/// Letters of `billing` that died once.
fn filled(number: u64) -> Connection {
    let mut connection = in_memory();
    let letter = |n| arrived(n, died(&place("billing"), message(&format!("m{n}")), Failure::Rejected, at(n as i64)));
    let batch: Vec<_> = (0..number).map(letter).collect();
    write(&mut connection, |to| take_in::deaths(to, &place("billing"), &batch));
    connection
}

fn all(from: &Connection) -> Vec<DeadLetter> {
    let states = query("state in (dead, parked, replaying, processed, discarded)");
    letters::list(from, &states, &Where::of(&states, at(0)).expect("a filter")).expect("lists")
}

fn replay(connection: &mut Connection, query: &DeadLetterQuery) -> String {
    write(connection, |to| {
        let set = select(to, query, Action::Replay)?;
        Ok(replays::create(to, &set, &Order::default(), at(0))?.replay_id)
    })
}

#[test]
fn a_letter_is_what_the_publisher_sent_and_what_the_subscriber_answered() {
    let connection = filled(2);
    let listed = all(&connection);
    assert_eq!(listed.iter().map(|letter| letter.message_id.as_str()).collect::<Vec<_>>(), ["m1", "m0"]);
    let shown = letters::show(&connection, &listed[0].id).expect("is there");
    let sent = message("m1");
    assert_eq!(shown.headers, Some(sent.headers));
    assert_eq!(shown.payload, None, "the payload is no text");
    assert_eq!(shown.payload_base64.as_deref(), Some("AJ+Slgoi"));
    assert_eq!((shown.key, shown.size_bytes), (sent.key, 6));
    assert_eq!((shown.reason.as_str(), shown.class.as_str(), shown.attempts), ("poison", "rejected", 1));
    assert_eq!(shown.history.map(|history| history[0].status), Some(Some(422)));
    assert_eq!(listed[0].fingerprint, listed[1].fingerprint, "they failed alike");
    assert_eq!(refused(letters::show(&connection, "no")).0, ErrorCode::NotFound);
}

#[test]
fn a_delivery_that_is_repeated_changes_nothing_and_one_of_a_channel_made_anew_is_no_repetition() {
    let mut connection = filled(3);
    let before = (all(&connection), counts(&connection));
    let again: Vec<_> = (1..3)
        .map(|n: u64| arrived(n, died(&place("billing"), message(&format!("m{n}")), Failure::Rejected, at(n as i64))))
        .collect();
    let taken = write(&mut connection, |to| take_in::deaths(to, &place("billing"), &again));
    assert_eq!(taken, Taken::default());
    assert_eq!((all(&connection), counts(&connection)), before);
    let other = [arrived(0, died(&place("billing"), message("new"), Failure::Timeout, at(9)))];
    let taken = write(&mut connection, |to| take_in::deaths(to, &place("billing"), &other));
    assert_eq!((taken.count, counts(&connection).taken_in), (1, 4));
}

#[test]
fn a_letter_that_says_nothing_of_its_death_is_kept_too() {
    let mut connection = in_memory();
    let mut bare = message("bare");
    bare.set_header(header::HISTORY, "no history");
    write(&mut connection, |to| take_in::deaths(to, &place("billing"), &[arrived(0, bare)]));
    let letter = &all(&connection)[0];
    assert_eq!((letter.state.as_str(), letter.reason.as_str(), letter.attempts), ("dead", "exhausted", 0));
}

#[test]
fn states_change_only_as_they_may_and_say_so_otherwise() {
    let mut connection = filled(3);
    let change = |connection: &mut Connection, filter: &str, action| {
        let transaction = connection.transaction().expect("begins");
        let set = select(&transaction, &query(filter), action)?;
        sets::change(&transaction, &set, action)?;
        transaction.commit()?;
        Ok(set)
    };
    assert_eq!(change(&mut connection, "messageId = m0", Action::Park).expect("parks").letters.len(), 1);
    assert_eq!(refused(change(&mut connection, "messageId = m0", Action::Park)).0, ErrorCode::Conflict);
    assert_eq!(refused(select(&connection, &query("messageId = m0"), Action::Replay)).0, ErrorCode::Conflict);
    assert_eq!(refused(select(&connection, &query("messageId = no"), Action::Replay)).0, ErrorCode::NotFound);
    let ids = DeadLetterQuery { ids: Some("no".into()), ..DeadLetterQuery::default() };
    assert_eq!(refused(select(&connection, &ids, Action::Replay)).0, ErrorCode::NotFound);
    let left = select(&connection, &DeadLetterQuery::default(), Action::Replay).expect("two are dead");
    assert_eq!((left.letters.len(), left.left_out), (2, 1));
    assert_eq!(change(&mut connection, "messageId = m1", Action::Discard).expect("discards").left_out, 0);
    assert_eq!((counts(&connection).dead, counts(&connection).parked, counts(&connection).discarded), (1, 1, 1));
    assert_eq!(
        change(&mut connection, "state in (parked, discarded)", Action::Restore).expect("restores").letters.len(),
        2
    );
    assert_eq!(counts(&connection).dead, 3);
}

#[test]
fn what_a_cancelled_replay_has_issued_can_be_restored_explicitly_and_a_late_receipt_still_counts() {
    let mut connection = filled(2);
    let id = replay(&mut connection, &query("messageId = m0"));
    let number: i64 = connection
        .query_row("SELECT number FROM letters WHERE message_id = 'm0'", [], |row| row.get(0))
        .expect("there");
    for told in [Told::Intend, Told::Confirmed] {
        write(&mut connection, |to| replays::tell(to, &id, number, told));
    }
    let by_state = query("state = replaying");
    let lost = DeadLetterQuery { ids: Some(take_in::id(&place("billing"), "m0")), ..DeadLetterQuery::default() };
    assert_eq!(refused(select(&connection, &lost, Action::Restore)).0, ErrorCode::Conflict, "the replay goes on");
    write(&mut connection, |to| replays::steer(to, &id, Wish::Cancel, at(1)));
    assert_eq!(refused(select(&connection, &by_state, Action::Restore)).0, ErrorCode::Conflict, "it is not named");
    write(&mut connection, |to| sets::change(to, &select(to, &lost, Action::Restore)?, Action::Restore));
    assert_eq!((counts(&connection).dead, counts(&connection).replaying), (2, 0));
    let mut late = message("m0");
    late.set_header(header::REPLAY, &id);
    write(&mut connection, |to| take_in::receipts(to, &place("billing"), &[arrived(0, late)]));
    assert_eq!((counts(&connection).dead, counts(&connection).processed), (1, 1));
}

#[test]
fn what_is_imported_does_not_speak_for_couriers() {
    let mut letter = letters::show(&filled(1), &all(&filled(1))[0].id).expect("is there");
    let mut headers = letter.headers.clone().expect("whole");
    let sent = headers.clone();
    headers.push((header::NOT_BEFORE.to_uppercase(), "2099-01-01T00:00:00Z".into()));
    headers.push((header::REPLAY.into(), "r-1".into()));
    letter.headers = Some(headers);
    let (place, imported) = Letter::exported(letter).expect("is a letter");
    let mut connection = in_memory();
    assert_eq!(write(&mut connection, |to| take_in::import(to, &[(place, imported)])), 1);
    let id = all(&connection)[0].id.clone();
    assert_eq!(letters::show(&connection, &id).expect("is there").headers, Some(sent));
}

#[test]
fn a_set_is_agreed_to_by_its_fingerprint() {
    let connection = filled(2);
    let everything = DeadLetterQuery::default();
    let wanted = Where::of(&everything, at(0)).expect("a filter");
    let set = select(&connection, &everything, Action::Replay).expect("two");
    let same = sets::select(&connection, &everything, &wanted, Action::Replay, Some(&set.fingerprint));
    assert_eq!(same.expect("the same"), set);
    let other = sets::select(&connection, &everything, &wanted, Action::Replay, Some("other"));
    assert_eq!(refused(other).0, ErrorCode::Conflict);
}

#[test]
fn a_letter_is_in_one_unfinished_replay_and_a_conflict_names_it() {
    let mut connection = filled(3);
    let first = replay(&mut connection, &query("messageId = m0"));
    let second = select(&connection, &DeadLetterQuery::default(), Action::Replay).expect("two are left");
    assert_eq!((second.letters.len(), second.left_out), (2, 1));
    let (code, message) = refused(select(&connection, &query("messageId = m0"), Action::Replay));
    assert_eq!(code, ErrorCode::Conflict);
    assert!(message.contains(&first), "{message}");
    assert_eq!(refused(select(&connection, &query("messageId = m0"), Action::Discard)).0, ErrorCode::Conflict);
    write(&mut connection, |to| replays::steer(to, &first, Wish::Cancel, at(1)));
    assert_eq!(select(&connection, &DeadLetterQuery::default(), Action::Replay).expect("all").letters.len(), 3);
}

#[test]
fn a_replayed_letter_keeps_its_history_and_goes_out_as_it_came() {
    let mut connection = filled(1);
    let id = replay(&mut connection, &DeadLetterQuery::default());
    let step = |connection: &mut Connection, told: &[(i64, Told)]| {
        write(connection, |to| replays::step(to, &id, told, &mut Pace::new(None, at(0)), at(0)))
    };
    let Step::Publish(ready) = step(&mut connection, &[]) else { panic!("it is to be published") };
    let out = &ready[0].publish.message;
    assert_eq!((out.id.as_str(), &out.key, &out.payload), ("m0", &message("m0").key, &message("m0").payload));
    assert_eq!(out.header(header::REPLAY), Some(id.as_str()));
    assert_eq!(out.history().len(), 1);
    assert_eq!(out.death(), None);
    let mut original = out.clone();
    original.remove_header(header::REPLAY);
    original.remove_header(header::HISTORY);
    assert_eq!(original, message("m0"));

    assert!(matches!(step(&mut connection, &[(ready[0].letter, Told::Confirmed)]), Step::Nothing));
    assert_eq!(all(&connection)[0].state, "replaying");
    let again = [arrived(7, died(&place("billing"), out.clone(), Failure::Timeout, at(50)))];
    let taken = write(&mut connection, |to| take_in::deaths(to, &place("billing"), &again));
    assert_eq!(taken.finished, [id]);
    let letter = letters::show(&connection, &all(&connection)[0].id).expect("is there");
    assert_eq!((letter.state.as_str(), letter.class.as_str(), letter.attempts), ("dead", "timeout", 2));
    assert_eq!(letter.history.map(|history| history.len()), Some(2));
    assert_eq!(counts(&connection), Counts { taken_in: 2, dead: 1, issued: 1, ..Counts::default() });
}

#[test]
fn groups_name_the_largest_first_with_the_latest_as_example() {
    let mut connection = filled(3);
    let other = [arrived(3, died(&place("billing"), message("other"), Failure::Timeout, at(99)))];
    write(&mut connection, |to| take_in::deaths(to, &place("billing"), &other));
    let everything = Where::of(&DeadLetterQuery::default(), at(0)).expect("a filter");
    let groups = letters::group(&connection, "class", &everything).expect("groups");
    let named: Vec<_> = groups.iter().map(|group| (group.name.as_str(), group.count)).collect();
    assert_eq!(named, [("rejected", 3), ("timeout", 1)]);
    assert_eq!((groups[0].first_failed_at, groups[0].last_failed_at), (at(0), at(2)));
    let example = letters::show(&connection, &groups[0].example_id).expect("is there");
    assert_eq!(example.message_id, "m2");
    assert_eq!(refused(letters::group(&connection, "error", &everything)).0, ErrorCode::Invalid);
}

#[test]
fn what_is_exported_is_the_same_letter_elsewhere_and_is_counted_apart() {
    let connection = filled(2);
    let exported: Vec<_> =
        all(&connection).iter().map(|letter| letters::show(&connection, &letter.id).expect("is there")).collect();
    let read =
        || exported.iter().cloned().map(|letter| Letter::exported(letter).expect("is whole")).collect::<Vec<_>>();
    let mut elsewhere = in_memory();
    assert_eq!(write(&mut elsewhere, |to| take_in::import(to, &read())), 2);
    assert_eq!(write(&mut elsewhere, |to| take_in::import(to, &read())), 0, "they are there");
    for letter in exported {
        assert_eq!(letters::show(&elsewhere, &letter.id).expect("is there"), letter);
    }
    assert_eq!(counts(&elsewhere), Counts { imported: 2, dead: 2, ..Counts::default() });
    let half = DeadLetter { payload_base64: None, ..all(&elsewhere)[0].clone() };
    assert_eq!(Letter::exported(half).err().map(|why| why.code), Some(ErrorCode::Invalid));
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_the_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deadletters.db");
    std::fs::write(&path, b"this is no database, whatever its name says, and it is long enough").expect("written");
    let (store, aside) = Store::open(&path).expect("opens");
    let aside = aside.expect("the file was damaged");
    assert!(std::fs::read(&aside).expect("is there").starts_with(b"this is no database"));
    assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    let batch = [arrived(0, died(&place("billing"), message("m0"), Failure::Rejected, at(0)))];
    store.write("take in", move |to| take_in::deaths(to, &place("billing"), &batch)).await.expect("writes");
    drop(store);
    let (store, aside) = Store::open(&path).expect("opens again");
    assert_eq!(aside, None);
    let kept = store.read("list", |from| Ok(all(from).len())).await.expect("reads");
    assert_eq!(kept, 1);
}

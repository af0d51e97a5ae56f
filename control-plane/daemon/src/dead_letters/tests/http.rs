//! The daemon's calls about dead letters, through its real server and the typed client.

use std::sync::Arc;

use meshctl_api::client::Client;
use meshctl_api::error::ErrorCode;
use meshctl_api::place::SOCKET;
use meshctl_api::view::Version;
use meshctl_api::view::messages::{DeadLetterQuery, DeadLetterRequest, PauseRequest};
use meshctl_drivers::runtime::process::ProcessRuntime;
use meshctl_model::message::Failure;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::super::DeadLetters;
use super::super::store::Store;
use super::super::take_in;
use super::broker::{Handle, Memory};
use super::{arrived, at, died, message, place};
use crate::audit::Audit;
use crate::messaging::Messaging;
use crate::server::{self, Shared};

/// A server with these letters, without the loop that owns the rest.
pub async fn served(folder: &std::path::Path, letters: u64) -> Client {
    let (store, _) = Store::open(&folder.join("deadletters.db")).expect("opens");
    let batch: Vec<_> = (0..letters)
        .map(|n| arrived(n, died(&place("billing"), message(&format!("m{n}")), Failure::Rejected, at(n as i64))))
        .collect();
    store.write("fill", move |to| take_in::deaths(to, &place("billing"), &batch)).await.expect("writes");
    let (messages, mut told) = mpsc::channel(64);
    tokio::spawn(async move { while told.recv().await.is_some() {} });
    let dead_letters = DeadLetters::new(store.clone(), messages.clone());
    let broker = Arc::new(Handle(Arc::new(Memory::default())));
    let executable = std::env::current_exe().expect("a name");
    let (traces, _) = crate::traces::Traces::open(&folder.join("traces.db"), messages.clone()).expect("opens");
    let shared = Shared {
        messages,
        traces,
        hub: crate::hub::Hub::default(),
        runtime: Arc::new(ProcessRuntime::new(folder, executable).expect("a folder")),
        version: Arc::new(Version {
            version: "0".into(),
            pid: 0,
            executable: String::new(),
            build: String::new(),
            started_at: at(0),
            state_dir: String::new(),
        }),
        messaging: Messaging { broker, letters: dead_letters.clone(), couriers: Default::default() },
        audit: Audit::new(store),
        dead_letters,
        samples: Default::default(),
    };
    let listener = UnixListener::bind(folder.join(SOCKET)).expect("listens");
    tokio::spawn(server::serve(listener, shared));
    Client::at(folder).expect("a client")
}

fn filter(text: &str) -> DeadLetterQuery {
    DeadLetterQuery { r#where: Some(text.into()), ..DeadLetterQuery::default() }
}

fn request(text: &str) -> DeadLetterRequest {
    DeadLetterRequest { select: filter(text), reason: Some("INC-7".into()), ..DeadLetterRequest::default() }
}

#[tokio::test]
async fn letters_are_listed_grouped_shown_and_dealt_with_and_all_of_it_is_audited() {
    let folder = tempfile::tempdir().expect("a folder");
    let client = served(folder.path(), 5).await;
    let listed = client.dead_letters(&filter("error ~ 'NO order' and not messageId = m0")).await.expect("lists").items;
    let named: Vec<_> = listed.iter().map(|letter| letter.message_id.as_str()).collect();
    assert_eq!(named, ["m4", "m3", "m2", "m1"]);
    let limited = DeadLetterQuery { limit: Some(1), ..DeadLetterQuery::default() };
    assert_eq!(client.dead_letters(&limited).await.expect("lists").items, listed[..1]);
    let by = DeadLetterQuery { group_by: Some("fingerprint".into()), ..DeadLetterQuery::default() };
    let groups = client.dead_letter_groups(&by).await.expect("groups").items;
    assert_eq!(groups.iter().map(|group| group.count).collect::<Vec<_>>(), [5]);
    let shown = client.dead_letter(&listed[0].id).await.expect("is there");
    assert_eq!(shown.payload_base64.as_deref(), Some("AJ+Slgoi"));
    assert_eq!(client.dead_letter("no/such").await.expect_err("is not there").code, ErrorCode::NotFound);
    assert_eq!(client.dead_letters(&filter("age >")).await.expect_err("is no filter").code, ErrorCode::Invalid);

    let dry = DeadLetterRequest { dry_run: true, ..request("messageId in (m0, m1)") };
    let agreed = client.change_dead_letters("discard", &dry).await.expect("would discard");
    assert_eq!((agreed.selected, agreed.changed, agreed.dry_run), (2, 0, true));
    let stale = DeadLetterRequest { fingerprint: Some(agreed.fingerprint.clone()), ..request("messageId = m0") };
    let refused = client.change_dead_letters("discard", &stale).await.expect_err("it is another set");
    assert_eq!(refused.code, ErrorCode::Conflict);
    let same = DeadLetterRequest { fingerprint: Some(agreed.fingerprint), ..request("messageId in (m0, m1)") };
    assert_eq!(client.change_dead_letters("discard", &same).await.expect("discards").changed, 2);
    assert_eq!(client.change_dead_letters("park", &request("messageId = m2")).await.expect("parks").changed, 1);
    let restored = client.change_dead_letters("restore", &request("state = discarded")).await.expect("restores");
    assert_eq!(restored.changed, 2);

    let audit = client.audit(None).await.expect("is whole").items;
    let told: Vec<_> = audit.iter().map(|entry| (entry.action.as_str(), entry.outcome == "done")).collect();
    let expected = [
        ("deadletter.discard", false),
        ("deadletter.discard", true),
        ("deadletter.park", true),
        ("deadletter.restore", true),
    ];
    assert_eq!(told, expected);
    assert!(audit.iter().all(|entry| entry.reason.as_deref() == Some("INC-7") && !entry.by.is_empty()));
}

#[tokio::test]
async fn replays_are_made_shown_and_steered() {
    let folder = tempfile::tempdir().expect("a folder");
    let client = served(folder.path(), 3).await;
    let dry = DeadLetterRequest { dry_run: true, ..DeadLetterRequest::default() };
    let set = client.start_replay(&dry).await.expect("would replay");
    assert_eq!((set.state.as_str(), set.selected, set.replay_id.as_str()), ("dryRun", 3, ""));
    assert_eq!(set.subscriptions, [("order.placed/billing".to_owned(), 3)].into());
    let nonsense = DeadLetterRequest { rate_per_s: Some(0.0), ..DeadLetterRequest::default() };
    assert_eq!(client.start_replay(&nonsense).await.expect_err("is no rate").code, ErrorCode::Invalid);
    let agreed = DeadLetterRequest { fingerprint: Some(set.fingerprint), ..request("reason = poison") };
    let replay = client.start_replay(&agreed).await.expect("replays");
    let again = client.start_replay(&request("reason = poison")).await.expect_err("they are taken");
    assert_eq!(again.code, ErrorCode::Conflict);
    assert!(again.message.contains(&replay.replay_id), "{}", again.message);
    let why = PauseRequest { reason: Some("wait".into()), ..PauseRequest::default() };
    let paused = client.change_replay(&replay.replay_id, "pause", &why).await.expect("pauses");
    assert_eq!(paused.state, "paused");
    let cancelled = client.change_replay(&replay.replay_id, "cancel", &why).await.expect("cancels");
    assert_eq!((cancelled.state.as_str(), cancelled.pending), ("cancelled", 0));
    assert_eq!(client.replays().await.expect("lists").items, std::slice::from_ref(&cancelled));
    assert_eq!(client.replay(&replay.replay_id).await.expect("is there"), cancelled);
    assert_eq!(client.replay("no").await.expect_err("is not there").code, ErrorCode::NotFound);
}

#[tokio::test]
async fn an_export_is_imported_elsewhere_as_it_was() {
    let (here, there) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (client, other) = (served(here.path(), 100).await, served(there.path(), 0).await);
    let mut export = client.export(&DeadLetterQuery::default()).await.expect("exports");
    let mut text = String::new();
    while let Some(line) = export.next().await.expect("goes on") {
        text.push_str(&line);
        text.push('\n');
    }
    assert_eq!(text.lines().count(), 100);
    let import = async |text: &str| {
        // In pieces that end anywhere.
        let pieces: Vec<_> = text.as_bytes().chunks(777).map(bytes::Bytes::copy_from_slice).collect();
        let pieces = pieces.into_iter().map(Ok::<_, std::convert::Infallible>);
        let patience = std::time::Duration::from_secs(60);
        other.import(futures_util::stream::iter(pieces), Some("INC-8"), false, patience).await
    };
    let imported = import(&text).await.expect("imports");
    assert_eq!((imported.selected, imported.changed), (100, 100));
    let again = import(&text).await.expect("imports again");
    assert_eq!((again.selected, again.changed), (100, 0));
    for letter in client.dead_letters(&DeadLetterQuery::default()).await.expect("lists").items {
        let (one, copy) = (client.dead_letter(&letter.id).await, other.dead_letter(&letter.id).await);
        assert_eq!(one, copy);
    }
    let broken = text.replacen("{\"id\"", "{\"id", 1);
    let refused = import(&broken).await.expect_err("it is broken");
    assert_eq!(refused.code, ErrorCode::Invalid);
    assert!(refused.message.contains("line 1"), "{}", refused.message);
    let audit = other.audit(None).await.expect("is whole").items;
    // Each of four pages with what it added, the whole, the second time, and the third.
    let done: Vec<_> = audit.iter().map(|entry| entry.outcome == "done").collect();
    assert_eq!(done, [true, true, true, true, true, true, false]);
}

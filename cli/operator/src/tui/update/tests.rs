use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_model::event::Event;
use serde_json::{Value, json};

use super::*;
use crate::tui::model::Loaded;
use crate::tui::model::deeds::{Answer, JobState, Order};
use crate::tui::view::tests::{answer, breaker, read, replay, service, shown, status, system, vitals};

/// Presses keys, and returns all that is to be done about them.
pub(crate) fn keys(model: &mut Model, codes: &[KeyCode]) -> Vec<Effect> {
    let press = |code: &KeyCode| update(model, Msg::Key(KeyEvent::new(*code, KeyModifiers::NONE)));
    codes.iter().flat_map(press).collect()
}

/// Types `text`; a line end is Enter.
pub(crate) fn typed(model: &mut Model, text: &str) -> Vec<Effect> {
    let codes: Vec<KeyCode> = text.chars().map(|c| if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) }).collect();
    keys(model, &codes)
}

fn ctrl(model: &mut Model, c: char) -> Vec<Effect> {
    update(model, Msg::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)))
}

fn later(model: &mut Model, seconds: i64) -> Vec<Effect> {
    let now = model.now + jiff::SignedDuration::from_secs(seconds);
    update(model, Msg::Tick(now))
}

fn titles(model: &Model) -> Vec<String> {
    model.screens.iter().map(|screen| screen.view.title()).collect()
}

fn seen() -> Model {
    system((80, 24))
}

#[test]
fn enter_goes_in_and_esc_comes_back() {
    let mut model = seen();
    typed(&mut model, ":svc\n");
    keys(&mut model, &[KeyCode::Down]);
    typed(&mut model, "\n");
    assert_eq!(titles(&model), ["overview", "services", "instances of inventory"]);
    keys(&mut model, &[KeyCode::Esc]);
    model.settle();
    assert_eq!((titles(&model).len(), model.front().current()), (2, Some("inventory")), "where one was");
    keys(&mut model, &[KeyCode::Esc, KeyCode::Esc, KeyCode::Esc]);
    assert_eq!(titles(&model), ["overview"], "there is nothing before the first");
    typed(&mut model, ":ch\n");
    typed(&mut model, ":cb\n");
    assert_eq!(titles(&model), ["overview", "breakers"], "a view that is named is a beginning");
}

#[test]
fn the_overview_leads_to_what_is_wrong() {
    let mut model = seen();
    model.settle();
    assert_eq!(model.front().current(), Some("service/billing"));
    typed(&mut model, "\n");
    assert_eq!(titles(&model).last().map(String::as_str), Some("instances of billing"));
}

#[test]
fn a_filter_acts_while_it_is_typed_and_the_cursor_stays_on_its_row() {
    let mut model = seen();
    typed(&mut model, ":svc\n");
    typed(&mut model, "G/in");
    model.settle();
    let rows = |model: &Model| model.front().grid.rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    assert_eq!(rows(&model), ["billing", "inventory", "shipping"], "billing is failing, shipping rolling");
    assert_eq!(model.front().current(), Some("shipping"));
    typed(&mut model, "v\n");
    model.settle();
    assert_eq!((rows(&model), model.prompt.is_some()), (vec!["inventory".to_owned()], false));
    keys(&mut model, &[KeyCode::Esc]);
    model.settle();
    assert_eq!((rows(&model).len(), titles(&model).len()), (4, 2), "Esc takes the filter first");
    typed(&mut model, "/!in\n");
    model.settle();
    assert_eq!(rows(&model), ["orders"]);
    let told = read(json!({ "kind": "service", "body": service("a-new-one", 1, 1, "ready", None) }));
    update(&mut model, Msg::Told(Box::new(told)));
    model.settle();
    assert_eq!(
        (rows(&model), model.front().current()),
        (vec!["a-new-one".to_owned(), "orders".to_owned()], Some("orders"))
    );
}

#[test]
fn columns_sort_in_turn() {
    let mut model = seen();
    typed(&mut model, ":svc\n");
    typed(&mut model, "ssss");
    model.settle();
    assert_eq!(model.front().grid.rows[0].id, "orders", "the busiest");
    typed(&mut model, "i");
    model.settle();
    assert_eq!(model.front().grid.rows.last().map(|row| row.id.as_str()), Some("orders"));
}

#[test]
fn what_is_in_front_is_asked_for_once_a_second_and_not_while_an_answer_is_due() {
    let mut model = seen();
    let effects = typed(&mut model, ":rt\n");
    assert!(matches!(effects[..], [Effect::Load { view: View::Routes, .. }]), "{effects:?}");
    answer(&mut model, effects);
    assert_eq!(typed(&mut model, "jk"), [], "not twice within a second");
    let effects = later(&mut model, 1);
    assert_eq!(later(&mut model, 1), [], "no answer yet");
    let [Effect::Load { screen, .. }] = effects[..] else { panic!("{effects:?}") };
    let error = ApiError::new(ErrorCode::Internal, "out of order");
    let effects = update(&mut model, Msg::Loaded { screen, result: Err(error) });
    assert!(matches!(effects[..], [Effect::Load { .. }]), "a second has passed: {effects:?}");
    assert!(shown(&mut model).contains("not up to date: out of order"), "{}", shown(&mut model));
    update(&mut model, Msg::Gone);
    assert_eq!(later(&mut model, 1), [], "nobody is there to ask");
    keys(&mut model, &[KeyCode::Esc]);
    assert_eq!(later(&mut model, 1), [], "the overview is told everything");
}

#[test]
fn a_daemon_that_is_gone_leaves_what_was_known_and_comes_back() {
    let mut model = seen();
    assert_eq!(model.staleness(), None);
    update(&mut model, Msg::Gone);
    later(&mut model, 12);
    update(&mut model, Msg::Gone);
    assert_eq!(model.staleness().as_deref(), Some("stale since 12 s: the daemon is gone"));
    assert_eq!(model.status.as_ref().map(|status| status.items.len()), Some(4), "what was known stays");
    let told = json!({ "kind": "snapshot", "body": status(vec![service("orders", 3, 3, "ready", None)]) });
    update(&mut model, Msg::Told(Box::new(read(told))));
    assert_eq!(model.staleness().as_deref(), Some("signals stale since 12 s"), "those have not come yet");
    update(&mut model, Msg::Vitals(Box::new(read(vitals(1.0, Vec::new())))));
    assert_eq!(model.staleness(), None);
}

fn change(breaker: Value) -> Answer {
    Answer::Force(Box::new(read(json!({
        "apiVersion": "meshctl/v1", "kind": "BreakerChange", "action": "trip", "routes": [], "channels": [],
        "callersGet": "503", "breaker": breaker, "dryRun": true
    }))))
}

#[test]
fn a_trip_needs_its_radius_and_a_reason_and_is_done_when_every_gateway_says_so() {
    let mut model = seen();
    typed(&mut model, ":cb\n");
    let effects = typed(&mut model, "t");
    let [Effect::DryRun { dry_run, order: Order::Force { ref edge, ref request, .. } }] = effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((edge.as_str(), request.dry_run, request.ttl_ms), ("gateway:orders", true, Some(600_000)));
    let complaint =
        |model: &Model| model.dialog.as_ref().and_then(|dialog| dialog.complaint.clone()).unwrap_or_default();
    assert_eq!(typed(&mut model, "\n"), []);
    assert!(complaint(&model).contains("not known yet"), "{}", complaint(&model));
    update(&mut model, Msg::WouldBe { dry_run: dry_run - 1, result: Ok(change(breaker("x:y", "closed", 2))) });
    assert!(model.dialog.as_ref().is_some_and(|dialog| dialog.radius.is_none()), "an answer to something else");
    update(&mut model, Msg::WouldBe { dry_run, result: Ok(change(breaker("gateway:orders", "closed", 2))) });
    assert_eq!(typed(&mut model, "\n"), []);
    assert!(complaint(&model).contains("a reason confirms it"), "{}", complaint(&model));
    let effects = typed(&mut model, "quiet\n");
    let [Effect::Do { job, order: Order::Force { ref request, .. } }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((request.reason.as_deref(), request.dry_run), (Some("quiet"), false));
    assert!(!shown(&mut model).contains("done"), "nothing is known yet");
    update(&mut model, Msg::Did { job, result: Ok(change(breaker("gateway:orders", "forcedOpen", 1))) });
    assert!(shown(&mut model).contains("acknowledged 1/2"), "{}", shown(&mut model));
    keys(&mut model, &[KeyCode::Esc]);
    let all = vec![breaker("gateway:orders", "forcedOpen", 2)];
    update(&mut model, Msg::Vitals(Box::new(read(vitals(1.0, all)))));
    let (good, text) = model.notice.clone().expect("nobody looked: it is told");
    assert!(
        good && text.contains("acknowledged 2/2") && text.contains("meshctl breaker reset gateway:orders"),
        "{text}"
    );
}

#[test]
fn a_replay_is_of_the_set_that_was_agreed_to_and_followed_to_its_end() {
    let mut model = seen();
    let effects = typed(&mut model, ":dl\n");
    answer(&mut model, effects);
    let effects = typed(&mut model, "  r");
    let [Effect::DryRun { dry_run, order: Order::Replay(ref request) }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!(request.select.ids.as_deref(), Some("4f1c09ab77d2e310,b07e55c2aa9013d8"), "both that are marked");
    update(&mut model, Msg::WouldBe { dry_run, result: Ok(Answer::Replay(read(replay(0, 0, "dryRun")))) });
    let effects = typed(&mut model, "1.4 is out\n");
    let [Effect::Do { job, order: Order::Replay(ref request) }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((request.fingerprint.as_deref(), request.dry_run), (Some("beef"), false));
    update(&mut model, Msg::Did { job, result: Ok(Answer::Replay(read(replay(0, 0, "running")))) });
    let effects = later(&mut model, 1);
    assert!(matches!(effects[..], [Effect::LookAtReplay { .. }, Effect::Load { .. }]), "{effects:?}");
    let unreachable = ApiError::new(ErrorCode::Unreachable, "gone");
    update(&mut model, Msg::ReplayIs { job, result: Err(unreachable) });
    assert!(matches!(model.jobs[0].state, JobState::Replaying(_)), "it outlives a daemon");
    update(&mut model, Msg::ReplayIs { job, result: Ok(read(replay(2, 1, "done"))) });
    let JobState::Over { good, text } = &model.jobs[0].state else { panic!("{:?}", model.jobs) };
    assert!(!good && text.contains("processed 2 of 3, failed again 1"), "{text}");
}

#[test]
fn a_scale_is_done_when_an_event_says_so_even_one_told_before_the_answer() {
    let accepted = || {
        Answer::Accepted(Box::new(read(json!({
            "revision": 8, "lastEventId": "41", "plan": {
                "apiVersion": "meshctl/v1", "kind": "Plan", "fingerprint": "f", "changes": 1, "baseRevision": 7,
                "steps": [{ "action": "scale", "kind": "service", "name": "orders", "why": "replicas: 3 -> 1",
                            "consequence": "2 instances are drained; no request fails" }]
            }
        }))))
    };
    let event = |revision: u64, kind: &str| -> Event {
        read(json!({
            "id": "42", "type": kind, "subject": "revision/8", "message": "it is", "severity": "info",
            "data": { "revision": revision }, "createdAt": "2026-11-23T10:30:00Z"
        }))
    };
    for (kind, revision, is_early, is_good) in [
        ("revision.applied", 8, false, true),
        ("revision.failed", 8, true, false),
        ("revision.applied", 9, true, false),
    ] {
        let mut model = seen();
        typed(&mut model, ":svc\n");
        let effects = typed(&mut model, "jjS");
        assert!(matches!(effects[..], [Effect::DryRun { .. }]), "{effects:?}");
        let effects = keys(&mut model, &[KeyCode::Backspace]);
        assert_eq!(effects, [], "no number, no question");
        let effects = typed(&mut model, "1");
        let [Effect::DryRun { dry_run, order: Order::Scale(ref request) }] = effects[..] else { panic!("{effects:?}") };
        assert_eq!(request.replicas.get("orders"), Some(&1));
        update(&mut model, Msg::WouldBe { dry_run, result: Ok(accepted()) });
        keys(&mut model, &[KeyCode::Tab]);
        let effects = typed(&mut model, "night\n");
        let [Effect::Do { job, .. }] = effects[..] else { panic!("{effects:?}") };
        let tell = |model: &mut Model| update(model, Msg::Told(Box::new(Told::Event(event(revision, kind)))));
        if is_early {
            tell(&mut model);
            update(&mut model, Msg::Did { job, result: Ok(accepted()) });
        } else {
            update(&mut model, Msg::Did { job, result: Ok(accepted()) });
            assert!(matches!(model.jobs[0].state, JobState::Rolling { revision: 8, .. }), "{:?}", model.jobs);
            tell(&mut model);
        }
        let JobState::Over { good, text } = &model.jobs[0].state else { panic!("{:?}", model.jobs) };
        assert_eq!(*good, is_good, "{text}");
    }
}

#[test]
fn what_is_refused_is_not_done_and_says_why() {
    let mut model = seen();
    typed(&mut model, ":svc\n");
    let effects = ctrl(&mut model, 'r');
    let [Effect::DryRun { dry_run, .. }] = effects[..] else { panic!("{effects:?}") };
    let error = ApiError::new(ErrorCode::Conflict, "an apply is under way").hint("wait for it");
    update(&mut model, Msg::WouldBe { dry_run, result: Err(error) });
    assert_eq!(typed(&mut model, "now\n"), []);
    assert!(shown(&mut model).contains("it would be refused: an apply is under way; wait for it"));
}

#[test]
fn a_log_is_followed_while_it_is_in_front_and_resumed_after_its_last_line() {
    let mut model = seen();
    let effects = typed(&mut model, ":logs orders\n");
    assert!(
        matches!(&effects[..], [Effect::FollowLog { service: Some(service), since: None, .. }] if service == "orders"),
        "{effects:?}"
    );
    let screen = model.front().number;
    answer(&mut model, effects);
    update(&mut model, Msg::LogEnded { screen, why: None });
    let effects = later(&mut model, 1);
    assert!(matches!(effects[..], [Effect::FollowLog { since: Some(_), .. }]), "{effects:?}");
    let Some(Loaded::Logs(lines)) = &model.front().loaded else { panic!("no lines") };
    let last = lines.back().cloned().expect("a line");
    update(&mut model, Msg::Written { screen, lines: vec![last] });
    assert_eq!(model.front().length(), 2, "a line that is known is not repeated");
    assert_eq!(keys(&mut model, &[KeyCode::Esc]), [Effect::LeaveLog]);
}

#[test]
fn letters_are_typed_where_text_is_and_ctrl_c_always_leaves() {
    let mut model = seen();
    typed(&mut model, ":cb\n");
    typed(&mut model, "tq?/");
    assert_eq!(model.dialog.as_ref().map(|dialog| dialog.reason()), Some("q?/"));
    update(&mut model, Msg::Paste("two\nlines".into()));
    assert_eq!(model.dialog.as_ref().map(|dialog| dialog.reason()), Some("q?/two lines"));
    let alt = KeyEvent::new(KeyCode::Char(':'), KeyModifiers::ALT);
    update(&mut model, Msg::Key(alt));
    assert!(model.dialog.is_none() && model.prompt.is_some(), "Esc and a key after it are two keys");
    assert_eq!(ctrl(&mut model, 'c'), [Effect::Quit]);
    keys(&mut model, &[KeyCode::Esc]);
    assert_eq!(typed(&mut model, "q"), [Effect::Quit]);
    assert_eq!(ctrl(&mut model, 'z'), [Effect::Suspend]);
}

#[test]
fn past_events_come_before_those_told_meanwhile() {
    let mut model = Model::new(jiff::Timestamp::UNIX_EPOCH, (80, 24));
    let event = |id: u32| -> Event {
        read(json!({
            "id": id.to_string(), "type": "instance.ready", "subject": "instance/a", "message": "", "data": {},
            "severity": "info", "createdAt": "2026-11-23T10:30:00Z"
        }))
    };
    update(&mut model, Msg::Told(Box::new(Told::Event(event(9)))));
    update(&mut model, Msg::Past(vec![event(8), event(9)]));
    update(&mut model, Msg::Told(Box::new(Told::Event(event(10)))));
    let ids: Vec<&str> = model.events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["8", "9", "10"]);
    typed(&mut model, ":ev\n");
    let tell = |model: &mut Model, id| {
        update(model, Msg::Told(Box::new(Told::Event(event(id)))));
        model.settle();
        model.front().current().map(str::to_owned)
    };
    assert_eq!(tell(&mut model, 11).as_deref(), Some("11"), "the newest stays under the cursor");
    typed(&mut model, "j");
    assert_eq!(tell(&mut model, 12).as_deref(), Some("10"), "an event that somebody looks at stays, too");
}

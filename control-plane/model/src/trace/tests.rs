use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOON: &str = "2026-11-23T12:00:00Z";
const MESSAGE: &str = "0192f3a1";

/// A span of trace `t` that begins `start` ms after noon.
fn span(id: &str, parent: &str, service: &str, kind: SpanKind, start: f64, duration_ms: f64) -> Span {
    let noon: Timestamp = NOON.parse().expect("a time");
    Span {
        trace_id: "t".into(),
        span_id: id.into(),
        parent_span_id: Some(parent.to_owned()).filter(|parent| !parent.is_empty()),
        links: Vec::new(),
        service: service.into(),
        operation: id.into(),
        kind,
        start_at: noon + jiff::SignedDuration::from_nanos((start * 1e6) as i64),
        duration_ms,
        status: SpanStatus::Unset,
        message: None,
        attributes: BTreeMap::new(),
    }
}

fn with(mut span: Span, attributes: &[(&str, &str)]) -> Span {
    span.attributes.extend(attributes.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    span
}

fn publish(id: &str, parent: &str, start: f64) -> Span {
    let span = span(id, parent, COURIER, SpanKind::Producer, start, 2.0);
    with(span, &[(attribute::CHANNEL, "order.placed"), (attribute::MESSAGE_ID, MESSAGE)])
}

fn about(span: Span, subscription: &str) -> Span {
    let message = (attribute::MESSAGE_ID, MESSAGE);
    with(span, &[(attribute::CHANNEL, "order.placed"), (attribute::SUBSCRIPTION, subscription), message])
}

fn deliver(id: &str, subscription: &str, start: f64, outcome: &str) -> Span {
    let span = about(span(id, "pub", COURIER, SpanKind::Consumer, start, 10.0), subscription);
    with(span, &[(attribute::OUTCOME, outcome)])
}

/// Request, publication, and whatever follows.
fn asynchronous(rest: Vec<Span>) -> Vec<Span> {
    let mut spans = vec![span("root", "", "gateway", SpanKind::Server, 0.0, 20.0), publish("pub", "root", 5.0)];
    spans.extend(rest);
    spans
}

fn subscriptions(names: &[&str]) -> Subscriptions {
    [("order.placed".to_owned(), names.iter().map(ToString::to_string).collect())].into()
}

/// `depth name start+duration *` of every node.
fn drawn(tree: &Tree) -> Vec<String> {
    let line = |node: &Node| {
        let name = match &node.what {
            What::Span(span) => span.operation.clone(),
            What::Unknown { span_id, .. } => format!("unknown {span_id}"),
            What::Wait(wait) => {
                let cause = match wait.cause {
                    WaitCause::Delivery => "delivery",
                    WaitCause::Retry { .. } => "retry",
                    WaitCause::Replay => "replay",
                };
                format!("wait for {cause} at {}{}", wait.at, if wait.open { " (open)" } else { "" })
            }
        };
        let critical = if node.critical_ms.is_some() { " *" } else { "" };
        format!("{} {name} {}+{}{critical}", node.depth, node.start_ms, node.duration_ms)
    };
    tree.nodes.iter().map(line).collect()
}

fn gaps(tree: &Tree) -> Vec<String> {
    tree.gaps.iter().map(ToString::to_string).collect()
}

#[test]
fn a_chain_of_requests_is_a_tree_with_its_critical_path() {
    let spans = vec![
        span("inventory", "orders", "inventory", SpanKind::Server, 22.0, 30.0),
        span("orders", "root", "orders", SpanKind::Server, 5.0, 80.0),
        span("root", "", "gateway", SpanKind::Server, 0.0, 100.0),
        span("audit", "orders", "audit", SpanKind::Server, 20.0, 5.0),
        span("mail", "orders", "mail", SpanKind::Server, 60.0, 20.0),
    ];
    let tree = assemble(spans, &Subscriptions::new());
    assert_eq!(
        drawn(&tree),
        ["0 root 0+100 *", "1 orders 5+80 *", "2 audit 20+5", "2 inventory 22+30 *", "2 mail 60+20 *"]
    );
    assert!(tree.is_complete());
    assert_eq!((tree.duration_ms, tree.latency_ms()), (100.0, Some(100.0)));
    let own: Vec<f64> = tree.nodes.iter().map(|node| node.self_ms).collect();
    assert_eq!(own, [20.0, 80.0 - 32.0 - 20.0, 5.0, 30.0, 20.0]);
    let path: Vec<f64> = tree.nodes.iter().filter_map(|node| node.critical_ms).collect();
    assert_eq!(path, [20.0, 30.0, 30.0, 20.0], "all of the hundred");
}

#[test]
fn a_message_is_followed_through_its_attempts_and_the_pauses_between_them() {
    let tree = assemble(
        asynchronous(vec![
            deliver("mail1", "mail", 8.5, "processed"),
            deliver("bill1", "billing", 7.5, "retried"),
            deliver("bill2", "billing", 117.5, "processed"),
        ]),
        &subscriptions(&["billing", "mail"]),
    );
    assert_eq!(
        drawn(&tree),
        [
            "0 root 0+20 *",
            "1 pub 5+2 *",
            "2 bill1 7.5+10 *",
            "2 wait for retry at order.placed/billing 17.5+100 *",
            "2 bill2 117.5+10 *",
            "2 wait for delivery at order.placed/mail 7+1.5",
            "2 mail1 8.5+10",
        ]
    );
    assert!(tree.is_complete(), "{:?}", tree.gaps);
    assert_eq!((tree.duration_ms, tree.latency_ms()), (127.5, Some(20.0)));
}

#[test]
fn what_is_under_way_is_said() {
    let retried = with(deliver("bill1", "billing", 7.5, "retried"), &[(attribute::NOT_BEFORE, "2026-11-23T12:00:09Z")]);
    let tree = assemble(asynchronous(vec![retried]), &subscriptions(&["billing", "mail"]));
    assert_eq!(
        gaps(&tree),
        [
            "order.placed/mail has not taken message 0192f3a1 yet",
            "order.placed/billing is retried at 2026-11-23T12:00:09Z (message 0192f3a1)",
        ]
    );
    assert_eq!(
        drawn(&tree)[2..],
        [
            "2 bill1 7.5+10 *",
            "2 wait for retry at order.placed/billing (open) 17.5+2.5",
            "2 wait for delivery at order.placed/mail (open) 7+13",
        ]
    );
    // Nobody else is known to listen.
    let tree = assemble(asynchronous(vec![deliver("b", "billing", 8.0, "lost")]), &Subscriptions::new());
    assert_eq!(gaps(&tree), ["order.placed/billing has not taken message 0192f3a1 yet"]);
    let tree = assemble(asynchronous(vec![]), &Subscriptions::new());
    assert!(tree.is_complete());
    // It was published before: elsewhere, and what became of it is told there.
    let again = with(publish("pub", "", 0.0), &[(attribute::OUTCOME, "duplicate")]);
    assert!(assemble(vec![again], &subscriptions(&["billing"])).is_complete());
}

#[test]
fn a_dead_letter_is_an_end_until_it_is_replayed() {
    let dead = deliver("bill1", "billing", 7.5, "dead");
    let letter = with(
        about(span("letter", "pub", DAEMON, SpanKind::Internal, 18.0, 0.0), "billing"),
        &[(attribute::DEAD_LETTER, "dl-1")],
    );
    let replay = with(
        about(span("replay", "pub", DAEMON, SpanKind::Producer, 5_000.0, 1.0), "billing"),
        &[(attribute::REPLAY, "rp-1")],
    );
    let mut again = with(deliver("bill2", "billing", 5_000.5, "processed"), &[(attribute::REPLAY, "rp-1")]);
    again.parent_span_id = Some("replay".into());
    let expected = subscriptions(&["billing"]);
    let mut spans = asynchronous(vec![dead, letter]);
    assert!(assemble(spans.clone(), &expected).is_complete());
    spans.push(replay);
    let tree = assemble(spans.clone(), &expected);
    assert_eq!(gaps(&tree), ["order.placed/billing has not taken what rp-1 replays yet (message 0192f3a1)"]);
    spans.push(again);
    let tree = assemble(spans, &expected);
    assert!(tree.is_complete(), "{:?}", tree.gaps);
    assert_eq!(
        drawn(&tree)[2..],
        [
            "2 bill1 7.5+10 *",
            "2 letter 18+0 *",
            "2 wait for replay at order.placed/billing 18+4982 *",
            "2 replay 5000+1 *",
            "3 bill2 5000.5+10 *",
        ]
    );
}

#[test]
fn a_parent_that_was_never_received_has_its_place() {
    let mut linked = span("linked", "", "reports", SpanKind::Consumer, 30.0, 5.0);
    linked.trace_id = "u".into();
    linked.links.push(SpanLink { trace_id: "t".into(), span_id: "leaf".into() });
    let spans = vec![
        linked,
        span("root", "", "gateway", SpanKind::Server, 0.0, 20.0),
        span("leaf", "lost", "orders", SpanKind::Server, 5.0, 4.0),
        span("other", "lost", "orders", SpanKind::Server, 9.0, 4.0),
    ];
    let tree = assemble(spans, &Subscriptions::new());
    assert_eq!(
        drawn(&tree),
        ["0 root 0+20 *", "1 unknown lost 5+8 *", "2 leaf 5+4 *", "3 linked 30+5 *", "2 other 9+4"]
    );
    assert_eq!(gaps(&tree), ["span lost, on which spans of orders hang, was never received"]);
}

#[test]
fn a_caller_from_outside_is_no_gap() {
    let entry = with(span("root", "caller", "gateway", SpanKind::Server, 0.0, 20.0), &[(attribute::ROUTE, "/orders")]);
    assert!(assemble(vec![entry], &Subscriptions::new()).is_complete());
}

#[test]
fn a_clock_that_is_behind_is_put_forward() {
    let spans = vec![
        span("call", "", "gateway", SpanKind::Client, 0.0, 20.0),
        span("orders", "call", "orders", SpanKind::Server, -100.0, 10.0),
        span("inside", "orders", "orders", SpanKind::Internal, -98.0, 5.0),
        span("slow", "call", "billing", SpanKind::Server, 5.0, 40.0),
    ];
    let tree = assemble(spans, &Subscriptions::new());
    let of = |name: &str| {
        let node = tree.nodes.iter().find(|node| node.span().is_some_and(|span| span.span_id == name)).expect("a node");
        (node.start_ms, node.shifted_ms)
    };
    assert_eq!((of("orders"), of("inside")), ((5.0, 105.0), (7.0, 105.0)));
    assert_eq!(of("slow"), (5.0, 0.0), "a caller may give up before the answer");
}

#[test]
fn deep_and_circular_traces_end() {
    let count = 20_000;
    let name = |at: usize| format!("s{at}");
    let deep = |circle: bool| -> Vec<Span> {
        let parent = |at: usize| match at {
            0 if circle => name(count - 1),
            0 => String::new(),
            _ => name(at - 1),
        };
        (0..count).map(|at| span(&name(at), &parent(at), "a", SpanKind::Internal, at as f64, 1.0)).collect()
    };
    let tree = assemble(deep(false), &Subscriptions::new());
    assert_eq!((tree.nodes.len(), tree.nodes[count - 1].depth), (count, count - 1));
    let tree = assemble(deep(true), &Subscriptions::new());
    assert_eq!((tree.nodes.len(), gaps(&tree)), (count, vec!["span s0 is, as it says, below itself".to_owned()]));
}

/// Spans as somebody might make them up: few names, so that they meet, and every number.
fn any_span() -> impl Strategy<Value = Span> {
    let kinds = [SpanKind::Internal, SpanKind::Server, SpanKind::Client, SpanKind::Producer, SpanKind::Consumer];
    let id = || 0..8_u8;
    let duration = prop_oneof![0.0..50.0_f64, Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(1e300)];
    let service = prop::sample::select(vec!["gateway", COURIER, DAEMON, "orders"]);
    let word = |words: &'static [&'static str]| prop::option::of(prop::sample::select(words));
    let attributes = (
        word(&["m1", "m2"]),
        word(&["order.placed"]),
        word(&["billing", "mail"]),
        word(&["processed", "retried", "dead", "lost"]),
        word(&["rp-1", "rp-2"]),
        word(&["2026-11-23T12:00:09Z", "never"]),
    );
    let ids = (id(), prop::option::of(id()), prop::option::of(id()), 0..2_u8);
    (ids, prop::sample::select(kinds.to_vec()), service, -50.0..50.0_f64, duration, attributes).prop_map(
        |((id, parent, link, trace), kind, service, start, duration_ms, texts)| {
            let name = |id: u8| format!("s{id}");
            let mut span = span(&name(id), "", service, kind, start, duration_ms);
            span.trace_id = format!("t{trace}");
            span.parent_span_id = parent.map(name);
            span.links = link
                .map(|id| SpanLink { trace_id: format!("t{}", 1 - trace), span_id: name(id) })
                .into_iter()
                .collect();
            let names = [
                (attribute::MESSAGE_ID, texts.0),
                (attribute::CHANNEL, texts.1),
                (attribute::SUBSCRIPTION, texts.2),
                (attribute::OUTCOME, texts.3),
                (attribute::REPLAY, texts.4),
                (attribute::NOT_BEFORE, texts.5),
            ];
            let present: Vec<_> = names.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
            with(span, &present)
        },
    )
}

proptest! {
    #[test]
    fn every_span_is_in_the_tree_once_whatever_was_sent(spans in vec(any_span(), 0..24)) {
        let mut sent: Vec<_> = spans.iter().map(|span| (span.trace_id.clone(), span.span_id.clone())).collect();
        sent.sort();
        sent.dedup();
        let tree = assemble(spans, &subscriptions(&["billing", "stock"]));
        let mut shown: Vec<_> = tree.spans().map(|span| (span.trace_id.clone(), span.span_id.clone())).collect();
        shown.sort();
        prop_assert_eq!(sent, shown);
        for (at, node) in tree.nodes.iter().enumerate() {
            match node.parent {
                Some(parent) => prop_assert!(parent < at && tree.nodes[parent].depth + 1 == node.depth),
                None => prop_assert_eq!(at, 0),
            }
            if let Some(parent) = node.parent.filter(|_| node.critical_ms.is_some()) {
                prop_assert!(tree.nodes[parent].critical_ms.is_some(), "the path leads from the root");
            }
            prop_assert!(node.start_ms >= 0.0 && node.duration_ms >= 0.0 && node.self_ms <= node.duration_ms);
        }
    }

    #[test]
    fn the_order_in_which_spans_come_does_not_matter(
        (spans, shuffled) in vec(any_span(), 0..16).prop_flat_map(|spans| (Just(spans.clone()), Just(spans).prop_shuffle()))
    ) {
        let expected = subscriptions(&["billing"]);
        let (tree, other) = (assemble(spans, &expected), assemble(shuffled, &expected));
        // Not-a-number is unlike itself; as text it is not.
        prop_assert_eq!(format!("{tree:?}"), format!("{other:?}"));
    }
}

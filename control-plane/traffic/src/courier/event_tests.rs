//! What is kept of what publishers send.

use std::collections::BTreeMap;

use meshctl_model::units::{Bytes as Size, Span};
use proptest::prelude::*;

use super::*;

fn channel(key: Option<&str>) -> Channel {
    Channel {
        partitions: 1,
        key: key.map(str::to_owned),
        ordered: false,
        retention: Span::from_secs(1),
        max_size: Size(1 << 20),
        max_message: Size(1000),
        idempotency_window: Span::from_secs(1),
        subscriptions: BTreeMap::new(),
    }
}

fn take(pairs: &[(&str, &str)], body: &[u8]) -> Result<Events, Refusal> {
    let mut head = HeaderMap::new();
    for (name, value) in pairs {
        head.append(HeaderName::try_from(*name).expect("a name"), HeaderValue::try_from(*value).expect("a value"));
    }
    let trace = Trace::of(&head, || 1, |said| said != Some(false));
    let mut ids = 0;
    let now = "2026-01-02T03:04:05Z".parse().expect("a time");
    read("order.placed", &channel(Some("orderId")), &head, &Bytes::copy_from_slice(body), &trace, now, || {
        ids += 1;
        format!("m{ids}")
    })
}

fn one(pairs: &[(&str, &str)], body: &[u8]) -> Publish {
    take(pairs, body).expect("good").messages.remove(0)
}

#[test]
fn attributes_that_nobody_gave_are_filled_in() {
    let publish = one(&[("cookie", "secret"), ("x-forwarded-for", "1"), ("content-type", "text/plain")], b"hello");
    let headers: Vec<(&str, &str)> = publish.message.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(
        headers,
        [
            ("content-type", "text/plain"),
            ("ce-id", "m1"),
            ("ce-source", "unknown"),
            ("ce-type", "order.placed"),
            ("ce-time", "2026-01-02T03:04:05Z"),
            ("traceparent", "00-00000000000000010000000000000001-0000000000000001-01"),
        ]
    );
    assert_eq!((publish.idempotency_key, publish.message.key), (None, None));
}

#[test]
fn keys_come_from_the_head_or_else_from_the_payload() {
    let body = br#"{"orderId": 12}"#;
    assert_eq!(one(&[], body).message.key.as_deref(), Some("12"));
    assert_eq!(one(&[("meshctl-key", "k")], body).message.key.as_deref(), Some("k"));
    assert_eq!(one(&[("content-type", "application/octet-stream")], b"\xff\xfe").message.key, None);
}

#[test]
fn what_makes_a_publish_the_same_as_another() {
    let of = |pairs: &[(&str, &str)]| one(pairs, b"").idempotency_key;
    let key = |parts: &[&str]| Some(parts.join("\0"));
    assert_eq!(of(&[("idempotency-key", "7")]), key(&["key", "", "7", ""]));
    assert_eq!(of(&[("idempotency-key", "7"), ("meshctl-caller", "orders")]), key(&["key", "orders", "7", ""]));
    assert_eq!(of(&[("ce-id", "e")]), None);
    assert_eq!(of(&[("ce-id", "e"), ("ce-source", "s")]), key(&["event", "", "s", "e", ""]));
    assert_eq!(of(&[("ce-id", "e"), ("ce-source", "s"), ("idempotency-key", "7")]), key(&["key", "", "7", ""]));
    let lines = take(&[("content-type", "application/x-ndjson"), ("idempotency-key", "7")], b"1\n\n2\n").expect("good");
    let keys: Vec<_> = lines.messages.iter().map(|publish| publish.idempotency_key.clone()).collect();
    assert_eq!(keys, [key(&["key", "", "7", "0"]), key(&["key", "", "7", "1"])]);
}

#[test]
fn different_events_never_share_a_key() {
    let event = |source: &str, id: &str| [("ce-source", source.to_owned()), ("ce-id", id.to_owned())];
    let given = |key: &str| [("idempotency-key", key.to_owned()), ("meshctl-caller", "orders".to_owned())];
    let of = |pairs: &[(&str, String)], lines: bool| {
        let mut pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        if lines {
            pairs.push(("content-type", "application/x-ndjson"));
        }
        one(&pairs, b"1").idempotency_key.expect("a key")
    };
    let keys = [
        of(&event("/a/b", "c"), false),
        of(&event("/a", "b/c"), false),
        of(&event("/a/b/c#0", "d"), false),
        of(&event("/a/b", "c"), true),
        of(&event("/a/b", "c#0"), false),
        of(&given("7"), false),
        of(&given("7"), true),
        of(&given("7#0"), false),
        of(&[("idempotency-key", "orders/7".to_owned())], false),
    ];
    assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), keys.len(), "{keys:?}");
}

#[test]
fn attributes_are_few_and_short() {
    let attributes = |count: usize, length: usize| {
        let more: String = (0..count).map(|n| format!(r#","a{n}":"{}""#, "x".repeat(length))).collect();
        format!(r#"{{"specversion":"1.0","id":"e","source":"s","type":"t"{more}}}"#)
    };
    let kind = [("content-type", "application/cloudevents+json")];
    assert!(take(&kind, attributes(50, 10).as_bytes()).is_ok());
    for (count, length) in [(30_000, 0), (61, 1), (4, 9000)] {
        let refused = take(&kind, attributes(count, length).as_bytes()).map(|_| ());
        assert!(matches!(&refused, Err(Refusal::Bad(why)) if why.contains("attributes")), "{count}: {refused:?}");
    }
    let twice = take(&[("ce-id", "1"), ("ce-id", "2")], b"").map(|_| ());
    assert!(matches!(&twice, Err(Refusal::Bad(why)) if why.contains("`ce-id` is given twice")), "{twice:?}");
    let lists = one(&[("baggage", "a=1"), ("baggage", "b=2")], b"").message;
    assert_eq!(lists.header("baggage"), Some("a=1,b=2"));
    // Each line of a batch gets the request's attributes.
    let long = "x".repeat(16 << 10);
    let head = [("content-type", "application/x-ndjson"), ("ce-subject", long.as_str())];
    assert!(matches!(take(&head, "1\n".repeat(4000).as_bytes()), Err(Refusal::TooLarge(_))));
}

#[test]
fn structured_events_are_what_binary_ones_are() {
    let event = |more: &str| format!(r#"{{"specversion":"1.0","id":"e","source":"s","type":"t"{more}}}"#);
    let kind = [("content-type", "application/cloudevents+json; charset=utf-8")];
    let of = |more: &str| one(&kind, event(more).as_bytes()).message;
    let json = of(r#","data":{"b": 1.10, "a":[ ]},"n":7,"flag":true,"nothing":null"#);
    assert_eq!(json.payload, &br#"{"b": 1.10, "a":[ ]}"#[..], "as it was written");
    let header = |name| json.header(name).map(str::to_owned);
    assert_eq!(
        (header("ce-n"), header("ce-flag"), header("ce-nothing")),
        (Some("7".into()), Some("true".into()), None)
    );
    assert_eq!(header("content-type").as_deref(), Some("application/json"));
    assert_eq!(of(r#","datacontenttype":"text/plain","data":"a\"b""#).payload, "a\"b");
    assert_eq!(of(r#","datacontenttype":"application/x+json","data":"a""#).payload, "\"a\"");
    assert_eq!(of(r#","data_base64":"AP8=""#).payload, &b"\x00\xff"[..]);
    assert_eq!(of("").payload, "");
    for (bad, why) in [
        (event(r#","data":1,"data_base64":"AA==""#), "both"),
        (event(r#","data_base64":"?""#), "no base64"),
        (event(r#","datacontenttype":"a\nb""#), "no media type"),
        (event(r#","x":{}"#), "no text, number or boolean"),
        (event(r#","Upper":1"#), "no attribute's name"),
        (r#"{"specversion":"1.0","id":"e","source":"s"}"#.into(), "has no `type`"),
        (r#"{"specversion":"0.3","id":"e","source":"s","type":"t"}"#.into(), "specversion"),
    ] {
        let refused = take(&kind, bad.as_bytes()).map(|_| ());
        assert!(matches!(&refused, Err(Refusal::Bad(said)) if said.contains(why)), "{bad}: {refused:?}");
    }
}

#[test]
fn no_message_is_larger_than_the_channel_takes() {
    let large = vec![b'1'; 1001];
    assert!(matches!(take(&[], &large), Err(Refusal::TooLarge(_))));
    let lines = [(&b"1\n"[..]), &large].concat();
    let refused = take(&[("content-type", "application/x-ndjson")], &lines).map(|_| ());
    assert!(matches!(&refused, Err(Refusal::TooLarge(why)) if why.contains("message 1 of the batch")), "{refused:?}");
    let all = "1234567890\n".repeat((1 << 20) / 10 / 128 + 1);
    let whole = Channel { max_size: Size(8000), ..channel(None) };
    let head = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))]);
    let trace = Trace::of(&head, || 1, |_| false);
    let refused = read("c", &whole, &head, &all.into(), &trace, Timestamp::UNIX_EPOCH, String::new).map(|_| ());
    assert!(matches!(&refused, Err(Refusal::TooLarge(why)) if why.contains("may keep (8000)")), "{refused:?}");
    let many = "1\n".repeat(MESSAGES + 1);
    assert!(matches!(take(&[("content-type", "application/x-ndjson")], many.as_bytes()), Err(Refusal::TooLarge(_))));
}

#[test]
fn the_publishers_trace_goes_on_below_a_span_of_the_message() {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let kept = one(&[("traceparent", parent), ("tracestate", "a=1"), ("baggage", "b=2")], b"").message;
    let of = |name| kept.header(name);
    let below = format!("{}-0000000000000001-01", &parent[..35]);
    assert_eq!((of("traceparent"), of("tracestate"), of("baggage")), (Some(&*below), Some("a=1"), Some("b=2")));
    let begun = one(&[("traceparent", "nonsense"), ("tracestate", "a=1")], b"").message;
    assert_eq!(begun.header("tracestate"), None, "of another trace");
    assert_eq!(begun.header("traceparent"), Some("00-00000000000000010000000000000001-0000000000000001-01"));
}

proptest! {
    #[test]
    fn no_body_and_no_head_make_it_fall_over(body: Vec<u8>, kind in 0..4usize, value in "[ -~]{0,20}") {
        let kinds = ["application/cloudevents+json", "application/cloudevents-batch+json", "application/x-ndjson", "x/y"];
        let head = [("content-type", kinds[kind]), ("ce-id", &value), ("ce-subject", &value)];
        if let Ok(events) = take(&head, &body) {
            prop_assert!(events.messages.iter().all(|publish| publish.message.payload.len() <= 1000));
        }
    }

    #[test]
    fn whatever_an_attribute_holds_a_header_can_carry(text: String) {
        let event = serde_json::json!({
            "specversion": "1.0", "id": "e", "source": "s", "type": "t", "subject": text, "data": text,
        });
        let kind = [("content-type", "application/cloudevents+json")];
        let message = one(&kind, event.to_string().as_bytes()).message;
        prop_assert!(message.headers.iter().all(|(_, value)| HeaderValue::from_str(value).is_ok()));
        prop_assert_eq!(serde_json::from_slice::<String>(&message.payload).expect("JSON"), text);
    }
}

#[test]
fn every_event_of_a_batch_is_published_by_a_span_of_its_own() {
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let event = |extra: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{extra}}}"#);
    let body =
        format!("[{},{},{}]", event(""), event(&format!(r#","traceparent":"{own}""#)), event(r#","traceparent":"no""#));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let head = [("content-type", "application/cloudevents-batch+json"), ("traceparent", parent), ("tracestate", "a=1")];
    let events = take(&head, body.as_bytes()).expect("good");
    let kept: Vec<&str> =
        events.messages.iter().map(|one| one.message.header("traceparent").expect("a trace")).collect();
    let said: Vec<String> = events.traces.iter().map(Trace::traceparent).collect();
    assert_eq!(kept, said);
    assert_eq!([&kept[0][..36], &kept[1][..36], &kept[2][..36]], [&parent[..36], &own[..36], &parent[..36]]);
    assert!(kept[1].ends_with("-00") && kept[0] != kept[2] && kept[1] != own);
    let states = events.messages.iter().map(|one| one.message.header("tracestate"));
    assert_eq!(states.collect::<Vec<_>>(), [Some("a=1"), None, Some("a=1")]);
}

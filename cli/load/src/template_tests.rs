use std::time::Duration;

use super::*;
use crate::plan::{Arrivals, Template};

const PARENT: &[u8] = b"00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";

fn plan(template: Template) -> Plan {
    Plan {
        address: ([127, 0, 0, 1], 1).into(),
        host: "shop:80".into(),
        requests: vec![template],
        arrivals: Arrivals::Closed,
        connections: 1,
        duration: Duration::from_secs(1),
        ramp: Duration::ZERO,
        warm_up: Duration::ZERO,
        timeout: Duration::from_secs(1),
        threads: 1,
        seed: 5,
    }
}

fn template(method: &str, path: &str) -> Template {
    Template { name: "t".into(), weight: 1.0, method: method.into(), path: path.into(), ..Template::default() }
}

fn written(template: Template, n: u64) -> String {
    let compiled = compile(&plan(template)).expect("a good template").remove(0);
    let mut bytes = Vec::new();
    compiled.write(n, PARENT, &mut bytes);
    String::from_utf8(bytes).expect("text")
}

fn refused(template: Template) -> String {
    compile(&plan(template)).expect_err("a bad template").to_string()
}

#[test]
fn a_plain_request_is_what_it_says() {
    assert_eq!(
        written(template("GET", "/inventory/apple"), 1),
        format!(
            "GET /inventory/apple HTTP/1.1\r\nhost: shop:80\r\ntraceparent: {}\r\n\r\n",
            String::from_utf8_lossy(PARENT)
        )
    );
}

#[test]
fn own_host_and_traceparent_are_kept_and_not_doubled() {
    let mut own = template("GET", "/");
    own.headers = vec![("Host".into(), "other".into()), ("traceparent".into(), "00-mine".into())];
    assert_eq!(written(own, 1), "GET / HTTP/1.1\r\nhost: other\r\ntraceparent: 00-mine\r\n\r\n");
}

#[test]
fn placeholders_are_filled_and_the_body_is_as_long_as_it_says() {
    let mut order = template("POST", "/orders/{{n}}?q={{random 3 3}}");
    order.headers = vec![("x-key".into(), "{{uuid}}".into())];
    order.body = r#"{"sku":"{{random sku}}","at":"{{now}}","deep":{"a":{}}}"#.into();
    order.values = vec![("sku".into(), vec!["apple".into(), "pear".into()])];
    let text = written(order.clone(), 41);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("POST /orders/41?q=3 HTTP/1.1\r\nx-key: "), "{head}");
    let length = head.rsplit("content-length: ").next().and_then(|it| it.parse::<usize>().ok());
    assert_eq!(length, Some(body.len()), "{head}");
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert!(["apple", "pear"].contains(&json["sku"].as_str().unwrap_or_default()), "{body}");
    assert!(json["at"].as_str().is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok()), "{body}");
    let key: Vec<&str> = head.split("x-key: ").nth(1).unwrap_or_default()[..36].split('-').collect();
    assert_eq!(key.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    assert!(key[2].starts_with('4') && ['8', '9', 'a', 'b'].contains(&key[3].chars().next().unwrap_or_default()));
}

#[test]
fn the_same_number_and_seed_is_the_same_request() {
    let random = template("GET", "/{{random 1 1000000}}/{{uuid}}");
    assert_eq!(written(random.clone(), 7), written(random.clone(), 7));
    assert_ne!(written(random.clone(), 7), written(random, 8));
}

#[test]
fn values_are_drawn_evenly() {
    let random = template("GET", "/{{random 0 3}}");
    let mut counts = [0; 4];
    for n in 1..=4000 {
        let text = written(random.clone(), n);
        counts[usize::from(text.as_bytes()[5] - b'0')] += 1;
    }
    // Five standard deviations.
    assert!(counts.iter().all(|count: &i32| (count - 1000).abs() < 140), "{counts:?}");
}

#[test]
fn mistakes_are_named_with_their_place() {
    let with_body = |body: &str| Template { body: body.into(), ..template("POST", "/") };
    for (bad, said) in [
        (template("GET", "/ä/{{nn}}"), "request `t`, path, character 4: unknown placeholder `nn`"),
        (template("GET", "/{{random 9 1}}"), "character 2: `random 9 1`: two whole numbers"),
        (template("GET", "/{{random sku}}"), "no values are named `sku`"),
        (template("GET", "/{{n"), "`{{` without `}}`"),
        (template("GET", "orders"), "does not begin with /"),
        (template("GET", "/a b"), "cannot stand in a path"),
        (template("G ET", "/"), "is no method"),
        (with_body("{\"a\":\"{{sku}}\"}"), "request `t`, body, character 7"),
        (Template { headers: vec![("a".into(), "b\r\nc".into())], ..template("GET", "/") }, "cannot stand in a header"),
        (
            Template { headers: vec![("content-length".into(), "3".into())], ..template("GET", "/") },
            "frames bodies itself",
        ),
    ] {
        let error = refused(bad);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_completion_is_asked_with_the_fields_of_the_answer() {
    let mut order = template("POST", "/orders");
    let completion = |path: &str| {
        let (every, within) = (Duration::from_millis(10), Duration::from_secs(1));
        Some(plan::Completion { path: path.into(), every, within })
    };
    order.completion = completion("/shipments/{{orderId}}?of={{order.user}}&n={{n}}");
    let compiled = compile(&plan(order.clone())).expect("a good template").remove(0);
    let completion_of = compiled.completion.as_ref().expect("it has one");
    let question =
        completion_of.question(3, br#"{"orderId": 17, "order": {"user": "a b\r\nx"}}"#).map(String::from_utf8);
    assert_eq!(
        question,
        Ok(Ok("GET /shipments/17?of=a%20b%0D%0Ax&n=3 HTTP/1.1\r\nhost: shop:80\r\ntraceparent: ".to_owned()))
    );
    assert_eq!(completion_of.question(3, br#"{"orderId": 17}"#), Err("order.user".to_owned()));
    assert_eq!(completion_of.question(3, b"no JSON"), Err("orderId".to_owned()));
    order.completion = completion("/shipments/{{random 1 2}}");
    assert!(refused(order).contains("is no field of an answer"));
}

#[test]
fn any_2xx_or_3xx_is_success_unless_the_template_says_which() {
    let any = compile(&plan(template("GET", "/"))).expect("good").remove(0);
    assert!(any.expects(200) && any.expects(302) && !any.expects(404) && !any.expects(503));
    let one = Template { expect: vec![404], ..template("GET", "/") };
    let one = compile(&plan(one)).expect("good").remove(0);
    assert!(one.expects(404) && !one.expects(200));
}

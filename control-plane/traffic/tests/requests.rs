//! What a request and its answer look like on either side of the gateway, and what the gateway refuses.

mod support;

use meshctl_model::snapshot::{HostMatch, Listener, Serves};
use support::*;

/// An origin that tells what it got.
async fn mirror() -> Origin {
    Origin::new(async |_, request: hyper::Request<hyper::body::Incoming>| {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            text += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
        }
        let body = http_body_util::BodyExt::collect(request.into_body()).await.map(|body| body.to_bytes());
        text += &format!("body: {}", String::from_utf8_lossy(&body.unwrap_or_default()));
        say(200, text)
    })
    .await
}

#[tokio::test]
async fn the_instance_learns_who_asks_and_hop_by_hop_fields_end() {
    let origin = mirror().await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    let gateway = Gateway::serving(&snapshot).await;
    let mut request = get("/a/b?c=d");
    for (name, value) in [
        ("connection", "keep-alive, x-private"),
        ("x-private", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("forwarded", "for=192.0.2.1"),
        ("meshctl-caller", "billing"),
        ("meshctl-deadline-ms", "700"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "vendor=1"),
    ] {
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    let answer = ask(gateway.address, request).await;
    assert_eq!(answer.headers()["meshctl-trace-id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    let seen = answer.body();
    for wanted in [
        "GET /a/b?c=d\n",
        "host: test\n",
        "te: trailers\n",
        "forwarded: for=127.0.0.1;host=\"test\";proto=http\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-host: test\n",
        "x-forwarded-proto: http\n",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-",
        "tracestate: vendor=1\n",
    ] {
        assert!(seen.contains(wanted), "{wanted} in {seen}");
    }
    for gone in ["x-private", "keep-alive", "connection:", "00f067aa0ba902b7", "meshctl-caller"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    // On an edge between services, the caller's word for the hops before it is good.
    snapshot.edges.extend([edge("orders", "web", &snapshot.routes[0].policy)]);
    snapshot.listeners[0].serves = Serves::Edge("orders:web".into());
    snapshot.generation = 2;
    gateway.push(&snapshot).await;
    let mut request = get("/");
    request.headers_mut().insert("forwarded", "for=192.0.2.1".parse().expect("a value"));
    // Who asks is known by the edge; what it calls itself is not.
    request.headers_mut().insert("meshctl-caller", "billing".parse().expect("a value"));
    request.headers_mut().append("meshctl-caller", "shipping".parse().expect("a value"));
    let inside = ask(gateway.address, request).await;
    let callers: Vec<_> = inside.body().lines().filter(|line| line.starts_with("meshctl-caller")).collect();
    assert_eq!(callers, ["meshctl-caller: orders"]);
    let chain = "forwarded: for=192.0.2.1, for=127.0.0.1;host=\"test\";proto=http\n";
    assert!(inside.body().contains(chain), "{}", inside.body());
    let left = seen.split("meshctl-deadline-ms: ").nth(1).and_then(|rest| rest.lines().next()).expect("carried on");
    assert!((1..700).contains(&left.parse::<u64>().expect("a number")), "{left}");
}

#[tokio::test]
async fn routes_hosts_methods_and_edges() {
    let (web, beta) = (Origin::saying("web").await, Origin::saying("beta").await);
    let (front, inner) = (free_address(), free_address());
    let mut snapshot = snapshot(front, &[web.address]);
    let policy = snapshot.routes[0].policy.clone();
    snapshot.services.insert("beta".into(), endpoints(&[beta.address]));
    snapshot.edges.extend([edge("gateway", "beta", &policy), edge("web", "beta", &policy)]);
    snapshot.listeners.push(Listener { address: inner, serves: Serves::Edge("web:beta".into()) });
    snapshot.routes =
        vec![route("orders", "/orders", "gateway:web", &policy), route("beta", "/orders", "gateway:beta", &policy)];
    snapshot.routes[0].methods = vec!["GET".into(), "POST".into()];
    snapshot.routes[1].host = Some(HostMatch::Suffix(".beta.local".into()));
    snapshot.order_routes();
    let gateway = Gateway::serving(&snapshot).await;

    assert_eq!(ask(front, get("/orders")).await.body(), "web");
    let mut other_host = get("/orders");
    other_host.headers_mut().insert("host", "SHOP.beta.LOCAL:80".parse().expect("a value"));
    assert_eq!(ask(front, other_host).await.body(), "beta");
    assert_eq!(ask(inner, get("/any/path")).await.body(), "beta");

    let nowhere = ask(front, get("/nowhere")).await;
    assert_eq!((nowhere.status().as_u16(), cause(&nowhere)), (404, "noRoute"));
    assert_eq!(nowhere.headers()["content-type"], "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(nowhere.body()).expect("JSON");
    assert_eq!(problem["cause"], "noRoute");
    assert_eq!(problem["status"], 404);
    assert_eq!(problem["traceId"], nowhere.headers()["meshctl-trace-id"].to_str().expect("text"));

    let mut delete = get("/orders");
    *delete.method_mut() = hyper::Method::DELETE;
    let refused = ask(front, delete).await;
    assert_eq!((refused.status().as_u16(), cause(&refused)), (405, "methodNotAllowed"));
    assert_eq!(refused.headers()["allow"], "GET, POST");
    drop(gateway);
}

#[tokio::test]
async fn weights_share_out() {
    let (many, few) = (Origin::saying("many").await, Origin::saying("few").await);
    let mut snapshot = snapshot(free_address(), &[many.address]);
    let policy = snapshot.routes[0].policy.clone();
    snapshot.services.insert("few".into(), endpoints(&[few.address]));
    snapshot.edges.extend([edge("gateway", "few", &policy)]);
    snapshot.routes[0].targets = vec![("gateway:web".into(), 0.9), ("gateway:few".into(), 0.1)];
    let gateway = Gateway::serving(&snapshot).await;
    let mut sender = connect(gateway.address).await;
    for _ in 0..2_000 {
        sender.ready().await.expect("open");
        whole(sender.send_request(get("/")).await.expect("an answer")).await;
    }
    // Ten standard deviations on either side of 200.
    assert!((66..334).contains(&few.seen()), "{}", few.seen());
    assert_eq!(few.seen() + many.seen(), 2_000);
}

#[tokio::test]
async fn an_instances_own_errors_pass_untouched() {
    let origin = Origin::new(async |_, _| say(500, "mine")).await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let answer = ask(gateway.address, get("/")).await;
    assert_eq!((answer.status().as_u16(), answer.body().as_str(), cause(&answer)), (500, "mine", ""));
}

#[tokio::test]
async fn hostile_shapes_are_refused_or_made_harmless() {
    let origin = mirror().await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.limits.header_bytes = 4_096;
    let gateway = Gateway::serving(&snapshot).await;
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or("closed").to_owned();
    for (what, request, allowed) in [
        (
            "two lengths",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            &["400", "closed"][..],
        ),
        ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", &["400", "closed"]),
        ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 4\r\n\r\nabc", &["400", "closed"]),
        (
            "unknown coding",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            &["400", "closed"],
        ),
        (
            "chunked not last",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            &["400", "closed"],
        ),
        (
            "chunked in 1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &["400", "closed"],
        ),
        ("a folded field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", &["400", "closed"]),
        ("space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", &["400", "closed"]),
        ("a zero in a field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", &["400", "closed"]),
        ("a bare CR in a field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", &["400", "closed"]),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", &["400"]),
        ("no host", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", &["400"]),
        ("a strange host", "GET / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n", &["400"]),
        ("two opinions on the host", "GET http://a/ HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n", &["400"]),
        ("a path that climbs", "GET /a/../b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &["400"]),
        ("one that climbs in code", "GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &["400"]),
        ("a tunnel", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n", &["405"]),
        ("an odd method", "G@T / HTTP/1.1\r\nHost: a\r\n\r\n", &["400", "closed"]),
        ("a version from the future", "GET / HTTP/3.7\r\nHost: a\r\n\r\n", &["400", "closed"]),
        (
            "a bad chunk size",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
            &["400"],
        ),
        (
            "a huge chunk size",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nfffffffffffffffff\r\n",
            &["400"],
        ),
    ] {
        let answer = raw(gateway.address, request.as_bytes()).await;
        assert!(allowed.contains(&status(&answer).as_str()), "{what}: {answer}");
    }
    // None of these reached the instance as a request with an answer.
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(5_000));
    assert_eq!(status(&raw(gateway.address, long.as_bytes()).await), "431");

    // A length beside chunked: the length is dropped, and both sides see the same single request.
    let before = origin.seen();
    let both = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = raw(gateway.address, both.as_bytes()).await;
    assert!(!answer.contains("smuggled"), "{answer}");
    assert!(!answer.contains("content-length: 6"), "{answer}");
    assert_eq!(origin.seen() - before, 1);
    // Absolute form that agrees with its host is what proxies are sent.
    let absolute = "GET http://a/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(raw(gateway.address, absolute.as_bytes()).await.contains("GET /x\n"));
    // And the gateway is as well as before.
    assert_eq!(ask(gateway.address, get("/")).await.status(), 200);
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_with_and_without_a_length() {
    let origin = mirror().await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.limits.request_body_bytes = 1_000;
    let gateway = Gateway::serving(&snapshot).await;
    let known = ask(gateway.address, post("/", "x".repeat(1_001))).await;
    assert_eq!((known.status().as_u16(), cause(&known)), (413, "bodyTooLarge"));
    let chunk = format!("{:x}\r\n{}\r\n", 600, "x".repeat(600));
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let chunked = raw(gateway.address, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    let fits = ask(gateway.address, post("/", "x".repeat(1_000))).await;
    assert!(fits.body().ends_with(&format!("body: {}", "x".repeat(1_000))));
    // Too much of a client is not the service's failure.
    assert_eq!(gateway.status().await.edges[0].failures, 0);
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    let origin = mirror().await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    (snapshot.limits.header_timeout_ms, snapshot.limits.idle_timeout_ms) = (500, 1_000);
    let gateway = Gateway::serving(&snapshot).await;
    // Each returns because the gateway closes; a gateway that does not would hang the test.
    assert_eq!(raw(gateway.address, b"GET / HTTP/1.1\r\nHost: a\r\nX: begun").await, "");
    assert_eq!(raw(gateway.address, b"").await, "");
    let kept = raw(gateway.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(kept.starts_with("HTTP/1.1 200"), "{kept}");
}

#[tokio::test]
async fn rate_limits_per_header_value() {
    use meshctl_model::topology::{RateLimit, RateLimitKey};
    let origin = Origin::saying("ok").await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.routes[0].rate_limit = Some(RateLimit {
        rate: "1/h".parse().expect("a rate"),
        burst: Some(2),
        per: Some(RateLimitKey::Header("X-Api-Key".into())),
    });
    let gateway = Gateway::serving(&snapshot).await;
    let with_key = |key: &str| {
        let mut request = get("/");
        request.headers_mut().insert("x-api-key", key.parse().expect("a value"));
        request
    };
    for wanted in [200, 200, 429] {
        assert_eq!(ask(gateway.address, with_key("one")).await.status(), wanted);
    }
    let refused = ask(gateway.address, with_key("one")).await;
    assert_eq!(cause(&refused), "rateLimited");
    assert!(refused.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds") > 3_000);
    assert_eq!(ask(gateway.address, with_key("two")).await.status(), 200);
}

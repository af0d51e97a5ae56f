//! Clients that take their time with a request body, and whose fault it is.

mod support;

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use meshctl_model::snapshot::BreakerState;
use meshctl_model::units::Span;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Says how many bytes it got.
async fn counts() -> Origin {
    Origin::new(async |_, request: Request<Incoming>| {
        say(200, request.into_body().collect().await.map_or(0, |body| body.to_bytes().len()).to_string())
    })
    .await
}

/// Sends a request with a body of `pieces` times `size` bytes, one piece after each pause, and returns the whole answer.
async fn slowly(gateway: &Gateway, pieces: usize, size: usize, pause: Duration) -> String {
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", pieces * size);
    client.write_all(head.as_bytes()).await.expect("sent");
    for _ in 0..pieces {
        tokio::time::sleep(pause).await;
        client.write_all(&vec![b'x'; size]).await.expect("still wanted");
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn a_slow_upload_takes_the_time_it_takes() {
    let origin = counts().await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    // Longer than the attempt timeout and, in all, than the deadline; with pauses that are, too.
    let (steady, halting) = tokio::join!(
        slowly(&gateway, 24, 12_500, Duration::from_millis(100)),
        slowly(&gateway, 5, 60_000, Duration::from_millis(600)),
    );
    for answer in [steady, halting] {
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("300000"), "{answer}");
    }
    assert_eq!(gateway.status().await.edges[0].failures, 0);
}

#[tokio::test]
async fn a_short_body_may_be_slow_too() {
    let origin = counts().await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let answer = slowly(&gateway, 10, 1, Duration::from_millis(250)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("10"), "{answer}");
    let edge = &gateway.status().await.edges[0];
    assert_eq!((edge.failures, edge.retries, origin.seen()), (0, 0, 1));
}

#[tokio::test]
async fn a_client_that_stalls_has_itself_to_blame() {
    let origin = counts().await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.limits.idle_timeout_ms = 700;
    let gateway = Gateway::serving(&snapshot).await;
    let mut stalled = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345";
        stalled.spawn(raw(gateway.address, head));
    }
    for answer in stalled.join_all().await {
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("meshctl-cause: requestTimeout"), "{answer}");
    }
    let status = gateway.status().await;
    let edge = &status.edges[0];
    assert_eq!((edge.breaker, edge.failures, edge.retries), (BreakerState::Closed, 0, 0));
    assert_eq!(status.ejected, []);
    assert_eq!(ask(gateway.address, post("/", "whole")).await.body(), "5");
}

#[tokio::test]
async fn an_instance_that_is_silent_after_the_whole_body_is_too_slow() {
    let origin = Origin::new(async |_, request: Request<Incoming>| {
        let _whole = request.into_body().collect().await;
        std::future::pending::<hyper::Response<String>>().await
    })
    .await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        (policy.deadline, policy.attempt_timeout) = (Span::from_secs(60), Span::from_millis(200));
        policy.retry.attempts = 0;
    });
    let gateway = Gateway::serving(&snapshot).await;
    let answer = slowly(&gateway, 4, 30_000, Duration::from_millis(250)).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("meshctl-cause: attemptTimeout"), "{answer}");
    assert_eq!(gateway.status().await.edges[0].failures, 1);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let origin = Origin::new(async |_, _| say(401, "not you")).await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    client.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbegun").await.expect("sent");
    let mut status = [0; 12];
    client.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 401");
}

/// Sends a request, says that nothing more will follow, and returns the whole answer.
async fn half_closed(gateway: &Gateway, request: &[u8]) -> String {
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    client.write_all(request).await.expect("sent");
    client.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    let _ended = client.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_client_that_has_said_its_last_is_answered() {
    let origin = Origin::new(async |_, request: Request<Incoming>| {
        let long = request.uri().path() == "/long";
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        tokio::time::sleep(Duration::from_millis(300)).await;
        say(200, if long { "y".repeat(5 << 20) } else { format!("got {}", body.len()) })
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let (plain, posted, long, two) = tokio::join!(
        half_closed(&gateway, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        half_closed(&gateway, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345"),
        half_closed(&gateway, b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n"),
        half_closed(&gateway, b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    );
    assert!(plain.starts_with("HTTP/1.1 200") && plain.ends_with("got 0"), "{plain}");
    assert!(posted.starts_with("HTTP/1.1 200") && posted.ends_with("got 5"), "{posted}");
    assert!(long.len() > 5 << 20, "{} bytes", long.len());
    assert_eq!(two.matches("got 0").count(), 2, "{two}");
    gateway.until("its connections end", |status| status.connections == 0).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_fault() {
    let origin = counts().await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let _answer = half_closed(&gateway, b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbegun").await;
    let status = gateway.until("let go of", |status| status.edges[0].in_flight == 0).await;
    assert_eq!((status.edges[0].failures, status.edges[0].requests), (0, 1));
}

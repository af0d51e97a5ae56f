//! Failing, slow, dead and absent instances, and what the gateway makes of them.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use meshctl_drivers::gateway::Gateway as _;
use meshctl_model::snapshot::{BreakerState, GatewayEvent};
use meshctl_model::topology::{Fallback, RetryFailure, RetryOn};
use meshctl_model::units::{Percent, Span};
use support::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

/// Accepts connections, reads what comes, and closes without a word. The count is of requests read.
async fn hangs_up() -> (std::net::SocketAddr, Arc<std::sync::atomic::AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let (address, seen) = (listener.local_addr().expect("an address"), Arc::new(std::sync::atomic::AtomicU64::new(0)));
    let counter = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4_096];
            if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                counter.fetch_add(1, SeqCst);
            }
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_retry_goes_to_another_instance() {
    let bad = Origin::new(async |_, _| say(503, "bad")).await;
    let good = Origin::saying("good").await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[bad.address, good.address])).await;
    for _ in 0..40 {
        let answer = ask(gateway.address, get("/")).await;
        assert_eq!((answer.status().as_u16(), answer.body().as_str()), (200, "good"));
    }
    let edge = &gateway.status().await.edges[0];
    assert_eq!(edge.retries, bad.seen());
    assert!(bad.seen() > 0, "the bad one was tried first at times");
}

#[tokio::test]
async fn only_what_can_be_repeated_is_repeated() {
    let (address, seen) = hangs_up().await;
    let mut snapshot = snapshot(free_address(), &[address]);
    snapshot.routes[0].idempotency_key = Some("idempotency-key".into());
    let gateway = Gateway::serving(&with_policy(snapshot, |p| p.breaker.minimum_requests = 1_000)).await;
    let answer = ask(gateway.address, post("/", "pay")).await;
    assert_eq!((answer.status().as_u16(), cause(&answer), seen.load(SeqCst)), (502, "reset", 1));
    let mut keyed = post("/", "pay");
    keyed.headers_mut().insert("idempotency-key", "7".parse().expect("a value"));
    let answer = ask(gateway.address, keyed).await;
    assert_eq!((answer.status().as_u16(), seen.load(SeqCst)), (502, 4), "one and two more");
    let answer = ask(gateway.address, get("/")).await;
    assert_eq!((answer.status().as_u16(), seen.load(SeqCst)), (502, 7));
}

#[tokio::test]
async fn a_body_is_sent_again_whole_unless_it_is_large() {
    use http_body_util::BodyExt;
    let origin = Origin::new(async |number, request: hyper::Request<hyper::body::Incoming>| {
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        if number.is_multiple_of(2) { say(503, "no") } else { say(200, format!("{}", body.len())) }
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let put = |size: usize| {
        let mut request = post("/", "x".repeat(size));
        *request.method_mut() = hyper::Method::PUT;
        request
    };
    assert_eq!(ask(gateway.address, put(60_000)).await.body(), "60000");
    assert_eq!(origin.seen(), 2);
    let large = ask(gateway.address, put(200_000)).await;
    assert_eq!((large.status().as_u16(), large.body().as_str(), cause(&large)), (503, "no", ""));
    assert_eq!(origin.seen(), 3);
}

#[tokio::test]
async fn retries_stay_within_the_budget() {
    let origin = Origin::new(async |_, _| say(503, "down")).await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        policy.breaker.minimum_requests = 1_000_000;
        policy.retry.budget = Percent(0.1);
    });
    let gateway = Gateway::serving(&snapshot).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let address = gateway.address;
        tasks.spawn(async move {
            let mut sender = connect(address).await;
            for _ in 0..20 {
                sender.ready().await.expect("open");
                assert_eq!(whole(sender.send_request(get("/")).await.expect("an answer")).await.status(), 503);
            }
        });
    }
    tasks.join_all().await;
    // A tenth of 1,000, and 10/s over a window of 10 s; unbounded it would be 2,000.
    let retries = origin.seen() - 1_000;
    assert!((100..=300).contains(&retries), "{retries}");
}

#[tokio::test]
async fn a_dead_instance_is_out_at_once_and_back_when_it_is_back() {
    let (dying, living) = (Origin::saying("dying").await, Origin::saying("living").await);
    let address = dying.address;
    let gateway = Gateway::serving(&snapshot(free_address(), &[address, living.address])).await;
    let mut events = gateway.driver.events().await.expect("events");
    let load = Load::on(gateway.address, 8);
    load.goes_on(200).await;
    dying.end().await;
    let Some(GatewayEvent::Ejected(ejection)) = events.recv().await else { panic!("an ejection expected") };
    assert_eq!((ejection.service.as_str(), ejection.endpoint.as_str()), ("web", "web-0"));
    assert!(ejection.reason.contains("refused"), "{}", ejection.reason);
    assert_eq!(gateway.status().await.ejected, [ejection]);
    load.goes_on(500).await;
    let back = Origin::at(address, async |_, _| say(200, "back")).await;
    assert!(matches!(events.recv().await, Some(GatewayEvent::Returned { endpoint, .. }) if endpoint == "web-0"));
    while back.seen() == 0 {
        load.goes_on(10).await;
    }
    assert_eq!(gateway.status().await.ejected, []);
    let (_, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new());
}

#[tokio::test]
async fn a_frozen_instance_is_out_and_back_when_it_answers() {
    use rustix::process::{Pid, Signal, kill_process};
    // Another gateway is a process that can be frozen: its kernel goes on accepting connections for it.
    let (behind, living) = (Origin::saying("thawed").await, Origin::saying("living").await);
    let freezing = Gateway::serving(&snapshot(free_address(), &[behind.address])).await;
    let snapshot = with_policy(snapshot(free_address(), &[freezing.address, living.address]), |policy| {
        policy.breaker.minimum_requests = 1_000_000;
        policy.deadline = Span::from_secs(20);
    });
    let gateway = Gateway::serving(&snapshot).await;
    let mut events = gateway.driver.events().await.expect("events");
    let load = Load::on(gateway.address, 16);
    load.goes_on(200).await;
    kill_process(Pid::from_child(&freezing.child), Signal::STOP).expect("it runs");
    let Some(GatewayEvent::Ejected(ejection)) = events.recv().await else { panic!("an ejection expected") };
    assert_eq!(ejection.endpoint, "web-0");
    assert!(ejection.reason.contains("3 attempts in a row without an answer"), "{}", ejection.reason);
    // Those under way at that moment are lost: a timeout is not retried unless the policy says so.
    let (_, lost) = load.stop().await;
    assert!(lost.iter().all(|lost| lost.contains("attemptTimeout")), "{lost:?}");

    // From now on nobody notices, although one request after the other is sent there on trial.
    let load = Load::on(gateway.address, 8);
    let trials = Instant::now() + Duration::from_secs(2);
    while Instant::now() < trials {
        load.goes_on(100).await;
    }
    assert_eq!(gateway.status().await.ejected, [ejection]);
    kill_process(Pid::from_child(&freezing.child), Signal::CONT).expect("it is there");
    assert!(matches!(events.recv().await, Some(GatewayEvent::Returned { endpoint, .. }) if endpoint == "web-0"));
    let before = behind.seen();
    while behind.seen() < before + 100 {
        load.goes_on(10).await;
    }
    let (_, failed) = load.stop().await;
    assert_eq!(failed, Vec::<String>::new());
}

#[tokio::test]
async fn the_last_one_is_never_out_for_being_silent() {
    let (address, seen) = hangs_up().await;
    let gateway =
        Gateway::serving(&with_policy(snapshot(free_address(), &[address]), |p| p.breaker.minimum_requests = 1_000))
            .await;
    for _ in 0..5 {
        assert_eq!(cause(&ask(gateway.address, post("/", "x")).await), "reset");
    }
    assert_eq!((seen.load(SeqCst), gateway.status().await.ejected), (5, Vec::new()));
    // With another beside it, it is.
    let living = Origin::saying("living").await;
    let mut next = snapshot(gateway.address, &[address, living.address]);
    next.generation = 2;
    gateway.push(&next).await;
    let mut events = gateway.driver.events().await.expect("events");
    let told =
        async { while !matches!(events.recv().await, Some(GatewayEvent::Ejected(e)) if e.endpoint == "web-0") {} };
    let asked = async {
        loop {
            ask(gateway.address, post("/", "x")).await;
        }
    };
    tokio::select! {
        () = told => {}
        () = asked => {}
    }
}

#[tokio::test]
async fn when_all_are_ejected_all_are_used() {
    let address = free_address();
    let gateway =
        Gateway::serving(&with_policy(snapshot(free_address(), &[address]), |p| p.breaker.minimum_requests = 1_000))
            .await;
    let answer = ask(gateway.address, post("/", "x")).await;
    assert_eq!((answer.status().as_u16(), cause(&answer)), (502, "connectFailed"));
    let _back = Origin::at(address, async |_, _| say(200, "back")).await;
    assert_eq!(ask(gateway.address, get("/")).await.body(), "back");
}

#[tokio::test]
async fn a_breaker_opens_probes_and_closes() {
    let healthy = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&healthy);
    let origin = Origin::new(move |_, _| {
        let status = if told.load(SeqCst) { 200 } else { 500 };
        async move { say(status, "") }
    })
    .await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        policy.breaker.minimum_requests = 5;
        policy.breaker.open_for = Span::from_millis(300);
        policy.breaker.probes = 2;
    });
    let gateway = Gateway::serving(&snapshot).await;
    let mut events = gateway.driver.events().await.expect("events");
    for _ in 0..5 {
        assert_eq!(ask(gateway.address, get("/")).await.status(), 500);
    }
    let refused = ask(gateway.address, get("/")).await;
    assert_eq!((refused.status().as_u16(), cause(&refused)), (503, "breakerOpen"));
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(refused.body().contains("gateway:web"), "{}", refused.body());
    assert_eq!(origin.seen(), 5);
    let status = gateway.status().await;
    assert_eq!((status.edges[0].breaker, status.edges[0].failures), (BreakerState::Open, 5));

    // A snapshot that keeps the edge keeps its breaker.
    let mut next = snapshot.clone();
    next.generation = 2;
    assert_eq!(gateway.push(&next).await.edges[0].breaker, BreakerState::Open);

    healthy.store(true, SeqCst);
    while ask(gateway.address, get("/")).await.status() != 200 {}
    while ask(gateway.address, get("/")).await.status() != 200 {}
    assert_eq!(gateway.status().await.edges[0].breaker, BreakerState::Closed);
    let mut path = Vec::new();
    while path.last() != Some(&BreakerState::Closed) {
        let Some(GatewayEvent::Breaker { edge, to, .. }) = events.recv().await else { panic!("a transition expected") };
        assert_eq!(edge, "gateway:web");
        path.push(to);
    }
    assert_eq!(path, [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed]);
}

#[tokio::test]
async fn a_verdict_counts_before_the_retry_that_follows_it() {
    // Number 0 opens the breaker, 1 is a failing probe, 2 a probe that succeeds and is asked to come again.
    let origin = Origin::new(async |number, _| say([503, 503, 429, 200][number as usize], "")).await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        (policy.breaker.minimum_requests, policy.breaker.probes) = (1, 1);
        policy.breaker.open_for = Span::from_millis(300);
        policy.retry.on = vec![RetryOn::Status(503), RetryOn::Status(429)];
    });
    let gateway = Gateway::serving(&snapshot).await;
    let probe = async || {
        loop {
            let answer = ask(gateway.address, get("/")).await;
            if cause(&answer) != "breakerOpen" {
                return answer.status().as_u16();
            }
        }
    };
    assert_eq!((probe().await, origin.seen()), (503, 1), "the failure that opens the breaker is not retried");
    assert_eq!((probe().await, origin.seen()), (503, 2), "nor is a probe that failed");
    assert_eq!(
        (probe().await, origin.seen()),
        (200, 4),
        "a probe that closes the breaker leaves it closed for its retry"
    );
}

#[tokio::test]
async fn not_implemented_is_no_failure() {
    let origin = Origin::new(async |_, _| say(501, "never")).await;
    let gateway =
        Gateway::serving(&with_policy(snapshot(free_address(), &[origin.address]), |p| p.breaker.minimum_requests = 3))
            .await;
    for _ in 0..10 {
        assert_eq!(ask(gateway.address, get("/")).await.body(), "never");
    }
}

#[tokio::test]
async fn a_bulkhead_holds_queues_and_refuses() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::new(move |_, _| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("open").forget();
            say(200, "")
        }
    })
    .await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        (policy.bulkhead.concurrency, policy.bulkhead.queue) = (2, 1);
        (policy.deadline, policy.attempt_timeout) = (Span::from_secs(20), Span::from_secs(20));
    });
    let gateway = Gateway::serving(&snapshot).await;
    let address = gateway.address;
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(ask(address, get("/")))).collect();
    gateway.until("two inside, one queued", |s| (s.edges[0].in_flight, s.edges[0].queued) == (2, 1)).await;
    let refused = ask(address, get("/")).await;
    assert_eq!((refused.status().as_u16(), cause(&refused)), (503, "bulkheadFull"));
    // Another edge is not held up: each has a bulkhead of its own, and so has the admin socket.
    gate.add_permits(3);
    for answer in waiting {
        assert_eq!(answer.await.expect("joined").status(), 200);
    }
    assert_eq!(gateway.until("empty", |s| s.edges[0].in_flight == 0).await.edges[0].queued, 0);
}

#[tokio::test]
async fn deadlines_bound_and_attempts_are_shorter() {
    let origin = Origin::new(async |_, _| -> hyper::Response<http_body_util::Full<bytes::Bytes>> {
        std::future::pending().await
    })
    .await;
    let policy = |deadline: u64, attempt: u64| {
        with_policy(snapshot(free_address(), &[origin.address]), |policy| {
            (policy.deadline, policy.attempt_timeout) = (Span::from_millis(deadline), Span::from_millis(attempt));
            policy.retry.on = vec![RetryOn::Failure(RetryFailure::Timeout)];
        })
    };
    let gateway = Gateway::serving(&policy(400, 5_000)).await;
    let began = Instant::now();
    let answer = ask(gateway.address, get("/")).await;
    assert_eq!((answer.status().as_u16(), cause(&answer)), (504, "deadlineExceeded"));
    assert!(began.elapsed() >= Duration::from_millis(400));
    let mut hurried = get("/");
    hurried.headers_mut().insert("meshctl-deadline-ms", "5".parse().expect("a value"));
    assert_eq!(cause(&ask(gateway.address, hurried).await), "deadlineExceeded");

    let gateway = Gateway::serving(&policy(20_000, 50)).await;
    let before = origin.seen();
    let answer = ask(gateway.address, get("/")).await;
    assert_eq!((answer.status().as_u16(), cause(&answer)), (504, "attemptTimeout"));
    assert_eq!(origin.seen() - before, 3, "the first and two retries");
    assert_eq!(gateway.status().await.edges[0].failures, 3);
}

#[tokio::test]
async fn a_request_waits_for_an_instance_that_is_on_its_way() {
    let mut empty = snapshot(free_address(), &[]);
    let gateway = Gateway::serving(&empty).await;
    let answer = ask(gateway.address, get("/")).await;
    assert_eq!((answer.status().as_u16(), cause(&answer)), (503, "noEndpoint"));
    empty.services.get_mut("web").expect("web").expected = true;
    empty.generation = 2;
    let mut empty = with_policy(empty, |policy| policy.deadline = Span::from_secs(20));
    gateway.push(&empty).await;
    let waiting = tokio::spawn(ask(gateway.address, get("/")));
    gateway.until("one waits", |status| status.edges[0].in_flight == 1).await;
    let origin = Origin::saying("here").await;
    empty.services.insert("web".into(), endpoints(&[origin.address]));
    empty.generation = 3;
    gateway.push(&empty).await;
    assert_eq!(waiting.await.expect("joined").body(), "here");
}

#[tokio::test]
async fn where_policy_says_so_no_request_waits_for_an_instance() {
    let mut empty = snapshot(free_address(), &[]);
    empty.services.get_mut("web").expect("web").expected = true;
    let empty = with_policy(empty, |policy| {
        policy.deadline = Span::from_secs(20);
        policy.waits = false;
    });
    let gateway = Gateway::serving(&empty).await;
    let answer = ask(gateway.address, get("/")).await;
    assert_eq!((answer.status().as_u16(), cause(&answer)), (503, "noEndpoint"));
}

#[tokio::test]
async fn fallbacks_answer_and_say_so() {
    let origin = Origin::new(async |_, _| say(500, "broken")).await;
    let mut snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        policy.breaker.minimum_requests = 3;
        policy.fallback =
            Some(Fallback { status: None, content_type: None, body: r#"{"available":"unknown"}"#.into() });
    });
    let gateway = Gateway::serving(&snapshot).await;
    // The first three are the instance's failures, the fourth the open breaker.
    for _ in 0..4 {
        let answer = ask(gateway.address, get("/")).await;
        assert_eq!((answer.status().as_u16(), answer.body().as_str()), (200, r#"{"available":"unknown"}"#));
        assert_eq!(answer.headers()["meshctl-fallback"], "true");
        assert_eq!(answer.headers()["content-type"], "application/json");
    }
    assert_eq!(gateway.status().await.edges[0].fallbacks, 4);
    // An absent instance and a refused connection are answered in the same way.
    for service in [endpoints(&[]), endpoints(&[free_address()])] {
        snapshot.services.insert("web".into(), service);
        snapshot.generation += 1;
        gateway.push(&snapshot).await;
        assert_eq!(ask(gateway.address, get("/")).await.status(), 200);
    }
}

#[tokio::test]
async fn a_connection_that_went_stale_is_no_failure() {
    // Closes each connection after one answer without saying so, as servers do whose idle time is over.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4_096];
                let _read = stream.read(&mut buffer).await;
                let _sent =
                    tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
            });
        }
    });
    let gateway = Gateway::serving(&snapshot(free_address(), &[address])).await;
    for _ in 0..200 {
        assert_eq!(ask(gateway.address, get("/")).await.body(), "ok");
    }
    assert_eq!(gateway.status().await.edges[0].failures, 0);
}

#[tokio::test]
async fn slow_responses_hold_nobody_up() {
    let release = Arc::new(Notify::new());
    let held = Arc::clone(&release);
    let origin = Origin::new(move |_, request: hyper::Request<hyper::body::Incoming>| {
        let held = Arc::clone(&held);
        async move {
            if request.uri().path() == "/slow" {
                held.notified().await;
            }
            say(200, "")
        }
    })
    .await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        (policy.deadline, policy.attempt_timeout) = (Span::from_secs(60), Span::from_secs(60));
    });
    let gateway = Gateway::serving(&snapshot).await;
    // More than the connections that each thread opens without a second thought.
    let slow: Vec<_> = (0..200).map(|_| tokio::spawn(ask(gateway.address, get("/slow")))).collect();
    gateway.until("all slow ones are under way", |status| status.edges[0].in_flight == 200).await;
    while origin.seen() < 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(gateway.address, get("/quick")).await.status(), 200);
    release.notify_waiters();
    for answer in slow {
        assert_eq!(answer.await.expect("joined").status(), 200);
    }
}

#[tokio::test]
async fn retry_after_is_honoured_if_there_is_time() {
    let origin = Origin::new(async |number, request: hyper::Request<hyper::body::Incoming>| {
        let wait = if request.uri().path() == "/soon" { "1" } else { "3600" };
        let mut answer = say(if number == 1 { 200 } else { 503 }, "");
        answer.headers_mut().insert("retry-after", wait.parse().expect("a value"));
        answer
    })
    .await;
    let snapshot = with_policy(snapshot(free_address(), &[origin.address]), |p| p.deadline = Span::from_secs(60));
    let gateway = Gateway::serving(&snapshot).await;
    let began = Instant::now();
    assert_eq!(ask(gateway.address, get("/soon")).await.status(), 200);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let answer = ask(gateway.address, get("/much-later")).await;
    assert_eq!((answer.status().as_u16(), origin.seen()), (503, 3), "told at once, with the instance's own answer");
    assert_eq!(answer.headers()["retry-after"], "3600");
}

//! Bodies that take their time, other protocols on the same connection, and HTTP/2.

mod support;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meshctl_model::snapshot::{Listener, Serves};
use meshctl_model::units::Span;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

type Frames = mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>;

/// A body that is fed by hand.
fn fed() -> (Frames, impl Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static) {
    let (feed, frames) = mpsc::channel(1);
    (feed, StreamBody::new(ReceiverStream::new(frames)))
}

#[tokio::test]
async fn bytes_go_both_ways_as_they_come() {
    // Sends back what it gets, chunk by chunk.
    let origin = Origin::new(async |_, request: Request<Incoming>| Response::new(request.into_body())).await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let (feed, body) = fed();
    let request = Request::post("/echo").header("host", "test").body(body).expect("a request");
    let mut sender = connect(gateway.address).await;
    let response = sender.send_request(request).await.expect("an answer before the request has ended");
    let mut echoed = response.into_body();
    for word in ["one", "two", "three"] {
        feed.send(Ok(Frame::data(Bytes::from(word)))).await.expect("open");
        let frame = echoed.frame().await.expect("a frame").expect("whole");
        assert_eq!(frame.data_ref().expect("data"), word);
    }
    drop(feed);
    assert!(echoed.frame().await.is_none());
}

#[tokio::test]
async fn a_stream_outlives_the_deadline() {
    let (feed, body) = fed();
    let body = std::sync::Mutex::new(Some(body));
    let origin = Origin::new(move |_, _| {
        let body = body.lock().expect("unpoisoned").take().expect("asked once");
        async move { Response::builder().header("content-type", "text/event-stream").body(body).expect("a response") }
    })
    .await;
    let short = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        (policy.deadline, policy.attempt_timeout) = (Span::from_millis(150), Span::from_millis(150));
    });
    let gateway = Gateway::serving(&short).await;
    let mut events = connect(gateway.address).await.send_request(get("/events")).await.expect("begun").into_body();
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        feed.send(Ok(Frame::data(Bytes::from(format!("data: {round}\n\n"))))).await.expect("open");
        let frame = events.frame().await.expect("a frame").expect("not cut off");
        assert_eq!(frame.data_ref().expect("data"), &format!("data: {round}\n\n"));
    }
}

#[tokio::test]
async fn a_stalled_response_is_cut_off_at_the_idle_limit() {
    let (feed, body) = fed();
    let body = std::sync::Mutex::new(Some(body));
    let origin = Origin::new(move |_, _| {
        let body = body.lock().expect("unpoisoned").take().expect("asked once");
        async move { Response::new(body) }
    })
    .await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    snapshot.limits.idle_timeout_ms = 300;
    let gateway = Gateway::serving(&snapshot).await;
    let mut body = connect(gateway.address).await.send_request(get("/")).await.expect("begun").into_body();
    feed.send(Ok(Frame::data(Bytes::from("begun")))).await.expect("open");
    assert!(body.frame().await.expect("a frame").is_ok());
    assert!(body.frame().await.expect("not an end that looks whole").is_err());
    gateway.until("its place is free again", |status| status.edges[0].in_flight == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let (began, mut begun) = mpsc::channel(1);
    let origin = Origin::new(move |_, _| {
        let began = began.clone();
        async move {
            began.send(()).await.expect("open");
            std::future::pending::<Response<Full<Bytes>>>().await
        }
    })
    .await;
    let patient = with_policy(snapshot(free_address(), &[origin.address]), |policy| {
        (policy.deadline, policy.attempt_timeout) = (Span::from_secs(600), Span::from_secs(600));
    });
    let gateway = Gateway::serving(&patient).await;
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    begun.recv().await.expect("under way");
    drop(client);
    let status = gateway.until("let go of", |status| status.edges[0].in_flight == 0).await;
    assert_eq!((status.edges[0].failures, status.edges[0].requests), (0, 1));
}

#[tokio::test]
async fn trailers_and_large_bodies_arrive_whole() {
    let large = Bytes::from(vec![7u8; 5 << 20]);
    let sent = large.clone();
    let origin = Origin::new(move |_, _| {
        let frames = [
            Ok::<_, std::convert::Infallible>(Frame::data(sent.clone())),
            Ok(Frame::trailers(
                [("x-sum".parse().expect("a name"), "35".parse().expect("a value"))].into_iter().collect(),
            )),
        ];
        async move {
            let body = StreamBody::new(tokio_stream::iter(frames));
            Response::builder().header("trailer", "x-sum").body(body).expect("a response")
        }
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let mut request = get("/");
    request.headers_mut().insert("te", "trailers".parse().expect("a value"));
    let response = connect(gateway.address).await.send_request(request).await.expect("an answer");
    let whole = response.into_body().collect().await.expect("whole");
    assert_eq!(whole.trailers().expect("trailers")["x-sum"], "35");
    assert!(whole.to_bytes() == large);
}

#[tokio::test]
async fn answers_without_a_body_keep_their_framing() {
    let origin = Origin::new(async |_, request: Request<Incoming>| match request.uri().path() {
        "/204" => say(204, ""),
        "/304" => say(304, ""),
        _ => say(200, "12345"),
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let three = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /204 HTTP/1.1\r\nHost: a\r\n\r\nGET /304 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = raw(gateway.address, three.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 4, "{answer}");
    let head = answer.split("\r\n\r\n").next().expect("a head");
    assert!(head.contains("content-length: 5"), "{head}");
    assert!(answer.ends_with("12345"), "{answer}");
}

#[tokio::test]
async fn http_1_0_gets_what_it_understands() {
    let (feed, body) = fed();
    let body = std::sync::Mutex::new(Some(body));
    let origin = Origin::new(move |_, _| {
        let body = body.lock().expect("unpoisoned").take().expect("asked once");
        async move { Response::new(body) }
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let answer = tokio::spawn(async move { raw(gateway.address, b"GET / HTTP/1.0\r\n\r\n").await });
    feed.send(Ok(Frame::data(Bytes::from("plain")))).await.expect("open");
    drop(feed);
    let answer = answer.await.expect("joined");
    assert!(answer.ends_with("\r\n\r\nplain") && !answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn expect_100_is_answered_before_the_body() {
    let origin = Origin::new(async |_, request: Request<Incoming>| {
        say(200, request.into_body().collect().await.expect("a body").to_bytes())
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    client.write_all(head).await.expect("sent");
    let mut interim = [0; 25];
    client.read_exact(&mut interim).await.expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("body"), "{answer}");
}

/// Agrees to any protocol and sends everything back.
async fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a head"));
                }
                let head = String::from_utf8(head).expect("text");
                assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
                let agreed = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\n";
                stream.write_all(agreed).await.expect("sent");
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn upgraded(gateway: &Gateway) -> TcpStream {
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    let ask = b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    client.write_all(ask).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    assert!(
        head.starts_with("http/1.1 101")
            && head.contains("upgrade: websocket")
            && head.contains("sec-websocket-accept"),
        "{head}"
    );
    client
}

#[tokio::test]
async fn a_websocket_carries_bytes_both_ways_until_it_is_silent() {
    let mut snapshot = snapshot(free_address(), &[echo_server().await]);
    snapshot.limits.upgrade_idle_timeout_ms = 500;
    let gateway = Gateway::serving(&snapshot).await;
    let mut client = upgraded(&gateway).await;
    for size in [1, 100, 100_000] {
        let (sent, mut got) = (vec![size as u8; size], vec![0; size]);
        let (mut read, mut write) = client.split();
        let (wrote, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        wrote.expect("sent");
        read.expect("echoed");
        assert!(sent == got);
    }
    assert_eq!(gateway.status().await.edges[0].in_flight, 1, "it counts as under way");
    assert_eq!(client.read(&mut [0; 8]).await.expect("closed in order"), 0, "silence ends it");
    gateway.until("let go of", |status| status.edges[0].in_flight == 0).await;
}

#[tokio::test]
async fn an_upgrade_is_asked_for_however_it_is_spelled_and_may_be_declined() {
    let origin = Origin::new(async |_, request: Request<Incoming>| {
        let told = |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().expect("text"));
        say(200, format!("{}; {}; {}", told("connection"), told("upgrade"), told("sec-websocket-key")))
    })
    .await;
    let mut snapshot = snapshot(free_address(), &[origin.address]);
    let inner = free_address();
    snapshot.listeners.push(Listener { address: inner, serves: Serves::Edge("gateway:web".into()) });
    let gateway = Gateway::serving(&snapshot).await;
    for fields in [
        "Connection: Upgrade\r\nUpgrade: websocket",
        "connection: upgrade\r\nupgrade: websocket",
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket",
        "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket",
        "CONNECTION: UPGRADE\r\nUPGRADE: websocket",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0",
    ] {
        for address in [gateway.address, inner] {
            // A response that says 200 to an upgrade leaves the connection as it was: the second request ends it.
            let ask = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\nSec-WebSocket-Key: x\r\n\r\n");
            let ask = format!("{ask}GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = raw(address, ask.as_bytes()).await;
            assert!(answer.contains("upgrade; websocket; x") && answer.ends_with("-; -; -"), "{fields}: {answer}");
        }
    }
}

#[tokio::test]
async fn http_2_by_prior_knowledge() {
    let origin = Origin::new(async |_, request: Request<Incoming>| {
        let host = request.headers()["host"].to_str().expect("text").to_owned();
        let version = format!("{:?}", request.version());
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        say(200, format!("{version} {host} {}", body.len()))
    })
    .await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let stream = TcpStream::connect(gateway.address).await.expect("connected");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("ready");
    tokio::spawn(connection);
    let mut answers = tokio::task::JoinSet::new();
    for size in 0..100usize {
        let mut sender = sender.clone();
        answers.spawn(async move {
            let uri = format!("http://shop.local/{size}");
            let body = Full::new(Bytes::from("x".repeat(size * 100)));
            let request = Request::post(uri).body(body).expect("a request");
            let response = sender.send_request(request).await.expect("an answer");
            assert_eq!(response.headers()["meshctl-trace-id"].len(), 32);
            assert_eq!(whole(response).await.into_body(), format!("HTTP/1.1 shop.local {}", size * 100));
        });
    }
    answers.join_all().await;
    assert_eq!(gateway.status().await.connections, 1);
}

#[tokio::test]
async fn a_preface_in_pieces_is_still_http_2() {
    let origin = Origin::saying("ok").await;
    let gateway = Gateway::serving(&snapshot(free_address(), &[origin.address])).await;
    let mut client = TcpStream::connect(gateway.address).await.expect("connected");
    client.set_nodelay(true).expect("set");
    for piece in ["PRI * ", "HTTP/2.0\r\n\r\n", "SM\r\n\r\n"] {
        client.write_all(piece.as_bytes()).await.expect("sent");
        tokio::task::yield_now().await;
    }
    let mut frame = [0; 9];
    client.read_exact(&mut frame).await.expect("a frame");
    assert_eq!(frame[3], 4, "SETTINGS come first");
}

//! What a check says of an instance, well and unwell, in the words that an operator reads.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use meshctl_drivers::runtime::conformance::{script, within};
use meshctl_drivers::runtime::probe;
use meshctl_model::instance::{Check, SpecEnv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LONG: Duration = Duration::from_secs(60);

async fn check(check: Check, address: &str, timeout: Duration) -> Result<(), String> {
    let scratch = tempfile::tempdir().unwrap();
    let mut spec = script("checked", "", scratch.path());
    spec.health.check = check;
    spec.env.insert("WORD".into(), SpecEnv::Text("hello".into()));
    within("a check", probe::check(&spec, scratch.path(), address, timeout)).await
}

/// Answers every connection with `answer`, and tells the request line and headers of the first.
async fn server(answer: &'static [u8]) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(answer).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    (address, serving)
}

/// An address on which nothing listens.
async fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn http_answers_are_judged_by_their_status() {
    let health = || Check::Http("/healthz?deep".into());
    let (address, request) = server(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(check(health(), &address, LONG).await, Ok(()));
    let request = request.await.unwrap();
    assert!(request.starts_with("GET /healthz?deep HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: {address}\r\n")), "{request}");

    let (address, _) =
        server(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(check(health(), &address, LONG).await, Ok(()), "a redirect is an answer and is not followed");

    let (address, _) = server(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy").await;
    assert_eq!(check(health(), &address, LONG).await, Err("GET /healthz?deep answered 503".into()));

    let (address, _) = server(b"").await;
    let said = check(health(), &address, LONG).await;
    assert_eq!(said, Err("GET /healthz?deep: the connection was closed without an answer".into()));

    let (address, _) = server(b"SSH-2.0-OpenSSH\r\n\r\n").await;
    let said = check(health(), &address, LONG).await.unwrap_err();
    assert!(said.starts_with("GET /healthz?deep: "), "{said}");
}

#[tokio::test]
async fn who_does_not_listen_or_answer_is_named() {
    let address = nowhere().await;
    for kind in [Check::Tcp, Check::Http("/".into())] {
        assert_eq!(
            check(kind, &address, LONG).await,
            Err(format!("nothing listens on its port: connection refused on {address}"))
        );
    }
    // The kernel accepts for it, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    assert_eq!(check(Check::Tcp, &address, LONG).await, Ok(()));
    let said = check(Check::Http("/".into()), &address, Duration::from_millis(50)).await;
    assert_eq!(said, Err("GET /: no answer within 50ms".into()));
    assert_eq!(check(Check::Running, &nowhere().await, LONG).await, Ok(()));
}

fn shell(script: &str) -> Check {
    Check::Exec(["sh", "-c", script].map(str::to_owned).to_vec())
}

#[tokio::test]
async fn a_check_program_is_judged_by_its_end() {
    let address = nowhere().await;
    assert_eq!(check(shell(r#"test "$WORD $MESHCTL_INSTANCE" = "hello checked""#), &address, LONG).await, Ok(()));
    let said = check(shell("echo first >&2; echo 'no disk' >&2; echo >&2; exit 2"), &address, LONG).await;
    assert_eq!(said, Err("check program exited with status 2: no disk".into()));
    let said = check(shell("kill -9 $$"), &address, LONG).await.unwrap_err();
    assert!(said.contains("signal: 9"), "{said}");
    let said = check(Check::Exec(vec!["/no/such/check".into()]), &address, LONG).await.unwrap_err();
    assert!(said.starts_with("cannot execute the check program /no/such/check: "), "{said}");
    // What it leaves running holds its stderr open, and ends with it all the same.
    assert_eq!(check(shell("sleep 1000 & exit 0"), &address, LONG).await, Ok(()));
}

#[tokio::test]
async fn a_check_program_that_hangs_ends_with_its_time_and_its_children() {
    let scratch = tempfile::tempdir().unwrap();
    let fifo = scratch.path().join("alive");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    // Our own writer keeps the fifo open until the check has opened it.
    let mut alive = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
    let ours = tokio::net::unix::pipe::OpenOptions::new().open_sender(&fifo).unwrap();
    let mut spec = script("checked", "", scratch.path());
    spec.health.check = shell("exec >alive; echo up; sleep 1000 & wait");
    let mut word = [0; 3];
    tokio::select! {
        said = probe::check(&spec, scratch.path(), "", LONG) => panic!("{said:?}"),
        read = alive.read_exact(&mut word) => assert_eq!((read.unwrap(), &word), (3, b"up\n")),
    }
    drop(ours);
    // The check was given up, as it is when its time is over. The fifo ends when its last writer is gone.
    within("the end of all writers", alive.read_to_end(&mut Vec::new())).await.unwrap();

    spec.health.check = shell("exec sleep 1000");
    let said = within("a check", probe::check(&spec, scratch.path(), "", Duration::from_millis(20))).await;
    assert_eq!(said, Err("check program did not end within 20ms".into()));
}

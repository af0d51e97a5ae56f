//! Asks an instance whether it is well.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use meshctl_model::instance::{Check, InstanceSpec};
use meshctl_model::units::Span;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::process::{end_of, environment};

/// What is read of an answer's body, and kept of a program's errors. The rest does not matter to anyone.
const ENOUGH: usize = 64 * 1024;
/// How long the last words of a check program may take to arrive.
const REST: Duration = Duration::from_millis(100);

/// Runs the check of an instance once. `address` is where it listens (`127.0.0.1:20014`), `state_dir` labels the processes
/// of exec checks, which are processes of the instance.
///
/// # Errors
/// Why it is not well, for people: `GET /healthz answered 503`, `GET /healthz: no answer within 1s`.
pub async fn check(spec: &InstanceSpec, state_dir: &Path, address: &str, timeout: Duration) -> Result<(), String> {
    let outcome = async {
        match &spec.health.check {
            Check::Running => Ok(()),
            Check::Tcp => connect(address).await.map(drop),
            Check::Http(path) => get(address, path).await,
            Check::Exec(words) => execute(spec, state_dir, words).await,
        }
    };
    match tokio::time::timeout(timeout, outcome).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let within = Span::from_millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            Err(match &spec.health.check {
                Check::Exec(_) => format!("check program did not end within {within}"),
                Check::Http(path) => format!("GET {path}: no answer within {within}"),
                _ => format!("no answer within {within}"),
            })
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("nothing listens on its port: connection refused on {address}"),
        _ => format!("cannot connect to {address}: {error}"),
    })
}

async fn get(address: &str, path: &str) -> Result<(), String> {
    let stream = connect(address).await?;
    let failed = |error: hyper::Error| {
        if error.is_incomplete_message() {
            format!("GET {path}: the connection was closed without an answer")
        } else {
            format!("GET {path}: {error}")
        }
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(failed)?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, address)
        .header(hyper::header::USER_AGENT, "meshctl-health")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| format!("GET {path}: {error}"))?;
    let exchange = async move {
        let mut response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let mut read = 0;
        // To its end, so that a server does not see its answer cut off. A body that breaks off is not what was asked about.
        while read < ENOUGH
            && let Some(Ok(frame)) = response.frame().await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
        match status.as_u16() {
            200..=399 => Ok(()),
            status => Err(format!("GET {path} answered {status}")),
        }
    };
    // The connection does the work of the exchange, here and not in a task, so that both end when the time is over.
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        _ = connection => exchange.await,
    }
}

/// A process group that ends with the value. Its leader must not be reaped before that, or the group may be a stranger's.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

async fn execute(spec: &InstanceSpec, state_dir: &Path, words: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Err("the check program is empty".to_owned()) };
    let cannot = |error: io::Error| format!("cannot execute the check program {program}: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment(spec, state_dir).map_err(|refusal| refusal.to_string())?)
        .current_dir(&spec.working_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(cannot)?;
    // Declared after the child, so that it is dropped before it when the time is over.
    let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let group = leader.map(Group);
    let mut errors = Vec::new();
    if let (Some(stderr), Some(leader)) = (child.stderr.take(), leader) {
        let end = pidfd_open(leader, PidfdFlags::empty()).map_err(|error| cannot(error.into()))?;
        let mut read = pin!(read_end(stderr, &mut errors));
        let mut ended = pin!(end_of(end));
        tokio::select! {
            _ = &mut read => ended.await.map_err(cannot)?,
            ended = &mut ended => {
                ended.map_err(cannot)?;
                // What it wrote is in the pipe. A descendant that has left the group can hold the pipe open for ever.
                let _ = tokio::time::timeout(REST, read).await;
            }
        }
    }
    drop(group);
    let status = child.wait().await.map_err(cannot)?;
    if status.success() {
        return Ok(());
    }
    let how = match status.code() {
        Some(code) => format!("exited with status {code}"),
        None => format!("was ended by a {status}"),
    };
    let text = String::from_utf8_lossy(&errors);
    Err(match text.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!("check program {how}: {line}"),
        None => format!("check program {how}"),
    })
}

/// Reads everything and keeps the end of it.
async fn read_end(mut stream: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    // A pipe that cannot be read says as little as one that is over.
    while stream.read_buf(kept).await.is_ok_and(|read| read > 0) {
        let surplus = kept.len().saturating_sub(ENOUGH);
        kept.drain(..surplus);
    }
}

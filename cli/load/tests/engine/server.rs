//! An HTTP/1.1 server that does what a test tells it, byte for byte, on a thread of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// A request as it came.
pub struct Seen {
    /// From 1, over all connections.
    pub n: u64,
    pub head: String,
    pub body: String,
}

impl Seen {
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub enum Reply {
    /// These bytes.
    Send(Vec<u8>),
    /// These bytes one by one, each in a packet of its own.
    Trickle(Vec<u8>),
    /// These bytes, and the end of the connection.
    Close(Vec<u8>),
    /// A reset after these bytes.
    Reset(Vec<u8>),
}

pub fn ok(body: &str) -> Vec<u8> {
    with_status("200 OK", body)
}

pub fn with_status(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub struct Server {
    pub address: SocketAddr,
    seen: Arc<AtomicU64>,
    // Ends with the server: all connections are closed then.
    runtime: Option<Runtime>,
}

impl Server {
    pub fn start<F, R>(reply: F) -> Self
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("its address");
        let seen = Arc::new(AtomicU64::new(0));
        let (reply, count) = (Arc::new(reply), seen.clone());
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (reply, count) = (reply.clone(), count.clone());
                tokio::spawn(async move {
                    // A client that went away is no matter of the server's.
                    let _ = converse(stream, &*reply, &count).await;
                });
            }
        });
        Self { address, seen, runtime: Some(runtime) }
    }

    /// How many requests have come.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn converse<F, R>(mut stream: TcpStream, reply: &F, count: &AtomicU64) -> std::io::Result<()>
where
    F: Fn(Seen) -> R,
    R: Future<Output = Reply>,
{
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let end = head_end + 4 + length;
        while bytes.len() < end {
            stream.read_buf(&mut bytes).await?;
        }
        let body = String::from_utf8_lossy(&bytes[head_end + 4..end]).into_owned();
        bytes.drain(..end);
        let n = count.fetch_add(1, Ordering::SeqCst) + 1;
        match reply(Seen { n, head, body }).await {
            Reply::Send(answer) => stream.write_all(&answer).await?,
            Reply::Trickle(answer) => {
                for byte in answer {
                    stream.write_all(&[byte]).await?;
                    tokio::task::yield_now().await;
                }
            }
            Reply::Close(answer) => {
                stream.write_all(&answer).await?;
                return stream.shutdown().await;
            }
            Reply::Reset(answer) => {
                stream.write_all(&answer).await?;
                return socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
            }
        }
    }
}

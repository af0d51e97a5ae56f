//! One request, one answer.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;
use tokio::runtime::Runtime;

/// Carries the requests and the commands of all tests.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("an event loop")
});

/// A client that goes to the address itself, whatever proxies the environment names, and keeps no connection between
/// requests, so that every request of a test finds its own way.
static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(30))
        .build()
        .expect("an HTTP client")
});

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|why| panic!("not JSON ({why}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A request to a program of ours behind a Unix socket.
pub(crate) fn send_to_socket(socket: &Path, method: &str, path: &str, body: Vec<u8>) -> Result<Answer, String> {
    let client =
        Client::builder().unix_socket(socket).timeout(Duration::from_secs(90)).build().expect("an HTTP client");
    exchange(&client, method, &format!("http://meshctl{path}"), &[("content-type", "application/json")], body)
}

/// `GET url`; an error is a request that got no answer.
pub fn get(url: &str) -> Result<Answer, String> {
    send("GET", url, &[], Vec::new())
}

/// Sends a request; an error is one that got no whole answer.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer, String> {
    exchange(&CLIENT, method, url, headers, body)
}

fn exchange(
    client: &Client,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<Answer, String> {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    RUNTIME.block_on(async {
        let mut request = client.request(method, url).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.map_err(|why| format!("{why:?}"))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.map_err(|why| format!("{why:?}"))?.to_vec();
        Ok(Answer { status, headers, body })
    })
}

//! Steady requests in the background while a test does something to the system.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Load ends by itself after this long, so that a test that fails leaves none.
const LIMIT: Duration = Duration::from_secs(180);
/// Between the requests of one connection: enough to notice every gap, little enough to leave the machine to the system.
const PAUSE: Duration = Duration::from_millis(2);

/// Connections that send `GET` after `GET` until [`Load::finish`].
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    succeeded: AtomicU64,
    failed: Mutex<BTreeMap<String, u64>>,
}

/// What became of the requests.
#[derive(Debug)]
pub struct Tally {
    pub succeeded: u64,
    /// By reason.
    pub failed: BTreeMap<String, u64>,
}

impl Tally {
    #[track_caller]
    pub fn expect_no_failure(&self) {
        assert!(self.failed.is_empty(), "of {} requests some failed: {:#?}", self.succeeded, self.failed);
        assert!(self.succeeded > 0, "there was no load");
    }
}

impl Load {
    /// Starts `connections` kept-alive connections to `url`.
    pub fn start(url: &str, connections: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let (url, inner) = (url.to_owned(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
                runtime.block_on(async {
                    let mut workers = tokio::task::JoinSet::new();
                    for _ in 0..connections {
                        workers.spawn(work(url.clone(), Arc::clone(&inner)));
                    }
                    workers.join_all().await;
                });
            })
            .expect("a thread for the load");
        Self { shared, thread: Some(thread) }
    }

    /// Returns when `requests` more have succeeded: whatever happens in between happens under load.
    #[track_caller]
    pub fn pass(&self, requests: u64) {
        let until = self.shared.succeeded.load(Ordering::Relaxed) + requests;
        crate::wait_until("load to pass", || self.shared.succeeded.load(Ordering::Relaxed) >= until);
    }

    /// Ends the load and tells what became of it.
    pub fn finish(mut self) -> Tally {
        self.stop();
        let failed = std::mem::take(&mut *self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner));
        Tally { succeeded: self.shared.succeeded.load(Ordering::Relaxed), failed }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn work(url: String, shared: Arc<Shared>) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(1)
        .timeout(Duration::from_secs(10))
        .build()
        .expect("an HTTP client");
    let began = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) && began.elapsed() < LIMIT {
        match whole(&client, &url).await {
            Ok(()) => {
                shared.succeeded.fetch_add(1, Ordering::Relaxed);
            }
            Err(reason) => {
                *shared.failed.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A request succeeds when its answer is 2xx and came whole.
async fn whole(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let response = client.get(url).send().await.map_err(|why| innermost(&why))?;
    let status = response.status();
    let body = response.text().await.map_err(|why| format!("the body broke off: {}", innermost(&why)))?;
    if status.is_success() { Ok(()) } else { Err(format!("{status}: {body}")) }
}

/// The cause beneath the wrappings, so that equal failures count together.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

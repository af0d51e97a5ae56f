//! The embedded broker as a real process: against the suite of its family, and against what only it can suffer.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod full;
mod place;
mod silence;
mod support;

use meshctl_drivers::broker::conformance::conformance;
use support::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let bench = Bench::start().await;
    conformance(&bench).await;
}

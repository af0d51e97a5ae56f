//! Traces: what one request and the messages that follow from it passed through, from everybody who took part.
//!
//! `follow` reads gateways and couriers and recalls from them what they did not record; `listener` takes what services send;
//! `own` is what the daemon says itself. All of it goes through `otlp` or as it is into the `store`, which `write`s many at
//! once and removes what is too old or too much; `read` finds it again, and `view` shows it. Nothing here is in the way of a
//! request or a message: what finds no room is dropped, counted and shown.

mod follow;
mod id;
mod listener;
#[cfg(test)]
mod measure;
mod otlp;
pub mod own;
mod packed;
mod read;
mod store;
mod summary;
#[cfg(test)]
mod tests;
mod view;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshctl_model::event::EventSeverity;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use follow::follow_for_ever;
pub use listener::take;

use crate::control::Message;
use crate::report::Report;
use crate::store::StoreError;
use follow::{Process, Recall};
use store::{Batch, Notice, Store, lock};

/// Rates are over this time.
const WINDOW: Duration = Duration::from_secs(10);

/// The store, and who can be asked for more. Cheap to clone.
#[derive(Clone)]
pub struct Traces {
    store: Store,
    /// Who remembers the last seconds, by instance.
    processes: Arc<Mutex<BTreeMap<String, Process>>>,
    recall: Arc<Mutex<Recall>>,
    /// Spans stored, oldest first: what the rate is made of.
    samples: Arc<Mutex<VecDeque<(Instant, u64)>>>,
}

impl Traces {
    /// Opens or makes the file. A damaged one is set aside, with the name that it has then, and a new one begun.
    ///
    /// # Errors
    /// When it cannot be opened, or was written by a newer version.
    pub fn open(path: &Path, messages: mpsc::Sender<Message>) -> Result<(Self, Option<String>), StoreError> {
        let tell = move |notice| {
            let (severity, kind, message) = match notice {
                Notice::Unwritable(why) => {
                    let message = format!("{why}; spans are dropped and counted, and nothing else suffers");
                    (EventSeverity::Warning, "traces.unwritable", message)
                }
                Notice::Writable => (EventSeverity::Info, "traces.writable", "traces can be written again".to_owned()),
            };
            let report = Report::Happened { severity, kind, subject: "traces".into(), message, data: Value::Null };
            // The writer waits for nobody: a loop with a thousand things to do has its own troubles to tell of.
            if messages.try_send(Message::Report(report)).is_err() {
                tracing::warn!(kind, "nobody could be told");
            }
        };
        let (store, aside) = Store::open(path, Box::new(tell))?;
        let traces = Self { store, processes: Arc::default(), recall: Arc::default(), samples: Arc::default() };
        Ok((traces, aside))
    }

    /// Takes in what the daemon says itself.
    pub fn record(&self, own::Said { spans, unsampled }: own::Said) {
        let (count, bytes) = (spans.len(), spans.len() << 10);
        if count > 0 && self.store.offer(Batch { spans, bytes }).is_err() {
            self.store.dropped(count);
        }
        lock(&self.recall).want(unsampled, Instant::now());
    }

    /// Spans stored a second, over ten seconds.
    pub fn spans_per_s(&self) -> f64 {
        let samples = lock(&self.samples);
        let (Some((since, before)), Some((until, now))) = (samples.front(), samples.back()) else { return 0.0 };
        let seconds = until.duration_since(*since).as_secs_f64();
        if seconds > 0.0 { (now - before) as f64 / seconds } else { 0.0 }
    }

    /// What is done from time to time.
    fn tick(&self) {
        let now = Instant::now();
        let mut samples = lock(&self.samples);
        samples.push_back((now, self.store.stored()));
        while samples.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            samples.pop_front();
        }
        self.store.tend();
    }
}

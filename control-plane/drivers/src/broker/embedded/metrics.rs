//! What the broker counts of itself, since it started.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::broker::ChannelState;

#[derive(Default)]
pub struct Metrics {
    accepted: AtomicU64,
    settled: AtomicU64,
    refused: AtomicU64,
    commits: AtomicU64,
    commit_micros: AtomicU64,
    slowest_commit_micros: AtomicU64,
    batched: AtomicU64,
}

impl Metrics {
    pub fn committed(&self, took: Duration, requests: usize) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.slowest_commit_micros.fetch_max(micros, Ordering::Relaxed);
        self.batched.fetch_add(requests as u64, Ordering::Relaxed);
    }

    pub fn accepted(&self, messages: u64) {
        self.accepted.fetch_add(messages, Ordering::Relaxed);
    }

    pub fn settled(&self, messages: u64) {
        self.settled.fetch_add(messages, Ordering::Relaxed);
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// In the text format of Prometheus.
    pub fn render(&self, channels: &[ChannelState]) -> String {
        let mut out = String::new();
        let own = [
            (
                "accepted_messages_total",
                "counter",
                "Messages made durable.",
                self.accepted.load(Ordering::Relaxed) as f64,
            ),
            ("settled_messages_total", "counter", "Deliveries settled.", self.settled.load(Ordering::Relaxed) as f64),
            (
                "refused_requests_total",
                "counter",
                "Requests refused for want of room.",
                self.refused.load(Ordering::Relaxed) as f64,
            ),
            ("commits_total", "counter", "Transactions made durable.", self.commits.load(Ordering::Relaxed) as f64),
            (
                "commit_seconds_total",
                "counter",
                "Time they took.",
                self.commit_micros.load(Ordering::Relaxed) as f64 / 1e6,
            ),
            (
                "commit_seconds_max",
                "gauge",
                "The longest of them.",
                self.slowest_commit_micros.load(Ordering::Relaxed) as f64 / 1e6,
            ),
            (
                "committed_requests_total",
                "counter",
                "Requests they held; by commits, the size of a batch.",
                self.batched.load(Ordering::Relaxed) as f64,
            ),
        ];
        for (name, kind, help, value) in own {
            family(&mut out, name, kind, help);
            let _ = writeln!(out, "meshctl_broker_{name} {value}");
        }
        type OfChannel = fn(&ChannelState) -> f64;
        let by_channel: [(&str, &str, &str, OfChannel); 3] = [
            ("channel_accepted_messages_total", "counter", "Accepted ever.", |channel| channel.accepted as f64),
            ("channel_kept_messages", "gauge", "Kept now.", |channel| channel.kept as f64),
            ("channel_kept_bytes", "gauge", "Of keys and payloads kept now.", |channel| channel.kept_bytes as f64),
        ];
        for (name, kind, help, value) in by_channel {
            family(&mut out, name, kind, help);
            for channel in channels {
                let _ =
                    writeln!(out, "meshctl_broker_{name}{{channel=\"{}\"}} {}", escape(&channel.name), value(channel));
            }
        }
        type OfGroup = fn(&crate::broker::GroupState) -> f64;
        let by_group: [(&str, &str, &str, OfGroup); 6] = [
            ("group_processed_messages_total", "counter", "Settled as processed.", |group| group.processed as f64),
            ("group_moved_messages_total", "counter", "Moved to another channel.", |group| group.moved as f64),
            ("group_unsettled_messages", "gauge", "Not settled: the lag.", |group| group.unsettled as f64),
            ("group_in_flight_messages", "gauge", "Of those, with a consumer.", |group| group.in_flight as f64),
            ("group_consumers", "gauge", "Consumers.", |group| f64::from(group.consumers)),
            ("group_paused", "gauge", "1 while paused.", |group| f64::from(u8::from(group.paused.is_some()))),
        ];
        for (name, kind, help, value) in by_group {
            family(&mut out, name, kind, help);
            for channel in channels {
                for group in &channel.groups {
                    let labels = format!("channel=\"{}\",group=\"{}\"", escape(&channel.name), escape(&group.name));
                    let _ = writeln!(out, "meshctl_broker_{name}{{{labels}}} {}", value(group));
                }
            }
        }
        out
    }
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP meshctl_broker_{name} {help}\n# TYPE meshctl_broker_{name} {kind}");
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

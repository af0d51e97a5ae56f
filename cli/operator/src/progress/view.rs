//! The picture on stderr: on a terminal a block of lines that follows it, in a pipe one line for each change.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshctl_api::view::Status;

use super::lines::{arrived, waiting};
use crate::output;

/// Lines of a terminal that are left to what stands above.
const MARGIN: usize = 3;

pub(super) enum View {
    Quiet,
    /// What was last said about each thing.
    Plain(BTreeMap<String, String>),
    Drawn(Drawn),
}

pub(super) struct Drawn {
    block: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl View {
    pub(super) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if output::can_draw() {
            let block = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            Self::Drawn(Drawn { block, lines: Vec::new() })
        } else {
            Self::Plain(BTreeMap::new())
        }
    }

    pub(super) fn show(&mut self, status: &Status) {
        match self {
            Self::Quiet => {}
            Self::Plain(said) => changes(said, status).iter().for_each(output::say),
            Self::Drawn(drawn) => drawn.show(waiting(status)),
        }
    }

    /// Says something above the picture.
    pub(super) fn say(&self, text: impl Display) {
        match self {
            Self::Quiet => {}
            Self::Plain(_) => output::say(text),
            Self::Drawn(drawn) => drawn.block.suspend(|| output::say(text)),
        }
    }

    /// Takes the block away; what comes next is the result.
    pub(super) fn close(&mut self) {
        if let Self::Drawn(drawn) = self {
            drawn.show(Vec::new());
        }
    }
}

/// The lines about what is different from what was `said`.
fn changes(said: &mut BTreeMap<String, String>, status: &Status) -> Vec<String> {
    let now: BTreeMap<String, String> = waiting(status).into_iter().collect();
    let gone = said.keys().filter(|name| !now.contains_key(*name)).map(|name| arrived(status, name));
    let new = now.iter().filter(|(name, line)| said.get(*name) != Some(line)).map(|(_, line)| line.clone());
    let lines = gone.chain(new).collect();
    *said = now;
    lines
}

impl Drawn {
    fn show(&mut self, waiting: Vec<(String, String)>) {
        let height: usize =
            terminal_size::terminal_size_of(std::io::stderr()).map_or(24, |(_, height)| height.0.into());
        let room = height.saturating_sub(MARGIN).max(1);
        let mut texts: Vec<String> = waiting.into_iter().map(|(_, line)| line).collect();
        if texts.len() > room {
            let more = texts.len() - (room - 1);
            texts.truncate(room - 1);
            texts.push(format!("and {more} more"));
        }
        while self.lines.len() < texts.len() {
            let line = self.block.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                line.set_style(style);
            }
            line.enable_steady_tick(Duration::from_millis(120));
            self.lines.push(line);
        }
        for line in self.lines.drain(texts.len()..) {
            line.finish_and_clear();
            self.block.remove(&line);
        }
        for (line, text) in self.lines.iter().zip(texts) {
            line.set_message(text.replace(char::is_control, " "));
        }
    }
}

#[cfg(test)]
mod tests {
    use meshctl_api::view::Told;
    use serde_json::json;

    use super::*;
    use crate::progress::fold;

    fn service(name: &str, ready: u32, state: &str, blocked_by: Option<&str>, reason: Option<&str>) -> Told {
        let instance = json!({
            "id": format!("{name}-{}", ready + 1), "service": name, "pid": 1, "address": null, "reason": reason,
            "state": if state == "ready" { "ready" } else { "starting" }, "startedAt": null,
            "since": "2026-11-23T10:00:00Z", "restarts": 0, "revision": 1
        });
        let body = json!({
            "name": name, "kind": "builtin", "serviceId": name, "desired": 2, "ready": ready, "state": state,
            "blockedBy": blocked_by, "reason": null, "endpoint": null, "labels": {},
            "instances": if state == "blocked" { json!([]) } else { json!([instance]) }
        });
        serde_json::from_value(json!({ "kind": "service", "body": body })).expect("a service")
    }

    #[test]
    fn a_pipe_gets_one_line_for_each_change() {
        let empty = json!({ "kind": "snapshot", "body": {
            "apiVersion": "meshctl/v1", "kind": "Status", "name": "shop", "revision": 1, "ready": false, "items": [],
            "gateways": [], "lastEventId": "1"
        }});
        let refused = Some("health check: connection refused on 127.0.0.1:20014");
        let mut lines = Vec::new();
        let (mut status, mut said) = (None, BTreeMap::new());
        for told in [
            serde_json::from_value(empty).expect("a snapshot"),
            service("orders", 0, "starting", None, None),
            service("shipping", 0, "blocked", Some("orders"), None),
            service("orders", 1, "starting", None, refused),
            service("orders", 1, "starting", None, refused),
            service("orders", 2, "ready", None, None),
            Told::ServiceGone("shipping".into()),
        ] {
            fold(&mut status, told);
            lines.extend(changes(&mut said, status.as_ref().expect("a snapshot came first")));
        }
        insta::assert_snapshot!(lines.join("\n"), @r"
        orders 0/2 ready · orders-1: starting
        shipping waits for orders
        orders 1/2 ready · orders-2: health check: connection refused on 127.0.0.1:20014
        orders 2/2 ready
        shipping gone
        ");
    }
}

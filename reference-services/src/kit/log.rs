//! One JSON object per line on stdout. A service that fails thousands of times a second says so without filling a disk.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Lines of one second; more are counted and told with the next line.
const LINES_PER_SECOND: u32 = 100;

pub(super) struct Log {
    instance: String,
    second: Mutex<Second>,
}

struct Second {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl Log {
    pub(super) fn new(instance: &str) -> Self {
        let second = Second { began: Instant::now(), lines: 0, left_out: 0 };
        Self { instance: instance.into(), second: Mutex::new(second) }
    }

    /// Writes `message` with the object `fields` beside it.
    pub(super) fn line(&self, level: &str, message: Arguments<'_>, fields: Value) {
        let Some(left_out) = self.second.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now()) else {
            return;
        };
        let mut line = serde_json::json!({
            "at": jiff::Timestamp::now(),
            "level": level,
            "instance": self.instance,
            "message": message.to_string(),
        });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
            line.extend(fields);
            if left_out > 0 {
                line.insert("linesLeftOut".into(), left_out.into());
            }
        }
        // A log that nobody reads any more is no reason to stop serving.
        let _unread = writeln!(std::io::stdout().lock(), "{line}");
    }
}

impl Second {
    /// `None` where this second has had its lines; otherwise how many were left out before this one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.began) >= Duration::from_secs(1) {
            self.began = now;
            self.lines = 0;
        }
        if self.lines >= LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let began = Instant::now();
        let mut second = Second { began, lines: 0, left_out: 0 };
        let admitted = (0..150).filter(|_| second.admit(began).is_some()).count();
        assert_eq!(admitted, 100);
        assert_eq!(second.admit(began + Duration::from_secs(1)), Some(50));
        assert_eq!(second.admit(began + Duration::from_secs(1)), Some(0));
    }
}

//! `GET /spans`: who reads is given what is recorded, a batch at a time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use meshctl_drivers::spans::{RECALL_AT_ONCE, Spans, frame};
use tokio::sync::{Notify, mpsc};

/// How long a batch waits for more after its first span; a tenth of a second is what is promised.
const BATCH: Duration = Duration::from_millis(50);
/// Frames that the connection has not taken: a slow reader leaves everything else where it is, in the rings.
const FRAMES: usize = 2;

/// A process whose spans can be read.
pub(crate) trait Source: 'static {
    fn reading(&self) -> &Reading;

    /// The oldest that are recorded and not taken, and how many they are; nobody else gets these.
    async fn take(&self) -> (Spans, usize);

    /// Everything that is remembered of these traces.
    async fn recall(&self, traces: Vec<u128>) -> Spans;
}

/// Who reads, and what is to be told to whom.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    turn: Cell<u64>,
    /// There is another reader, or an end.
    turned: Notify,
    ending: Cell<bool>,
    /// Taken, and not delivered.
    lost: Cell<u64>,
}

impl Reading {
    pub(crate) fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Nothing more will be recorded: the reader gets what there is, and an end.
    pub(crate) fn end(&self) {
        self.ending.set(true);
        self.turned.notify_waiters();
    }

    fn begin(&self) -> u64 {
        let turn = self.turn.get() + 1;
        self.turn.set(turn);
        self.turned.notify_waiters();
        turn
    }

    /// Returns when this turn is over.
    async fn over(&self, turn: u64) {
        loop {
            let turned = self.turned.notified();
            if self.turn.get() != turn {
                return;
            }
            turned.await;
        }
    }

    async fn ending(&self) {
        loop {
            let turned = self.turned.notified();
            if self.ending.get() {
                return;
            }
            turned.await;
        }
    }
}

/// Frames for a reader, who takes over from the one before. `recorded` is told when there is something to take.
pub(crate) fn stream(source: Rc<impl Source>, recorded: impl AsyncFn() + 'static) -> mpsc::Receiver<Bytes> {
    let (send, frames) = mpsc::channel(FRAMES);
    let turn = source.reading().begin();
    tokio::task::spawn_local(async move {
        let reading = source.reading();
        loop {
            let last = reading.ending.get();
            let (batch, count) = source.take().await;
            if count > 0 {
                let sent = tokio::select! {
                    sent = send.send(frame(&batch)) => sent.is_ok(),
                    () = reading.over(turn) => false,
                };
                if !sent {
                    reading.lost.set(reading.lost.get() + count as u64);
                    return;
                }
            }
            if last && count == 0 {
                return;
            }
            if count < super::AT_ONCE && !last {
                tokio::select! {
                    () = async { recorded().await; tokio::time::sleep(BATCH).await } => {}
                    () = reading.ending() => {}
                    () = reading.over(turn) => return,
                    () = send.closed() => return,
                }
            }
        }
    });
    frames
}

/// The traces that a query asks for; `None` for everything that is recorded from now on.
///
/// # Errors
/// In words, when it is no such query.
pub(crate) fn asked_for(query: Option<&str>) -> Result<Option<Vec<u128>>, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(None) };
    let ids = query.strip_prefix("trace=").ok_or("only trace=ID,ID can be asked for")?;
    let id = |text: &str| {
        let hex = text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
        let id = hex.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        id.ok_or_else(|| format!("`{text}` is no trace id: 32 hexadecimal digits"))
    };
    let ids = ids.split(',').map(id).collect::<Result<Vec<_>, _>>()?;
    if ids.len() > RECALL_AT_ONCE {
        return Err(format!("{} traces at once: ask for {RECALL_AT_ONCE} at most", ids.len()));
    }
    Ok(Some(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_name_traces_or_nothing() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(asked_for(None), Ok(None));
        assert_eq!(asked_for(Some("")), Ok(None));
        let both = asked_for(Some(&format!("trace={id},{id}"))).expect("ids").expect("some");
        assert_eq!(both, [0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736; 2]);
        for bad in ["trace=", "trace=xyz", "span=1", &format!("trace=+{}", &id[1..])] {
            assert!(asked_for(Some(bad)).is_err(), "{bad}");
        }
        let many = vec![id; RECALL_AT_ONCE + 1].join(",");
        assert!(asked_for(Some(&format!("trace={many}"))).is_err_and(|why| why.contains("at most")));
    }
}

//! Tells the broker what became of deliveries: whatever is done by the time that it has answered, together, so that one
//! commit there stands for many messages.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshctl_drivers::broker::{BrokerError, Outcome, Settlement, Settler};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The most that is settled at once, and the most bytes of messages that move on with it.
const AT_ONCE: usize = 2048;
const BYTES: usize = 8 << 20;
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(crate) struct Settling {
    /// `order.placed/billing`, for the log.
    pub(crate) of: Rc<str>,
    pub(crate) settler: Arc<dyn Settler>,
    /// The membership is lost: what could not be settled will be delivered again, and is forgotten.
    pub(crate) lost: Rc<Cell<bool>>,
}

impl Settling {
    /// Settles what comes until nothing more does, and all of it is settled or no longer ours.
    pub(crate) async fn run(self, mut done: mpsc::Receiver<Settlement>) {
        let (mut batch, mut left) = (Vec::new(), Vec::new());
        let (mut open, mut pause, mut again) = (true, PAUSE, Instant::now());
        while open || !left.is_empty() {
            tokio::select! {
                count = done.recv_many(&mut batch, AT_ONCE), if open => {
                    open = count > 0;
                    left.extend(self.settle(std::mem::take(&mut batch)).await);
                }
                () = tokio::time::sleep_until(again), if !left.is_empty() => {
                    let before = left.len();
                    left = self.settle(left).await;
                    pause = if left.len() < before { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                }
            }
            if self.lost.get() {
                left.clear();
            }
            if left.is_empty() {
                pause = PAUSE;
            } else if again <= Instant::now() {
                again = Instant::now() + pause;
            }
        }
    }

    /// Settles, in the order given, and returns what could not be. One that is no longer ours, or whose target takes no more, must not keep the
    /// others from being settled: a batch that is refused is tried in halves.
    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Settlement> {
        let (mut parts, mut left) = (parts(batch), Vec::new());
        parts.reverse();
        while let Some(mut part) = parts.pop() {
            if part.is_empty() || self.lost.get() {
                continue;
            }
            let Err(error) = self.settler.settle(part.clone()).await else { continue };
            let of_one = matches!(
                error,
                BrokerError::Lost(_) | BrokerError::Full(_) | BrokerError::NotFound(_) | BrokerError::Refused(_)
            );
            if of_one && part.len() > 1 {
                let other = part.split_off(part.len() / 2);
                parts.extend([other, part]);
            } else if matches!(error, BrokerError::Lost(_)) {
                tracing::debug!(of = %self.of, %error, "it will be delivered again");
            } else {
                tracing::warn!(of = %self.of, count = part.len(), %error, "cannot settle; trying again");
                left.extend(part);
            }
        }
        left
    }
}

/// As many together as the broker is to have in one request: it holds all of that in memory, and so do we.
fn parts(batch: Vec<Settlement>) -> Vec<Vec<Settlement>> {
    let (mut parts, mut bytes) = (Vec::<Vec<Settlement>>::new(), 0);
    for settlement in batch {
        let size = size(&settlement);
        match parts.last_mut() {
            Some(last) if last.len() < AT_ONCE && bytes + size <= BYTES => {
                bytes += size;
                last.push(settlement);
            }
            _ => {
                bytes = size;
                parts.push(vec![settlement]);
            }
        }
    }
    parts
}

fn size(settlement: &Settlement) -> usize {
    let Outcome::Moved { message, .. } = &settlement.outcome else { return 0 };
    let headers = message.headers.iter().map(|(name, text)| name.len() + text.len());
    message.payload.len() + message.key.as_ref().map_or(0, String::len) + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use meshctl_drivers::Pending;
    use meshctl_drivers::broker::Position;
    use meshctl_model::message::Message;
    use parking_lot::Mutex;

    use super::*;

    /// Knows what is ours, and how often a settlement of it is refused before it is taken.
    #[derive(Default)]
    struct Book {
        lost: BTreeSet<u64>,
        full: Mutex<BTreeSet<u64>>,
        settled: Mutex<Vec<u64>>,
    }

    impl Settler for Book {
        fn settle(&self, settlements: Vec<Settlement>) -> Pending<'_, Result<(), BrokerError>> {
            let offsets: Vec<u64> = settlements.iter().map(|settlement| settlement.position.offset).collect();
            Box::pin(async move {
                if offsets.iter().any(|offset| self.lost.contains(offset)) {
                    return Err(BrokerError::Lost("one of them".into()));
                }
                let mut full = self.full.lock();
                if offsets.iter().any(|offset| full.contains(offset)) {
                    // Alone it is taken the next time.
                    full.retain(|offset| offsets != [*offset]);
                    return Err(BrokerError::Full("for one of them".into()));
                }
                self.settled.lock().extend(offsets);
                Ok(())
            })
        }
    }

    #[test]
    fn large_messages_are_settled_a_few_at_a_time_and_all_in_their_order() {
        let of = |offset, payload: &bytes::Bytes| {
            let message = Message { payload: payload.clone(), ..Message::default() };
            let outcome = Outcome::Moved { channel: "c".into(), message };
            Settlement { position: Position { partition: 0, offset }, outcome }
        };
        for (size, together) in [(1 << 20, 8), (BYTES + 1, 1), (BYTES / 2 + 1, 1), (0, AT_ONCE)] {
            let payload = bytes::Bytes::from(vec![0; size]);
            let parts = parts((0..3000).map(|offset| of(offset, &payload)).collect());
            assert!(parts.iter().all(|part| (1..=together).contains(&part.len())), "{size}");
            assert_eq!(parts[0].len(), together);
            let offsets: Vec<u64> = parts.iter().flatten().map(|settlement| settlement.position.offset).collect();
            assert_eq!(offsets, (0..3000).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn one_that_cannot_be_settled_keeps_no_other_from_it() {
        let book = Book { lost: BTreeSet::from([3, 64]), full: Mutex::new(BTreeSet::from([7, 8])), ..Book::default() };
        let book = Arc::new(book);
        let settling =
            Settling { of: Rc::from("test"), settler: Arc::clone(&book) as Arc<dyn Settler>, lost: Rc::default() };
        let (tell, done) = mpsc::channel(100);
        for offset in 0..100 {
            let settlement = Settlement { position: Position { partition: 0, offset }, outcome: Outcome::Processed };
            tell.send(settlement).await.expect("room");
        }
        drop(tell);
        settling.run(done).await;
        let mut settled = book.settled.lock().clone();
        settled.sort_unstable();
        let all: Vec<u64> = (0..100).filter(|offset| !book.lost.contains(offset)).collect();
        assert_eq!(settled, all, "each once");
    }
}

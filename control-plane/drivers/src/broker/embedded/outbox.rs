//! What goes out on a connection. The engine never waits for a peer: answers have a place reserved since their request was
//! read, and deliveries stop while too much of them is unread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{BufMut, Bytes};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::codec::frame;
use super::protocol::{json, kind};
use crate::broker::BrokerError;

/// Requests of one connection that are not answered yet; its socket is not read on while they are so many.
pub const REQUESTS: usize = 4096;
/// Unread deliveries of one connection.
const DELIVERY_FRAMES: usize = 1024;
const DELIVERY_BYTES: usize = 4 << 20;
/// Ends of consumers and answers to pings.
const CONTROL: usize = 1024;

/// A frame on its way, and what it holds while it is.
pub struct Outbound {
    pub bytes: Bytes,
    delivery: bool,
    _place: Option<OwnedSemaphorePermit>,
}

/// The engine's side of a connection.
pub struct Outbox {
    pub id: u64,
    frames: mpsc::Sender<Outbound>,
    requests: Arc<Semaphore>,
    delivery_frames: AtomicUsize,
    delivery_bytes: AtomicUsize,
    /// Whether the engine waits for room.
    starved: AtomicBool,
    /// Told when a frame is lost.
    overflow: Notify,
}

impl Outbox {
    pub fn new(id: u64) -> (Arc<Self>, mpsc::Receiver<Outbound>) {
        let (frames, out) = mpsc::channel(REQUESTS + DELIVERY_FRAMES + CONTROL);
        let outbox = Self {
            id,
            frames,
            requests: Arc::new(Semaphore::new(REQUESTS)),
            delivery_frames: AtomicUsize::new(0),
            delivery_bytes: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            overflow: Notify::new(),
        };
        (Arc::new(outbox), out)
    }

    /// A place for the answer to a request; waits while too many are unanswered. `memory` is held until it is answered.
    pub async fn reply(self: &Arc<Self>, request: u64, memory: Option<OwnedSemaphorePermit>) -> Reply {
        let place = Arc::clone(&self.requests).acquire_owned().await.ok();
        Reply { outbox: Arc::clone(self), request, place, _memory: memory }
    }

    fn has_room(&self) -> bool {
        self.delivery_frames.load(Ordering::SeqCst) < DELIVERY_FRAMES
            && self.delivery_bytes.load(Ordering::SeqCst) < DELIVERY_BYTES
    }

    /// Whether there is room for one more frame; if not, the connection says when there is.
    pub fn takes_deliveries(&self) -> bool {
        if self.has_room() {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        // What was written between the look and the mark has not seen the mark.
        self.has_room()
    }

    pub fn deliver(&self, bytes: Bytes) {
        self.delivery_frames.fetch_add(1, Ordering::SeqCst);
        self.delivery_bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        self.push(Outbound { bytes, delivery: true, _place: None });
    }

    /// A frame without a body.
    pub fn control(&self, kind: u8, id: u64) {
        self.push(Outbound { bytes: frame(kind, id, |_| {}), delivery: false, _place: None });
    }

    /// A connection that has no room in spite of all bounds, or cannot be written to, loses the frame, and is to end by that.
    fn push(&self, frame: Outbound) {
        if self.frames.try_send(frame).is_err() {
            self.overflow.notify_one();
        }
    }

    /// Waits for the loss of a frame. One may wait.
    pub async fn overflown(&self) {
        self.overflow.notified().await;
    }

    /// To be called when a frame was written; says whether the engine waits for that.
    pub fn written(&self, frame: &Outbound) -> bool {
        if !frame.delivery {
            return false;
        }
        self.delivery_frames.fetch_sub(1, Ordering::SeqCst);
        let before = self.delivery_bytes.fetch_sub(frame.bytes.len(), Ordering::SeqCst);
        before - frame.bytes.len() < DELIVERY_BYTES / 2 && self.starved.swap(false, Ordering::SeqCst)
    }
}

/// Answers one request.
pub struct Reply {
    outbox: Arc<Outbox>,
    request: u64,
    place: Option<OwnedSemaphorePermit>,
    _memory: Option<OwnedSemaphorePermit>,
}

impl Reply {
    pub fn done(self, body: Bytes) {
        self.send(kind::DONE, &body);
    }

    pub fn failed(self, why: &BrokerError) {
        self.send(kind::FAILED, &json(why));
    }

    fn send(self, kind: u8, body: &[u8]) {
        let bytes = frame(kind, self.request, |out| out.put_slice(body));
        self.outbox.push(Outbound { bytes, delivery: false, _place: self.place });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_noticed() {
        let (outbox, _unread) = Outbox::new(1);
        for _ in 0..REQUESTS + DELIVERY_FRAMES + CONTROL {
            outbox.control(kind::PONG, 0);
        }
        let mut overflown = std::pin::pin!(outbox.overflown());
        tokio::select! {
            biased;
            () = &mut overflown => panic!("so many have room"),
            () = std::future::ready(()) => {}
        }
        outbox.control(kind::PONG, 0);
        overflown.await;
    }
}

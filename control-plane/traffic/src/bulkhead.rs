//! How many requests of one edge are under way at once, and how many may wait for a place.
//!
//! Taking and giving a place are single atomic operations while nobody waits.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use meshctl_model::policy::BulkheadPolicy;
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Bulkhead {
    taken: AtomicU32,
    queued: AtomicU32,
    freed: Notify,
}

/// No place, and no place to wait for one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

struct Queued<'a>(&'a Bulkhead);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, SeqCst);
    }
}

impl Bulkhead {
    /// Takes a place if one is free.
    pub(crate) fn try_enter(&self, policy: &BulkheadPolicy) -> bool {
        if self.taken.fetch_add(1, SeqCst) < policy.concurrency {
            return true;
        }
        // Another one may have seen the place that we held for a moment as taken: pass the freedom on.
        self.leave();
        false
    }

    /// Waits for a place; the caller bounds how long.
    ///
    /// # Errors
    /// At once, when too many wait already.
    pub(crate) async fn enter(&self, policy: &BulkheadPolicy) -> Result<(), Full> {
        if self.try_enter(policy) {
            return Ok(());
        }
        if self.queued.fetch_add(1, SeqCst) >= policy.queue {
            self.queued.fetch_sub(1, SeqCst);
            return Err(Full);
        }
        let _queued = Queued(self);
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Registered before the second look: a place freed between the two is not missed.
            freed.as_mut().enable();
            if self.taken.load(SeqCst) < policy.concurrency && self.try_enter(policy) {
                return Ok(());
            }
            freed.await;
        }
    }

    pub(crate) fn leave(&self) {
        self.taken.fetch_sub(1, SeqCst);
        if self.queued.load(SeqCst) > 0 {
            self.freed.notify_one();
        }
    }

    /// More places may be free than before.
    pub(crate) fn policy_changed(&self) {
        self.freed.notify_waiters();
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(SeqCst).into()
    }

    pub(crate) fn queued(&self) -> u64 {
        self.queued.load(SeqCst).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn waits_refuses_and_hands_on() {
        let bulkhead = Arc::new(Bulkhead::default());
        let policy = BulkheadPolicy { concurrency: 1, queue: 1 };
        assert_eq!(bulkhead.enter(&policy).await, Ok(()));
        let waiting = tokio::spawn({
            let (bulkhead, policy) = (Arc::clone(&bulkhead), policy.clone());
            async move { bulkhead.enter(&policy).await }
        });
        while bulkhead.queued() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bulkhead.enter(&policy).await, Err(Full));
        bulkhead.leave();
        assert_eq!(waiting.await.expect("joined"), Ok(()));
        assert_eq!((bulkhead.taken(), bulkhead.queued()), (1, 0));
    }

    #[test]
    fn never_more_than_its_places_on_many_threads() {
        let bulkhead = Arc::new(Bulkhead::default());
        let policy = BulkheadPolicy { concurrency: 3, queue: 1_000 };
        let inside = Arc::new(AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (bulkhead, policy, inside) = (Arc::clone(&bulkhead), policy.clone(), Arc::clone(&inside));
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                    runtime.block_on(async {
                        let tasks = (0..10).map(|_| {
                            let (bulkhead, policy, inside) = (bulkhead.clone(), policy.clone(), inside.clone());
                            tokio::spawn(async move {
                                for _ in 0..300 {
                                    bulkhead.enter(&policy).await.expect("room to wait");
                                    assert!(inside.fetch_add(1, SeqCst) < 3);
                                    tokio::task::yield_now().await;
                                    inside.fetch_sub(1, SeqCst);
                                    bulkhead.leave();
                                }
                            })
                        });
                        for task in tasks.collect::<Vec<_>>() {
                            task.await.expect("no panic");
                        }
                    });
                });
            }
        });
        assert_eq!((bulkhead.taken(), bulkhead.queued()), (0, 0));
    }
}

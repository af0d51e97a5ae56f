//! meshctl's own registry: a [`Catalogue`] in the daemon's memory. It needs no disk, because after a restart instances are
//! found by the runtime and leases are registered again by those who hold them.

mod catalogue;

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

pub use self::catalogue::Catalogue;
use super::{Endpoint, Endpoints, Registration, Registry, RegistryError};
use crate::Pending;

#[derive(Debug)]
pub struct EmbeddedRegistry {
    catalogue: Mutex<Catalogue>,
    /// The index. It holds no history: a slow watcher sees the newest only.
    touched: watch::Sender<u64>,
}

impl Default for EmbeddedRegistry {
    fn default() -> Self {
        Self { catalogue: Mutex::default(), touched: watch::Sender::new(0) }
    }
}

impl EmbeddedRegistry {
    /// Takes leases out at the moment at which they run out, for as long as it is polled: one task of the daemon. `left` is
    /// told of each.
    pub async fn expire_leases(&self, mut left: impl FnMut(Endpoint)) {
        let mut touched = self.touched.subscribe();
        loop {
            touched.mark_unchanged();
            let next = self.catalogue().next_expiry();
            let now = Timestamp::now();
            let wait = next.map(|next| next.duration_since(now).try_into().unwrap_or_default());
            tokio::select! {
                () = sleep(wait) => {
                    let over = self.change(|catalogue, now| catalogue.expire(now));
                    over.into_iter().for_each(&mut left);
                }
                _ = touched.changed() => {}
            }
        }
    }

    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        // No change of the catalogue can panic half-way; and if one did, an old view is better than none.
        self.catalogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Catalogue, Timestamp) -> T) -> T {
        let (value, index) = {
            let mut catalogue = self.catalogue();
            (change(&mut catalogue, Timestamp::now()), catalogue.index())
        };
        self.touched.send_if_modified(|last| std::mem::replace(last, index) != index);
        value
    }
}

/// For ever, without a duration.
async fn sleep(duration: Option<std::time::Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

impl Registry for EmbeddedRegistry {
    fn register<'a>(&'a self, registration: &'a Registration) -> Pending<'a, Result<Endpoint, RegistryError>> {
        Box::pin(async move {
            let endpoint = self.change(|catalogue, now| catalogue.register(registration, now));
            // A lease may have become shorter, which is no change for a watcher but one for `expire_leases`.
            self.touched.send_modify(|_| {});
            endpoint
        })
    }

    fn renew<'a>(&'a self, service: &'a str, id: &'a str) -> Pending<'a, Result<Endpoint, RegistryError>> {
        Box::pin(async move { self.change(|catalogue, now| catalogue.renew(service, id, now)) })
    }

    fn mark<'a>(
        &'a self,
        service: &'a str,
        id: &'a str,
        outcome: Result<(), String>,
    ) -> Pending<'a, Result<(), RegistryError>> {
        Box::pin(async move { self.change(|catalogue, now| catalogue.mark(service, id, outcome, now)) })
    }

    fn deregister<'a>(&'a self, service: &'a str, id: &'a str) -> Pending<'a, Result<(), RegistryError>> {
        Box::pin(async move {
            self.change(|catalogue, _| catalogue.deregister(service, id));
            Ok(())
        })
    }

    fn watch<'a>(&'a self, service: &'a str, after: u64) -> Pending<'a, Result<Endpoints, RegistryError>> {
        Box::pin(async move {
            // Before the first look, so that no change falls between looking and waiting.
            let mut touched = self.touched.subscribe();
            loop {
                touched.mark_unchanged();
                let endpoints = self.catalogue().service(service, Timestamp::now());
                if after == 0 || endpoints.index > after {
                    return Ok(endpoints);
                }
                let changed = touched.changed().await;
                changed.map_err(|_| RegistryError::Unreachable("it has ended".to_owned()))?;
            }
        })
    }

    fn snapshot(&self) -> Pending<'_, Result<Endpoints, RegistryError>> {
        Box::pin(async move { Ok(self.catalogue().snapshot(Timestamp::now())) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::Health;
    use super::*;

    fn registration(service: &str, id: &str, lease: Option<Duration>) -> Registration {
        Registration { service: service.into(), id: id.into(), address: "127.0.0.1:1".into(), lease }
    }

    #[tokio::test]
    async fn a_watcher_hears_of_its_own_service_only() -> Result<(), RegistryError> {
        let registry = Arc::new(EmbeddedRegistry::default());
        let first = registry.register(&registration("orders", "orders-1", None)).await?;
        assert_eq!(first.health, Health::Out { reason: "not ready yet".into() });
        let index = registry.watch("orders", 0).await?.index;

        let watching = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.watch("orders", index).await }
        });
        registry.register(&registration("inventory", "inventory-1", None)).await?;
        registry.mark("orders", "orders-1", Err("not ready yet".into())).await?;
        tokio::task::yield_now().await;
        assert!(!watching.is_finished(), "nothing of orders has changed");
        registry.mark("orders", "orders-1", Ok(())).await?;
        let Ok(seen) = watching.await else { panic!("the watcher has ended") };
        assert_eq!(seen?.items[0].health, Health::In);
        Ok(())
    }

    #[tokio::test]
    async fn a_lease_leaves_at_once_and_for_good() -> Result<(), RegistryError> {
        let registry = Arc::new(EmbeddedRegistry::default());
        let (sender, mut left) = tokio::sync::mpsc::channel(1);
        let expiring = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.expire_leases(|endpoint| assert!(sender.try_send(endpoint.id).is_ok())).await }
        });
        registry.register(&registration("mailer", "mailer-1", Some(Duration::from_secs(3600)))).await?;
        let index = registry.watch("mailer", 0).await?.index;
        // Registered again with less.
        registry.register(&registration("mailer", "mailer-1", Some(Duration::from_millis(5)))).await?;
        let seen = registry.watch("mailer", index).await?;
        assert_eq!(seen.items, []);
        assert_eq!(left.recv().await.as_deref(), Some("mailer-1"));
        assert!(matches!(registry.renew("mailer", "mailer-1").await, Err(RegistryError::Unknown { .. })));
        registry.register(&registration("mailer", "mailer-1", None)).await?;
        let stranger = registry.register(&registration("mailer", "mailer-1", Some(Duration::from_secs(1)))).await;
        assert!(matches!(stranger, Err(RegistryError::Taken { source_name: "instance", .. })));
        expiring.abort();
        Ok(())
    }
}

//! The catalogue: what is registered, as a value. Time is an argument.
//!
//! Invariants: every change raises the index exactly when it changes the view; a lease that has run out is in no view, whether
//! or not anyone has expired it yet; an instance never runs out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::registry::{Endpoint, Endpoints, Health, Registration, RegistryError, Source};

/// Services whose last endpoint has left are remembered, for their watchers, up to this many.
const DEPARTED: usize = 1024;

#[derive(Debug, Default)]
pub struct Catalogue {
    index: u64,
    services: BTreeMap<String, Service>,
    /// The index of every service that is not remembered: not less than any that was forgotten.
    floor: u64,
}

#[derive(Debug, Default)]
struct Service {
    /// Of its last change.
    index: u64,
    endpoints: BTreeMap<String, Endpoint>,
}

impl Catalogue {
    /// An empty one whose index begins beyond `index`, so that who watched its predecessor is answered.
    pub fn beyond(index: u64) -> Self {
        Self { index, floor: index, ..Self::default() }
    }

    /// Puts an endpoint in, or gives it a new address. An instance begins out, until [`Catalogue::mark`] says that it is ready;
    /// a lease begins in, and registering it again renews it.
    ///
    /// # Errors
    /// [`RegistryError::Taken`].
    pub fn register(&mut self, registration: &Registration, now: Timestamp) -> Result<Endpoint, RegistryError> {
        let Registration { service, id, address, lease } = registration;
        let source = match *lease {
            None => Source::Instance,
            Some(length) => Source::Lease { expires_at: after(now, length), length },
        };
        let before = self.get(service, id, now).ok();
        let endpoint = match before {
            Some(before) if (before.source == Source::Instance) != (source == Source::Instance) => {
                let source_name = if before.source == Source::Instance { "instance" } else { "lease" };
                return Err(RegistryError::Taken { service: service.clone(), id: id.clone(), source_name });
            }
            Some(before) if before.address == *address => Endpoint { source, ..before.clone() },
            _ => Endpoint {
                service: service.clone(),
                id: id.clone(),
                address: address.clone(),
                source,
                health: match lease {
                    None => Health::Out { reason: "not ready yet".to_owned() },
                    Some(_) => Health::In,
                },
                since: now,
                last_checked_at: None,
            },
        };
        let changed = before.is_none_or(|before| before.address != *address);
        self.put(endpoint.clone(), changed);
        Ok(endpoint)
    }

    /// Tells the outcome of a check: in, or out with the reason.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub fn mark(
        &mut self,
        service: &str,
        id: &str,
        outcome: Result<(), String>,
        now: Timestamp,
    ) -> Result<(), RegistryError> {
        let mut endpoint = self.get(service, id, now)?.clone();
        let health = outcome.map_or_else(|reason| Health::Out { reason }, |()| Health::In);
        let changed = health != endpoint.health;
        // Another reason for being out is news, but it has been out since the first.
        if (health == Health::In) != (endpoint.health == Health::In) {
            endpoint.since = now;
        }
        endpoint.health = health;
        endpoint.last_checked_at = Some(now);
        self.put(endpoint, changed);
        Ok(())
    }

    /// Takes an endpoint out for good; one that is not there is gone already.
    pub fn deregister(&mut self, service: &str, id: &str) {
        let Some(found) = self.services.get_mut(service) else { return };
        if found.endpoints.remove(id).is_some() {
            self.index += 1;
            found.index = self.index;
            self.forget_departed();
        }
    }

    /// Takes out the leases that have run out, and returns them.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Endpoint> {
        let over: Vec<Endpoint> = self.all().filter(|endpoint| has_run_out(endpoint, now)).cloned().collect();
        for endpoint in &over {
            self.deregister(&endpoint.service, &endpoint.id);
        }
        over
    }

    /// When the next lease runs out.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.all().filter_map(expiry).min()
    }

    /// The endpoints of a service, and the index of its last change.
    pub fn service(&self, name: &str, now: Timestamp) -> Endpoints {
        let Some(service) = self.services.get(name) else { return Endpoints { index: self.floor, items: Vec::new() } };
        let items = service.endpoints.values().filter(|endpoint| !has_run_out(endpoint, now)).cloned().collect();
        Endpoints { index: service.index, items }
    }

    /// Of the last change.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Everything.
    pub fn snapshot(&self, now: Timestamp) -> Endpoints {
        let items = self.all().filter(|endpoint| !has_run_out(endpoint, now)).cloned().collect();
        Endpoints { index: self.index, items }
    }

    fn all(&self) -> impl Iterator<Item = &Endpoint> {
        self.services.values().flat_map(|service| service.endpoints.values())
    }

    /// A lease that has run out is as good as gone, although nobody has expired it yet.
    fn get(&self, service: &str, id: &str, now: Timestamp) -> Result<&Endpoint, RegistryError> {
        let found = self.services.get(service).and_then(|found| found.endpoints.get(id));
        found.filter(|endpoint| !has_run_out(endpoint, now)).ok_or_else(|| unknown(service, id))
    }

    fn put(&mut self, endpoint: Endpoint, changed: bool) {
        let service = self.services.entry(endpoint.service.clone()).or_default();
        service.endpoints.insert(endpoint.id.clone(), endpoint);
        if changed {
            self.index += 1;
            service.index = self.index;
        }
    }

    /// Names come from outside, so there may be any number of them over time.
    fn forget_departed(&mut self) {
        let departed = || self.services.iter().filter(|(_, service)| service.endpoints.is_empty());
        if departed().count() <= DEPARTED {
            return;
        }
        let oldest = departed().min_by_key(|(_, service)| service.index).map(|(name, _)| name.clone());
        if let Some(service) = oldest.and_then(|name| self.services.remove(&name)) {
            self.floor = self.floor.max(service.index);
        }
    }
}

fn unknown(service: &str, id: &str) -> RegistryError {
    RegistryError::Unknown { service: service.to_owned(), id: id.to_owned() }
}

fn after(now: Timestamp, length: Duration) -> Timestamp {
    now.checked_add(length).unwrap_or(Timestamp::MAX)
}

fn expiry(endpoint: &Endpoint) -> Option<Timestamp> {
    match endpoint.source {
        Source::Instance => None,
        Source::Lease { expires_at, .. } => Some(expires_at),
    }
}

fn has_run_out(endpoint: &Endpoint, now: Timestamp) -> bool {
    expiry(endpoint).is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Move {
        Register { service: u8, id: u8, address: u8, lease: Option<u8> },
        Mark { service: u8, id: u8, outcome: Result<(), u8> },
        Deregister { service: u8, id: u8 },
        Expire,
    }

    fn moves() -> impl Strategy<Value = Vec<(u8, Move)>> {
        let name = || (0..3u8, 0..3u8);
        let one = prop_oneof![
            (name(), 0..2u8, proptest::option::of(1..20u8))
                .prop_map(|((service, id), address, lease)| { Move::Register { service, id, address, lease } }),
            (name(), prop_oneof![Just(Ok(())), (0..2u8).prop_map(Err)])
                .prop_map(|((service, id), outcome)| Move::Mark { service, id, outcome }),
            name().prop_map(|(service, id)| Move::Deregister { service, id }),
            Just(Move::Expire),
        ];
        proptest::collection::vec((0..10u8, one), 0..60)
    }

    /// What a watcher cares about.
    fn view(endpoints: &Endpoints) -> Vec<(String, String, String, Health)> {
        let visible = |endpoint: &Endpoint| {
            let Endpoint { service, id, address, health, .. } = endpoint.clone();
            (service, id, address, health)
        };
        endpoints.items.iter().map(visible).collect()
    }

    proptest! {
        #[test]
        fn the_index_rises_exactly_when_the_view_changes(moves in moves()) {
            let mut catalogue = Catalogue::default();
            let mut now = Timestamp::UNIX_EPOCH;
            for (seconds, next) in moves {
                now += Duration::from_secs(u64::from(seconds));
                catalogue.expire(now);
                let before = catalogue.snapshot(now);
                let service_before: Vec<Endpoints> =
                    (0..3u8).map(|name| catalogue.service(&name.to_string(), now)).collect();
                match next {
                    Move::Register { service, id, address, lease } => {
                        let lease = lease.map(|seconds| Duration::from_secs(u64::from(seconds)));
                        let registration = Registration {
                            service: service.to_string(),
                            id: id.to_string(),
                            address: address.to_string(),
                            lease,
                        };
                        if let Ok(endpoint) = catalogue.register(&registration, now) {
                            prop_assert_eq!(&endpoint.address, &registration.address);
                            prop_assert_eq!(endpoint.source == Source::Instance, lease.is_none());
                        }
                    }
                    Move::Mark { service, id, outcome } => {
                        let outcome = outcome.map_err(|reason| reason.to_string());
                        let known = catalogue.mark(&service.to_string(), &id.to_string(), outcome, now);
                        let there = before.items.iter().any(|endpoint| {
                            (&endpoint.service, &endpoint.id) == (&service.to_string(), &id.to_string())
                        });
                        prop_assert_eq!(known.is_ok(), there);
                    }
                    Move::Deregister { service, id } => {
                        catalogue.deregister(&service.to_string(), &id.to_string());
                    }
                    Move::Expire => prop_assert!(catalogue.expire(now).is_empty(), "already expired"),
                }
                let after = catalogue.snapshot(now);
                prop_assert!(after.index >= before.index);
                prop_assert_eq!(after.index > before.index, view(&after) != view(&before));
                for (name, before) in (0..3u8).zip(&service_before) {
                    let after = catalogue.service(&name.to_string(), now);
                    prop_assert_eq!(after.index > before.index, view(&after) != view(before));
                }
                prop_assert!(catalogue.next_expiry().is_none_or(|at| at > now));
            }
        }

        #[test]
        fn a_lease_that_has_run_out_is_seen_by_nobody(moves in moves(), later in 0..40u8) {
            let mut catalogue = Catalogue::default();
            let mut now = Timestamp::UNIX_EPOCH;
            for (seconds, next) in moves {
                now += Duration::from_secs(u64::from(seconds));
                if let Move::Register { service, id, address, lease } = next {
                    let lease = lease.map(|seconds| Duration::from_secs(u64::from(seconds)));
                    let (service, id, address) = (service.to_string(), id.to_string(), address.to_string());
                    let _ = catalogue.register(&Registration { service, id, address, lease }, now);
                }
            }
            now += Duration::from_secs(u64::from(later));
            let seen = catalogue.snapshot(now);
            prop_assert!(seen.items.iter().all(|endpoint| expiry(endpoint).is_none_or(|at| at > now)));
            let over = catalogue.expire(now);
            prop_assert!(over.iter().all(|endpoint| expiry(endpoint).is_some_and(|at| at <= now)));
            prop_assert_eq!(view(&catalogue.snapshot(now)), view(&seen), "expiring removes what was not seen already");
        }
    }

    #[test]
    fn being_out_for_another_reason_is_being_out_since_the_first() {
        let mut catalogue = Catalogue::default();
        let registration =
            Registration { service: "a".into(), id: "1".into(), address: "127.0.0.1:1".into(), lease: None };
        let start = Timestamp::UNIX_EPOCH;
        assert_eq!(catalogue.register(&registration, start).map(|endpoint| endpoint.since), Ok(start));
        let at = |seconds| start + Duration::from_secs(seconds);
        for (seconds, outcome, since) in [(1, Err("refused"), 0), (2, Ok(()), 2), (3, Ok(()), 2), (4, Err("503"), 4)] {
            assert_eq!(catalogue.mark("a", "1", outcome.map_err(str::to_owned), at(seconds)), Ok(()));
            let seen = catalogue.snapshot(at(seconds));
            assert_eq!(seen.items[0].since, at(since));
            assert_eq!(seen.items[0].last_checked_at, Some(at(seconds)));
        }
    }

    #[test]
    fn watchers_of_forgotten_services_hear_of_a_change_rather_than_miss_one() {
        let mut catalogue = Catalogue::default();
        let now = Timestamp::UNIX_EPOCH;
        let mut seen = Vec::new();
        for number in 0..DEPARTED + 10 {
            let service = format!("s{number}");
            let registration = Registration {
                service: service.clone(),
                id: "1".into(),
                address: "127.0.0.1:1".into(),
                lease: Some(Duration::from_secs(1)),
            };
            assert!(catalogue.register(&registration, now).is_ok());
            seen.push((service.clone(), catalogue.service(&service, now).index));
            catalogue.deregister(&service, "1");
        }
        assert_eq!(catalogue.services.len(), DEPARTED);
        for (service, index) in seen {
            assert!(catalogue.service(&service, now).index > index, "{service} has left");
        }
    }
}

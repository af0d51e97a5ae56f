//! The run's ledger: what became of the messages that the run caused, as the difference of two looks at the daemon's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meshctl_api::client::Client;
use meshctl_api::view::messages::LedgerEntry;

use super::target::Target;
use crate::failure::Failure;
use crate::show::load::{LedgerChange, LedgerItem};

/// How long the last messages may take to be settled: the effects that were waited for are there already.
const SETTLES: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// Opened before the run; of a run that follows nothing into a channel there is none.
pub(super) struct Ledger(Option<(Client, Vec<LedgerEntry>)>);

impl Ledger {
    pub(super) async fn open(target: &Target) -> Result<Self, Failure> {
        let follows = target.requests().iter().any(|request| request.completion.is_some());
        match target.client().filter(|_| follows) {
            Some(client) => Ok(Self(Some((client.clone(), client.ledger().await?.items)))),
            None => Ok(Self(None)),
        }
    }

    /// As soon as nothing of the run is in flight, or as it is then.
    pub(super) async fn close(self) -> Result<Option<LedgerChange>, Failure> {
        let Some((client, before)) = self.0 else { return Ok(None) };
        let began = Instant::now();
        loop {
            let change = difference(&before, client.ledger().await?.items);
            let settled = change.items.iter().all(|item| item.in_flight <= 0);
            if settled || began.elapsed() > SETTLES {
                return Ok(Some(change));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The subscriptions in which anything changed.
fn difference(before: &[LedgerEntry], after: Vec<LedgerEntry>) -> LedgerChange {
    let before: BTreeMap<&str, &LedgerEntry> = before.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let item = |entry: LedgerEntry| {
        let was = before.get(entry.name.as_str());
        let change = |figure: fn(&LedgerEntry) -> u64| {
            i64::try_from(figure(&entry)).unwrap_or(i64::MAX)
                - was.map_or(0, |was| i64::try_from(figure(was)).unwrap_or(i64::MAX))
        };
        let mut item = LedgerItem {
            accepted: change(|entry| entry.accepted),
            processed: change(|entry| entry.processed),
            in_flight: change(|entry| entry.in_flight),
            retrying: change(|entry| entry.retrying),
            dead: change(|entry| entry.dead),
            parked: change(|entry| entry.parked),
            discarded: change(|entry| entry.discarded),
            missing: entry.missing - was.map_or(0, |was| was.missing),
            balanced: true,
            name: entry.name,
            channel: entry.channel,
            subscription: entry.subscription,
        };
        let somewhere = item.processed + item.in_flight + item.retrying + item.dead + item.parked + item.discarded;
        item.balanced = item.accepted == somewhere && item.missing == 0;
        item
    };
    let items: Vec<LedgerItem> = after.into_iter().map(item).filter(LedgerItem::is_anything).collect();
    LedgerChange {
        balanced: items.iter().all(|item| item.balanced),
        missing: items.iter().map(|item| item.missing).sum(),
        items,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, figures: [u64; 4]) -> LedgerEntry {
        let [accepted, processed, in_flight, dead] = figures;
        let missing = accepted as i64 - (processed + in_flight + dead) as i64;
        LedgerEntry {
            name: name.into(),
            channel: "c".into(),
            subscription: name.into(),
            accepted,
            processed,
            in_flight,
            retrying: 0,
            dead,
            parked: 0,
            discarded: 0,
            balanced: missing == 0,
            missing,
        }
    }

    #[test]
    fn only_what_the_run_changed_is_counted() {
        let before = [entry("a", [100, 90, 10, 0]), entry("quiet", [5, 5, 0, 0])];
        let after = vec![entry("a", [150, 148, 0, 2]), entry("new", [3, 3, 0, 0]), entry("quiet", [5, 5, 0, 0])];
        let change = difference(&before, after);
        let names: Vec<&str> = change.items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!((names.as_slice(), change.balanced, change.missing), (&["a", "new"][..], true, 0));
        let a = &change.items[0];
        assert_eq!((a.accepted, a.processed, a.in_flight, a.dead), (50, 58, -10, 2));
        let change = difference(&before, vec![entry("a", [150, 140, 0, 2])]);
        assert_eq!((change.balanced, change.missing, change.items[0].balanced), (false, 8, false));
    }
}

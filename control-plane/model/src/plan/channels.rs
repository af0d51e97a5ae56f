//! What differs between the channels of two desired states, what follows from it, and what of it could lose messages.

use serde_json::Value;

use super::changes::{Change, difference, to_value};
use super::desired::Desired;
use crate::delivery::{Behind, Channel, Retry, Subscription};

const REFUSED: &str = "refused while it holds messages, unless --discard-messages";
const ANEW: &str = "the channel is made anew: its ledger begins at nothing";
const FEWER: &str = "; refused while messages wait in a pause that goes, unless --discard-messages";
const REPLACED: &str = "couriers are replaced one at a time; messages wait meanwhile, none is lost";

pub(super) fn changes(old: &Desired, new: &Desired, changes: &mut Vec<Change>) {
    for (name, channel) in &new.channels {
        let before = old.channels.get(name);
        match before {
            None => {
                let partitions = partitions(channel.partitions);
                let consequence = format!("{partitions}; a message is kept until every subscription has settled it");
                changes.push(Change::new("create", "channel", name, "it is new", consequence));
            }
            Some(before) if bare(before) != bare(channel) => {
                let why = difference(&bare(before), &bare(channel));
                changes.push(Change::new("change", "channel", name, why, consequence(before, channel)));
            }
            Some(_) => {}
        }
        subscription_changes(name, before, channel, changes);
    }
    for name in old.channels.keys().filter(|name| !new.channels.contains_key(*name)) {
        // Where nothing is wanted any more, nothing is given up: what the broker has kept is there when it is back.
        let (why, consequence) = match new.gateway {
            None => ("nothing is wanted any more", "its messages are kept for the next apply"),
            Some(_) => ("it is no longer in the topology", REFUSED),
        };
        changes.push(Change::new("remove", "channel", name, why, consequence));
    }
}

/// A channel without its subscriptions, which are told of on their own.
fn bare(channel: &Channel) -> Value {
    let mut value = to_value(channel);
    if let Value::Object(fields) = &mut value {
        fields.remove("subscriptions");
    }
    value
}

fn consequence(before: &Channel, after: &Channel) -> String {
    let mut parts = Vec::new();
    if after.partitions > before.partitions {
        parts.push("keys move to other partitions: order across the change is not kept");
    }
    if after.partitions < before.partitions {
        parts.push(REFUSED);
        parts.push(ANEW);
    }
    if after.ordered && !before.ordered {
        parts.push("order is kept from now on");
    }
    if after.retention < before.retention || after.max_size < before.max_size {
        parts.push("settled messages beyond it are removed");
    }
    if parts.is_empty() {
        parts.push("holds for what is published from now on; none is lost");
    }
    parts.join("; ")
}

fn subscription_changes(channel: &str, before: Option<&Channel>, after: &Channel, changes: &mut Vec<Change>) {
    for (name, subscription) in &after.subscriptions {
        let full = format!("{channel}/{name}");
        match before.map(|before| before.subscriptions.get(name)) {
            None => {
                let consequence = format!("every message is delivered to {}", subscription.service);
                changes.push(Change::new("create", "subscription", &full, "it is new", consequence));
            }
            Some(None) => {
                let service = &subscription.service;
                let consequence = format!("delivered to {service}, beginning with the oldest message that is kept");
                changes.push(Change::new("create", "subscription", &full, "it is new", consequence));
            }
            Some(Some(before)) => {
                let (old, new) = (shown(before), shown(subscription));
                if old != new {
                    let mut consequence = REPLACED.to_owned();
                    if !gone(&before.retry, &subscription.retry).is_empty() {
                        consequence.push_str(FEWER);
                    }
                    changes.push(Change::new("change", "subscription", &full, difference(&old, &new), consequence));
                }
            }
        }
    }
    for name in before.iter().flat_map(|before| before.subscriptions.keys()) {
        if !after.subscriptions.contains_key(name) {
            let full = format!("{channel}/{name}");
            changes.push(Change::new("remove", "subscription", &full, "it is no longer in the topology", REFUSED));
        }
    }
}

/// A subscription in the operator's words: the path, not the address that meshctl has put before it.
fn shown(subscription: &Subscription) -> Value {
    let mut value = to_value(subscription);
    if let Value::Object(fields) = &mut value {
        fields.remove("url");
        let behind_address = subscription.url.splitn(4, '/').nth(3).unwrap_or_default();
        fields.insert("deliver".into(), format!("/{behind_address}").into());
    }
    value
}

/// Something that [`changes`](super::changes) would do and that loses messages, if there are any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// In words: `channel order.placed is removed`.
    pub what: String,
    pub channel: String,
    /// `None` where it is the whole channel.
    pub subscription: Option<String>,
    /// It loses the messages that are unsettled here, and nothing if there are none.
    pub held: Vec<Held>,
}

/// Where messages may be held: a group of one of the broker's channels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub channel: String,
    pub group: String,
}

/// What has to be empty, or given up by the operator, before `new` may take the place of `old`. Nothing where nothing is
/// wanted any more: then everything is kept.
pub fn losses(old: &Desired, new: &Desired) -> Vec<Loss> {
    let mut losses = Vec::new();
    if new.gateway.is_none() {
        return losses;
    }
    for (name, before) in &old.channels {
        let loss = |what: String, subscription: Option<&String>, held: Vec<Held>| Loss {
            what,
            channel: name.clone(),
            subscription: subscription.cloned(),
            held,
        };
        let groups = || before.subscriptions.keys().map(|group| held(name.clone(), group));
        let behind = |subscription: &str, behind: Behind| held(behind.channel(name, subscription), behind.group());
        let all_behind = |(subscription, of): (&String, &Subscription)| {
            let subscription = subscription.clone();
            Behind::of(&of.retry).map(move |one| behind(&subscription, one)).collect::<Vec<_>>()
        };
        let Some(after) = new.channels.get(name) else {
            let held = groups().chain(before.subscriptions.iter().flat_map(all_behind)).collect();
            losses.push(loss(format!("channel {name} is removed"), None, held));
            continue;
        };
        if after.partitions < before.partitions {
            let what = format!("channel {name} gets {} instead of {}", partitions(after.partitions), before.partitions);
            losses.push(loss(what, None, groups().collect()));
        }
        for (subscription, of) in &before.subscriptions {
            match after.subscriptions.get(subscription) {
                None => {
                    let own = held(name.clone(), subscription);
                    let held = [own].into_iter().chain(all_behind((subscription, of))).collect();
                    let what = format!("subscription {subscription} of channel {name} is removed");
                    losses.push(loss(what, Some(subscription), held));
                }
                Some(now) => {
                    let held: Vec<Held> =
                        gone(&of.retry, &now.retry).into_iter().map(|one| behind(subscription, one)).collect();
                    if !held.is_empty() {
                        let what =
                            format!("subscription {subscription} of channel {name} gets fewer pauses for retries");
                        losses.push(loss(what, Some(subscription), held));
                    }
                }
            }
        }
    }
    losses
}

fn held(channel: String, group: &str) -> Held {
    Held { channel, group: group.to_owned() }
}

/// What stands behind a subscription before and no longer after: the channels of pauses that are no more.
fn gone(before: &Retry, after: &Retry) -> Vec<Behind> {
    let kept: Vec<Behind> = Behind::of(after).collect();
    Behind::of(before).filter(|one| !kept.contains(one)).collect()
}

fn partitions(count: u32) -> String {
    if count == 1 { "1 partition".into() } else { format!("{count} partitions") }
}

#[cfg(test)]
mod tests {
    use crate::load::{SourceFile, Sources, load};
    use crate::plan::{Overlay, Ports, changes, render};

    use super::*;

    const SHOP: &str = "
services: { a: { builtin: hello, publishes: [c] }, b: { builtin: hello } }
channels:
  c:
    partitions: 4
    subscriptions: { b: { deliver: /in, retry: { attempts: 2 } } }
";

    fn desired(texts: [&str; 2]) -> [Desired; 2] {
        let mut ports = Ports::default();
        texts.map(|text| {
            let file = SourceFile { name: "shop.yaml".into(), folder: "/".into(), text: text.into() };
            let loaded = load(&Sources { files: vec![file], ..Sources::default() });
            let topology = loaded.topology.unwrap_or_else(|| panic!("{:?}", loaded.findings));
            render(&topology, &Overlay::default(), &mut ports).expect("enough ports")
        })
    }

    /// [`SHOP`] before and after `change`, which is `old => new` or empty.
    fn both(change: &str) -> [Desired; 2] {
        let (from, to) = change.split_once(" => ").unwrap_or_default();
        assert!(SHOP.contains(from), "{change}");
        desired([SHOP, &SHOP.replacen(from, to, 1)])
    }

    fn told(old: &Desired, new: &Desired) -> Vec<String> {
        let line = |change: Change| {
            format!("{} {} {}: {} -> {}", change.action, change.kind, change.name, change.why, change.consequence)
        };
        changes(old, new).into_iter().map(line).collect()
    }

    #[test]
    fn a_first_apply_tells_of_each_thing_once() {
        let [new, _] = both("");
        let told = told(&Desired::default(), &new);
        assert_eq!(
            told,
            [
                "create service a: it is new -> 1 instance started",
                "create service b: it is new -> 1 instance started",
                "create service broker: it is new -> 1 instance started",
                "create service courier: it is new -> 1 instance started, after broker",
                "create gateway embedded: it is new -> listens on 127.0.0.1:8080",
                "create channel c: it is new -> 4 partitions; a message is kept until every subscription has settled it",
                "create subscription c/b: it is new -> every message is delivered to b",
            ]
        );
        assert_eq!(super::losses(&Desired::default(), &new), []);
    }

    #[test]
    fn a_change_of_channels_says_what_follows() {
        let replaced = format!("change service courier: its channels changed -> {REPLACED}");
        for (change, expected) in [
            (
                "partitions: 4 => partitions: 6",
                "change channel c: partitions: 4 -> 6 -> keys move to other partitions: order across the change is not kept".to_owned(),
            ),
            ("partitions: 4 => partitions: 2", format!("change channel c: partitions: 4 -> 2 -> {REFUSED}; {ANEW}")),
            (
                "partitions: 4 => partitions: 4\n    retention: 1d",
                "change channel c: retention: 7d -> 1d -> settled messages beyond it are removed".into(),
            ),
            (
                "partitions: 4 => partitions: 4\n    maxMessage: 2MiB",
                "change channel c: maxMessage: 1MiB -> 2MiB -> holds for what is published from now on; none is lost".into(),
            ),
            ("attempts: 2 => attempts: 3", format!("change subscription c/b: retry.attempts: 2 -> 3 -> {REPLACED}")),
            (
                "attempts: 2 => attempts: 1",
                format!("change subscription c/b: retry.attempts: 2 -> 1 -> {REPLACED}{FEWER}"),
            ),
            ("/in, => /out,", format!("change subscription c/b: deliver: /in -> /out -> {REPLACED}")),
            (
                "{ b: { deliver: /in => { d: { service: b, deliver: /d }, b: { deliver: /in",
                "create subscription c/d: it is new -> delivered to b, beginning with the oldest message that is kept".into(),
            ),
        ] {
            let [old, new] = both(change);
            assert_eq!(told(&old, &new), [replaced.clone(), expected], "{change}");
        }
    }

    #[test]
    fn a_replaced_broker_is_told_as_such() {
        let [old, mut new] = both("");
        let broker = new.services.get_mut("broker").expect("a broker");
        broker.template.restarts = 1;
        broker.hash = broker.template.hash();
        let expected = "replaced in place: publishes are refused for a moment; services try again";
        assert_eq!(told(&old, &new), [format!("restart service broker: asked for -> {expected}")]);
    }

    fn lost(old: &Desired, new: &Desired) -> Vec<(String, Vec<String>)> {
        let held = |held: &Held| format!("{} {}", held.channel, held.group);
        super::losses(old, new).iter().map(|loss| (loss.what.clone(), loss.held.iter().map(held).collect())).collect()
    }

    #[test]
    fn what_could_lose_messages_says_where_they_may_be() {
        let texts = |held: &[&str]| held.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let behind = [
            "c/b/retry-1 courier",
            "c/b/retry-2 courier",
            "c/b/dead daemon",
            "c/b/replay courier",
            "c/b/replayed daemon",
        ];
        let all: Vec<&str> = ["c b"].into_iter().chain(behind).collect();
        for (change, what, held) in [
            ("b: { deliver => d: { service: b, deliver", "subscription b of channel c is removed", all.clone()),
            ("partitions: 4 => partitions: 1", "channel c gets 1 partition instead of 4", vec!["c b"]),
            (
                "attempts: 2 => attempts: 1",
                "subscription b of channel c gets fewer pauses for retries",
                vec!["c/b/retry-2 courier"],
            ),
        ] {
            let [old, new] = both(change);
            assert_eq!(lost(&old, &new), [(what.to_owned(), texts(&held))], "{change}");
            assert!(told(&old, &new).iter().any(|line| line.contains("refused while")), "{change}");
        }
        let [old, new] = desired([SHOP, &SHOP.replace("[c]", "[d]").replace("  c:", "  d:")]);
        assert_eq!(lost(&old, &new), [("channel c is removed".to_owned(), texts(&all))]);
        for harmless in ["", "partitions: 4 => partitions: 5", "attempts: 2 => attempts: 9", "/in, => /out,"] {
            let [old, new] = both(harmless);
            assert_eq!(lost(&old, &new), [], "{harmless}");
        }
    }

    #[test]
    fn taking_everything_down_loses_nothing() {
        let [old, _] = both("");
        let down = Desired::default();
        assert_eq!(super::losses(&old, &down), []);
        let expected = "remove channel c: nothing is wanted any more -> its messages are kept for the next apply";
        assert!(told(&old, &down).contains(&expected.to_owned()), "{:#?}", told(&old, &down));
    }
}

//! The kinds of things that `get` and `describe` know, by all their names, and how each is asked of the daemon.

use futures_util::{TryStreamExt, stream::FuturesOrdered};
use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::view::messages::{DeadLetterQuery, MessageQuery};
use meshctl_api::view::traces::TraceQuery;

use crate::failure::Failure;
use crate::show::{self, Listing};
use crate::traces::resolve;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    Instance,
    Route,
    Edge,
    Endpoint,
    Gateway,
    Revision,
    Event,
    Breaker,
    Channel,
    Subscription,
    Message,
    DeadLetter,
    Replay,
    Ledger,
    Audit,
    Trace,
}

/// How a kind is called: singular, plural, short, and in documents.
struct Names(Kind, &'static str, &'static str, &'static str, &'static str);

const NAMES: [Names; 17] = [
    Names(Kind::Service, "service", "services", "svc", "Service"),
    Names(Kind::Instance, "instance", "instances", "inst", "Instance"),
    Names(Kind::Route, "route", "routes", "rt", "Route"),
    Names(Kind::Edge, "edge", "edges", "edge", "Edge"),
    Names(Kind::Endpoint, "endpoint", "endpoints", "ep", "Endpoint"),
    Names(Kind::Gateway, "gateway", "gateways", "gw", "Gateway"),
    Names(Kind::Revision, "revision", "revisions", "rev", "Revision"),
    Names(Kind::Event, "event", "events", "ev", "Event"),
    Names(Kind::Breaker, "breaker", "breakers", "cb", "Breaker"),
    Names(Kind::Channel, "channel", "channels", "ch", "Channel"),
    Names(Kind::Subscription, "subscription", "subscriptions", "sub", "Subscription"),
    Names(Kind::Message, "message", "messages", "msg", "Message"),
    Names(Kind::DeadLetter, "deadletter", "deadletters", "dl", "DeadLetter"),
    Names(Kind::Replay, "replay", "replays", "replay", "Replay"),
    Names(Kind::Ledger, "ledgerentry", "ledger", "ledger", "LedgerEntry"),
    Names(Kind::Audit, "auditentry", "audit", "audit", "AuditEntry"),
    Names(Kind::Trace, "trace", "traces", "tr", "Trace"),
];

/// How many events a list shows.
const EVENTS: usize = 200;
/// How many of them tell the history of one thing.
const HISTORY: usize = 50;

impl Kind {
    /// The kind that somebody means.
    ///
    /// # Errors
    /// Not found, with the nearest name.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let wanted = text.to_lowercase();
        if let Some(names) = NAMES.iter().find(|names| [names.1, names.2, names.3].contains(&wanted.as_str())) {
            return Ok(names.0);
        }
        let known = NAMES.iter().flat_map(|names| [names.1, names.2, names.3]);
        let hint = did_you_mean(&wanted, known).unwrap_or_else(|| {
            let kinds: Vec<&str> = NAMES.iter().map(|names| names.2).collect();
            format!("the kinds are {}", kinds.join(", "))
        });
        Err(Failure::not_found(format!("there is no kind `{text}`")).hint(hint))
    }

    fn names(self) -> &'static Names {
        // Every kind has its line, in the order of the enum; a test reads them all.
        &NAMES[self as usize]
    }

    pub(crate) fn singular(self) -> &'static str {
        self.names().1
    }

    pub(crate) fn plural(self) -> &'static str {
        self.names().2
    }

    /// Whether names of this kind may hold a slash.
    fn has_slashes(self) -> bool {
        matches!(self, Self::Route | Self::Subscription | Self::Ledger)
    }

    /// As documents say it: `Service`.
    pub(crate) fn title(self) -> &'static str {
        self.names().4
    }

    /// All things of this kind, as the daemon sees them now.
    pub(crate) async fn list(self, client: &Client) -> Result<Listing, Failure> {
        let now = Timestamp::now();
        Ok(match self {
            Self::Service => show::services(client.services().await?.items, now),
            Self::Instance => show::instances(client.instances().await?.items, now),
            Self::Route => show::routes(client.routes().await?.items),
            Self::Edge => show::edges(client.edges().await?.items),
            Self::Endpoint => show::endpoints(client.endpoints(None).await?.items, now),
            Self::Gateway => show::gateways(client.gateways().await?.items, now),
            Self::Revision => show::revisions(client.revisions().await?.items, now),
            Self::Event => show::events(client.events(None, Some(EVENTS), None).await?.items, now),
            Self::Breaker => show::breakers(client.breakers().await?.items, now),
            Self::Channel => show::channels(client.channels().await?.items),
            Self::Subscription => show::subscriptions(client.channels().await?.items),
            Self::Message => show::messages(client.messages(&MessageQuery::default()).await?.items, now),
            Self::DeadLetter => show::dead_letters(client.dead_letters(&DeadLetterQuery::default()).await?.items, now),
            Self::Replay => show::replays(client.replays().await?.items, now),
            Self::Ledger => show::ledger(client.ledger().await?.items),
            Self::Audit => show::audit(client.audit(None).await?.items, now),
            Self::Trace => show::traces(client.traces(&TraceQuery::default()).await?.items, now),
        })
    }

    /// The things of this kind that are named; all where none is. Of what there is too much of to list, each is asked for
    /// by its id, and comes whole.
    pub(crate) async fn fetch(self, client: &Client, names: &[String]) -> Result<Listing, Failure> {
        let now = Timestamp::now();
        match self {
            Self::Message if !names.is_empty() => {
                let messages = names.iter().map(|id| client.message(id)).collect::<FuturesOrdered<_>>();
                Ok(show::messages(messages.try_collect().await?, now))
            }
            Self::DeadLetter if !names.is_empty() => {
                let letters = names.iter().map(|id| client.dead_letter(id)).collect::<FuturesOrdered<_>>();
                Ok(show::dead_letters(letters.try_collect().await?, now))
            }
            // What happened to it is told in the events.
            Self::Breaker if !names.is_empty() => {
                let mut listing = self.list(client).await?.only(names)?;
                for item in &mut listing.items {
                    let subject = format!("edge/{}", item.name);
                    let events = client.events(None, Some(HISTORY), Some(&subject)).await?.items;
                    item.tell(events.iter().filter(|event| event.subject == subject));
                }
                Ok(listing)
            }
            Self::Trace if !names.is_empty() => {
                let traces = names.iter().map(|id| resolve(client, id)).collect::<FuturesOrdered<_>>();
                Ok(show::whole_traces(traces.try_collect().await?, now))
            }
            _ => self.list(client).await?.only(names),
        }
    }

    /// Whether things of this kind change without an event that tells of it.
    pub(crate) fn changes_silently(self) -> bool {
        use Kind::{Audit, Channel, DeadLetter, Ledger, Message, Replay, Subscription, Trace};
        matches!(self, Channel | Subscription | Message | DeadLetter | Replay | Ledger | Audit | Trace)
    }
}

/// Something named by its kind and, where it is one thing, its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    /// All where empty.
    pub(crate) names: Vec<String>,
}

/// Reads `svc,rt`, `svc orders billing`, `svc/orders rt/…`.
///
/// # Errors
/// Unknown kinds, and mixtures of the two forms.
pub(crate) fn select(words: &[String]) -> Result<Vec<Selection>, Failure> {
    let Some(first) = words.first() else { return Err(Failure::usage("a kind is missing, such as `services`")) };
    if !first.contains('/') {
        let kinds: Vec<Kind> = first.split(',').map(Kind::parse).collect::<Result<_, _>>()?;
        if let Some(word) =
            words[1..].iter().find(|word| word.contains('/') && !kinds.iter().all(|kind| kind.has_slashes()))
        {
            return Err(Failure::usage(format!("`{word}` mixes two forms"))
                .hint("write either `get KIND NAME…` or `get KIND/NAME…`"));
        }
        return Ok(kinds.into_iter().map(|kind| Selection { kind, names: words[1..].to_vec() }).collect());
    }
    let mut selections: Vec<Selection> = Vec::new();
    for word in words {
        let (kind, name) = word.split_once('/').filter(|(_, name)| !name.is_empty()).ok_or_else(|| {
            Failure::usage(format!("`{word}` names no thing")).hint("write KIND/NAME, such as service/orders")
        })?;
        let kind = Kind::parse(kind)?;
        match selections.iter_mut().find(|selection| selection.kind == kind) {
            Some(selection) => selection.names.push(name.to_owned()),
            None => selections.push(Selection { kind, names: vec![name.to_owned()] }),
        }
    }
    Ok(selections)
}

/// The failure to find `name` among `known`.
pub(crate) fn no_such<'a>(kind: Kind, name: &str, known: impl IntoIterator<Item = &'a str>) -> Failure {
    let failure = Failure::not_found(format!("there is no {} `{name}`", kind.singular()));
    match did_you_mean(name, known) {
        Some(hint) => failure.hint(hint),
        None => failure.hint(format!("`meshctl get {}` shows all", kind.plural())),
    }
}

/// `did you mean …?` with the nearest name, if one is near.
fn did_you_mean<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let (near, name) = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wanted, name), name))
        .max_by(|left, right| left.0.total_cmp(&right.0))?;
    (near > 0.8).then(|| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn every_kind_answers_to_all_its_names() {
        for (at, Names(kind, singular, plural, short, title)) in NAMES.iter().enumerate() {
            assert_eq!(*kind as usize, at);
            for name in [singular, plural, short, title] {
                assert_eq!(Kind::parse(name).ok(), Some(*kind), "{name}");
            }
        }
        let failure = Kind::parse("sevices").expect_err("no such kind");
        assert_eq!((failure.exit, failure.hint.as_deref()), (3, Some("did you mean `services`?")));
    }

    #[test]
    fn things_are_selected_in_both_forms() {
        let one = |kind, names: &[&str]| Selection { kind, names: names.iter().map(ToString::to_string).collect() };
        for (text, selections) in [
            ("svc", vec![one(Kind::Service, &[])]),
            ("svc,gw", vec![one(Kind::Service, &[]), one(Kind::Gateway, &[])]),
            ("svc orders mailer", vec![one(Kind::Service, &["orders", "mailer"])]),
            ("svc/a rt", vec![]),
            ("svc rt/b", vec![]),
            ("svc/a rt//b svc/c", vec![one(Kind::Service, &["a", "c"]), one(Kind::Route, &["/b"])]),
        ] {
            match select(&words(text)) {
                Ok(found) => assert_eq!(found, selections, "{text}"),
                Err(failure) => assert!(selections.is_empty() && failure.exit == 2, "{text}: {failure:?}"),
            }
        }
    }
}

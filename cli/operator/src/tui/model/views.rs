//! The views: what each is called, what `:` understands, and what is asked of the daemon for it.

use meshctl_model::filter::{DEAD_LETTER, parse};

use crate::kinds::Kind;

/// What a screen shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Overview,
    Services,
    /// Of one service, or all.
    Instances(Option<String>),
    Gateways,
    Routes,
    Edges,
    Channels,
    /// Of one channel, or all.
    Subscriptions(Option<String>),
    Breakers,
    /// Those that a filter of the filter language holds for, or all.
    Letters(Option<String>),
    Letter(String),
    Replays,
    Traces(Which, Option<String>),
    Trace(String),
    Events,
    /// Of one service, or all.
    Logs(Option<String>),
    /// One thing on a page, as `meshctl describe` shows it or as YAML.
    Page {
        kind: Kind,
        name: String,
        yaml: bool,
    },
}

/// Which traces come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Newest,
    Slowest,
    Errors,
}

impl Which {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Slowest => "slowest",
            Self::Errors => "errors",
        }
    }

    pub(crate) fn next(self) -> Self {
        match self {
            Self::Newest => Self::Slowest,
            Self::Slowest => Self::Errors,
            Self::Errors => Self::Newest,
        }
    }
}

/// A view by its names, the first of which it is completed to; and what may follow it.
pub(crate) struct Named {
    pub(crate) names: &'static [&'static str],
    pub(crate) argument: &'static str,
    pub(crate) help: &'static str,
}

pub(crate) const VIEWS: &[Named] = &[
    Named { names: &["overview", "ov"], argument: "", help: "the system, its golden signals, what is wrong now" },
    Named { names: &["services", "svc", "service"], argument: "", help: "services with their signals" },
    Named { names: &["instances", "inst", "instance"], argument: "[SERVICE]", help: "instances" },
    Named { names: &["gateways", "gw", "gateway"], argument: "", help: "gateways" },
    Named { names: &["routes", "rt", "route"], argument: "", help: "routes with rate, errors, p50, p99" },
    Named { names: &["edges", "edge"], argument: "", help: "who calls whom, and how that goes" },
    Named { names: &["channels", "ch", "channel"], argument: "", help: "channels: depth, lag, rates, dead letters" },
    Named { names: &["subscriptions", "sub"], argument: "[CHANNEL]", help: "who receives from channels" },
    Named { names: &["breakers", "cb", "breaker"], argument: "", help: "breakers, automatic and forced" },
    Named { names: &["deadletters", "dl", "dlq"], argument: "[FILTER | ID]", help: "what could not be delivered" },
    Named { names: &["replays", "replay"], argument: "", help: "dead letters on their way back" },
    Named { names: &["traces", "tr", "trace"], argument: "[slowest | errors | ID | FILTER]", help: "requests" },
    Named { names: &["events", "ev", "event"], argument: "", help: "what happened" },
    Named { names: &["logs", "log"], argument: "[SERVICE]", help: "what instances write" },
    Named { names: &["quit", "q"], argument: "", help: "leave" },
];

/// What a command line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    View(View),
    Quit,
}

/// Understands `svc`, `inst orders`, `dl reason = poison`.
///
/// # Errors
/// In words, where there is no such view or its argument is not understood.
pub(crate) fn understand(line: &str) -> Result<Meant, String> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let argument = (!rest.is_empty()).then(|| rest.to_owned());
    let Some(named) = VIEWS.iter().find(|named| named.names.contains(&word)) else {
        let near = VIEWS.iter().flat_map(|named| named.names).copied();
        let near =
            near.max_by(|left, right| strsim::jaro_winkler(word, left).total_cmp(&strsim::jaro_winkler(word, right)));
        let near = near.filter(|near| strsim::jaro_winkler(word, near) > 0.7);
        let hint = near.map_or_else(|| "Tab shows all".to_owned(), |near| format!("did you mean :{near}?"));
        return Err(format!("there is no view `{word}`: {hint}"));
    };
    if named.argument.is_empty() && argument.is_some() {
        return Err(format!(":{} takes nothing after it; `/` filters what is shown", named.names[0]));
    }
    Ok(Meant::View(match named.names[0] {
        "overview" => View::Overview,
        "services" => View::Services,
        "instances" => View::Instances(argument),
        "gateways" => View::Gateways,
        "routes" => View::Routes,
        "edges" => View::Edges,
        "channels" => View::Channels,
        "subscriptions" => View::Subscriptions(argument),
        "breakers" => View::Breakers,
        "deadletters" => letters(argument)?,
        "replays" => View::Replays,
        "traces" => traces(argument),
        "events" => View::Events,
        "logs" => View::Logs(argument),
        _ => return Ok(Meant::Quit),
    }))
}

fn letters(argument: Option<String>) -> Result<View, String> {
    let Some(text) = argument else { return Ok(View::Letters(None)) };
    if is_id(&text, 16) {
        return Ok(View::Letter(text));
    }
    match parse(&text, DEAD_LETTER) {
        Ok(_) => Ok(View::Letters(Some(text))),
        Err(error) => Err(format!("column {}: {}; {}", error.column, error.message, error.help)),
    }
}

fn traces(argument: Option<String>) -> View {
    let Some(text) = argument else { return View::Traces(Which::Newest, None) };
    for which in [Which::Newest, Which::Slowest, Which::Errors] {
        match text.strip_prefix(which.word()) {
            Some("") => return View::Traces(which, None),
            Some(filter) if filter.starts_with(' ') => return View::Traces(which, Some(filter.trim().to_owned())),
            _ => {}
        }
    }
    if !text.contains(char::is_whitespace) {
        return View::Trace(text);
    }
    // The daemon knows what traces can be asked about, and says where a filter is wrong.
    View::Traces(Which::Newest, Some(text))
}

fn is_id(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What `typed` may go on to: names of views, or of `services` and `channels` where one may follow.
pub(crate) fn complete(typed: &str, services: &[&str], channels: &[&str]) -> Vec<String> {
    let Some((word, rest)) = typed.split_once(' ') else {
        let names = VIEWS.iter().filter_map(|named| named.names.iter().find(|name| name.starts_with(typed)));
        return names.map(ToString::to_string).collect();
    };
    let Some(named) = VIEWS.iter().find(|named| named.names.contains(&word)) else { return Vec::new() };
    let known: Vec<&str> = match named.argument {
        "[SERVICE]" => services.to_vec(),
        "[CHANNEL]" => channels.to_vec(),
        "[FILTER | ID]" => DEAD_LETTER.iter().map(|field| field.name).collect(),
        "" => Vec::new(),
        _ => vec!["newest", "slowest", "errors"],
    };
    known.into_iter().filter(|name| name.starts_with(rest.trim_start())).map(|name| format!("{word} {name}")).collect()
}

impl View {
    /// As it stands in the line of screens.
    pub(crate) fn title(&self) -> String {
        let of = |what: &str, name: &Option<String>| match name {
            Some(name) => format!("{what} of {name}"),
            None => what.to_owned(),
        };
        match self {
            Self::Overview => "overview".into(),
            Self::Services => "services".into(),
            Self::Instances(service) => of("instances", service),
            Self::Gateways => "gateways".into(),
            Self::Routes => "routes".into(),
            Self::Edges => "edges".into(),
            Self::Channels => "channels".into(),
            Self::Subscriptions(channel) => of("subscriptions", channel),
            Self::Breakers => "breakers".into(),
            Self::Letters(None) => "dead letters".into(),
            Self::Letters(Some(filter)) => format!("dead letters where {filter}"),
            Self::Letter(id) => format!("dead letter {id}"),
            Self::Replays => "replays".into(),
            Self::Traces(which, None) => format!("traces, {} first", which.word()),
            Self::Traces(which, Some(filter)) => format!("traces, {} first, where {filter}", which.word()),
            Self::Trace(id) => format!("trace {id}"),
            Self::Events => "events".into(),
            Self::Logs(service) => of("logs", service),
            Self::Page { kind, name, yaml } => {
                format!("{}/{name}{}", kind.singular(), if *yaml { " as YAML" } else { "" })
            }
        }
    }

    /// The kind of the things that are its rows, where they can be described.
    pub(crate) fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Services => Kind::Service,
            Self::Instances(_) => Kind::Instance,
            Self::Gateways => Kind::Gateway,
            Self::Routes => Kind::Route,
            Self::Edges => Kind::Edge,
            Self::Channels => Kind::Channel,
            Self::Subscriptions(_) => Kind::Subscription,
            Self::Breakers => Kind::Breaker,
            Self::Letters(_) | Self::Letter(_) => Kind::DeadLetter,
            Self::Replays => Kind::Replay,
            Self::Events => Kind::Event,
            _ => return None,
        })
    }

    /// Whether it is text to scroll in, without rows to choose from.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Self::Letter(_) | Self::Logs(_) | Self::Page { .. })
    }

    /// Whether what is new comes before what is there.
    pub(crate) fn is_newest_first(&self) -> bool {
        matches!(self, Self::Events | Self::Traces(..) | Self::Letters(_) | Self::Replays)
    }

    /// Whether it shows what has to be asked for, again and again while it is in front.
    pub(crate) fn is_asked_for(&self) -> bool {
        matches!(
            self,
            Self::Routes
                | Self::Edges
                | Self::Letters(_)
                | Self::Letter(_)
                | Self::Replays
                | Self::Traces(..)
                | Self::Trace(_)
                | Self::Page { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_a_view() {
        let view = |line: &str| understand(line);
        assert_eq!(view("svc"), Ok(Meant::View(View::Services)));
        assert_eq!(view(" inst orders "), Ok(Meant::View(View::Instances(Some("orders".into())))));
        assert_eq!(view("dl reason = poison"), Ok(Meant::View(View::Letters(Some("reason = poison".into())))));
        assert_eq!(view("dl 4f1c09ab77d2e310"), Ok(Meant::View(View::Letter("4f1c09ab77d2e310".into()))));
        assert_eq!(view("tr errors"), Ok(Meant::View(View::Traces(Which::Errors, None))));
        assert_eq!(
            view("tr slowest service = orders"),
            Ok(Meant::View(View::Traces(Which::Slowest, Some("service = orders".into()))))
        );
        assert_eq!(view("tr 0af7651916cd43dd"), Ok(Meant::View(View::Trace("0af7651916cd43dd".into()))));
        assert_eq!(view("q"), Ok(Meant::Quit));
        assert_eq!(view("servces"), Err("there is no view `servces`: did you mean :services?".into()));
        assert!(
            view("dl reason = ill").is_err_and(|why| why.starts_with("column 10:")),
            "{:?}",
            view("dl reason = ill")
        );
        assert!(view("svc orders").is_err());
    }

    #[test]
    fn what_is_typed_is_completed() {
        assert_eq!(complete("s", &[], &[]), ["services", "subscriptions"]);
        assert_eq!(complete("inst o", &["orders", "mailer"], &[]), ["inst orders"]);
        assert_eq!(complete("sub ", &["orders"], &["order.placed"]), ["sub order.placed"]);
        assert_eq!(complete("tr s", &[], &[]), ["tr slowest"]);
        assert!(complete("svc o", &["orders"], &[]).is_empty());
    }

    #[test]
    fn every_name_is_one_view_only() {
        let mut names: Vec<&str> = VIEWS.iter().flat_map(|named| named.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for name in names {
            assert!(understand(name).is_ok(), "{name}");
        }
    }
}

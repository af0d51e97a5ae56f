//! The message line in what is wanted: the broker and the couriers as services like any other, and the edges over which
//! services publish and receive. There is none of it without a channel.
//!
//! An edge carries one attempt; whether there is another is decided by whoever knows more: the publisher, who has a key
//! for it, and the courier, who counts attempts. So these edges try again only what never reached anybody, and their
//! breaker stays closed: a subscriber that is down is found out, paused and probed by the courier.

use std::collections::BTreeMap;

use super::desired::{DesiredEdge, DesiredService, Overlay, Template, edge_url, exhausted, loopback};
use super::ports::Ports;
use super::routing::edge_name;
use crate::delivery::{Alert, BROKER, COURIER, COURIER_CONFIG, Channel, CourierConfig, Retry, Subscription};
use crate::instance::{Check, Probe, Program, SpecEnv};
use crate::policy::{BreakerPolicy, BulkheadPolicy, Policy, RetryPolicy};
use crate::snapshot::Tracing;
use crate::topology::{
    BACKOFF, BrokerProvider, Channel as Written, MAX_MESSAGE, MAX_SIZE, Resources, RetryFailure, RetryOn, Topology,
};
use crate::units::{Bytes, Percent, Span};

/// The environment variable in which every publisher finds the courier: `http://127.0.0.1:20418/channels`.
const PUBLISH_URL: &str = "MESHCTL_PUBLISH_URL";

/// How long a publisher waits for the word that its messages are durable.
const PUBLISH_WITHIN: Span = Span::from_secs(5);

/// What one attempt to deliver may take.
const TIMEOUT: Span = Span::from_secs(10);

/// From everybody who publishes to the couriers, and from the couriers to everybody who receives.
pub(super) fn edges(topology: &Topology, ports: &mut Ports) -> Result<BTreeMap<String, DesiredEdge>, String> {
    let mut edges = BTreeMap::new();
    if topology.channels.is_empty() {
        return Ok(edges);
    }
    let mut add = |caller: &str, callee: &str, policy: Policy| {
        let name = edge_name(caller, callee);
        let port = ports.assign(&format!("edge/{name}")).ok_or_else(|| exhausted(ports.range))?;
        let (caller, callee) = (caller.to_owned(), callee.to_owned());
        edges.insert(name, DesiredEdge { caller, callee, policy, address: Some(loopback(port)) });
        Ok::<_, String>(())
    };
    for (name, _) in topology.services.iter().filter(|(_, service)| !service.published().is_empty()) {
        add(name, COURIER, policy(PUBLISH_WITHIN))?;
    }
    let mut longest: BTreeMap<&str, Span> = BTreeMap::new();
    for (_, service, subscription) in topology.channels.values().flat_map(Written::receivers) {
        let within = longest.entry(service).or_default();
        *within = (*within).max(subscription.timeout.unwrap_or(TIMEOUT));
    }
    for (service, within) in longest {
        add(COURIER, service, Policy { waits: false, ..policy(within) })?;
    }
    Ok(edges)
}

/// One attempt within `within`, as many at once as anybody likes: publishers and couriers have limits of their own.
fn policy(within: Span) -> Policy {
    Policy {
        deadline: within,
        attempt_timeout: within,
        retry: RetryPolicy {
            attempts: 3,
            on: vec![RetryOn::Failure(RetryFailure::ConnectFailure)],
            budget: Percent(1.0),
        },
        breaker: BreakerPolicy {
            failure_ratio: Percent(1.0),
            minimum_requests: u32::MAX,
            window: Span::from_secs(1),
            open_for: Span::from_secs(1),
            probes: 1,
        },
        bulkhead: BulkheadPolicy { concurrency: 100_000, queue: 0 },
        fallback: None,
        waits: true,
    }
}

/// The channels with every default filled in; `edges` say where the subscribers are.
pub(super) fn channels(topology: &Topology, edges: &BTreeMap<String, DesiredEdge>) -> BTreeMap<String, Channel> {
    topology.channels.iter().map(|(name, written)| (name.clone(), channel(topology, written, edges))).collect()
}

fn channel(topology: &Topology, written: &Written, edges: &BTreeMap<String, DesiredEdge>) -> Channel {
    let BrokerProvider::Embedded(broker) = &topology.providers.broker;
    let subscriptions = written.receivers().map(|(name, service, subscription)| {
        let retry = &subscription.retry;
        let alert = subscription.dead_letter.alert.as_ref();
        let subscription = Subscription {
            service: service.to_owned(),
            url: edge_url(edges, COURIER, service) + &subscription.deliver,
            concurrency: subscription.concurrency.unwrap_or(64),
            timeout: subscription.timeout.unwrap_or(TIMEOUT),
            retry: Retry {
                attempts: retry.attempts.unwrap_or(5),
                backoff: retry.backoff.clone().unwrap_or_else(|| BACKOFF.into()),
                jitter: retry.jitter.unwrap_or(Percent(0.2)),
            },
            alert: alert.map(|alert| Alert { count: alert.count, within: alert.within }),
        };
        (name.to_owned(), subscription)
    });
    Channel {
        partitions: written.partitions.unwrap_or(8),
        key: written.key.clone(),
        ordered: written.ordered.is_some(),
        retention: written.retention.or(broker.retention).unwrap_or(Span::from_secs(7 * 24 * 3600)),
        max_size: written.max_size.or(broker.max_size).unwrap_or(MAX_SIZE),
        max_message: written.max_message.unwrap_or(MAX_MESSAGE),
        idempotency_window: written.idempotency_window.unwrap_or(Span::from_secs(600)),
        subscriptions: subscriptions.collect(),
    }
}

/// The broker and the couriers.
pub(super) fn services(
    topology: &Topology,
    overlay: &Overlay,
    channels: &BTreeMap<String, Channel>,
) -> BTreeMap<String, DesiredService> {
    if channels.is_empty() {
        return BTreeMap::new();
    }
    let config = CourierConfig {
        topology: topology.name.clone().unwrap_or_default(),
        channels: channels.clone(),
        tracing: Tracing::default(),
    };
    let config = serde_json::to_string_pretty(&config).unwrap_or_default();
    let broker = Template { exclusive: true, ..role(BROKER, Span::from_secs(10), overlay) };
    let courier = Template {
        files: BTreeMap::from([(COURIER_CONFIG.to_owned(), config)]),
        ..role(COURIER, Span::from_secs(30), overlay)
    };
    let couriers = overlay.replicas.get(COURIER).copied().or(topology.providers.couriers.instances).unwrap_or(1);
    let service = |name: &str, template: Template, replicas: u32, depends_on: &[&str]| {
        let service = DesiredService {
            kind: name.into(),
            hash: template.hash(),
            template,
            replicas,
            depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
            drain: Span::from_secs(10),
            // A broker looks through what it has kept, and a courier waits for it.
            start_timeout: Span::from_secs(60),
            labels: BTreeMap::new(),
        };
        (name.to_owned(), service)
    };
    // There is one broker, whatever anybody asks for: two cannot share what it keeps.
    BTreeMap::from([service(BROKER, broker, 1, &[]), service(COURIER, courier, couriers, &[BROKER])])
}

/// A role of meshctl as a service.
fn role(name: &str, grace: Span, overlay: &Overlay) -> Template {
    Template {
        program: Program::Meshctl(vec![name.to_owned()]),
        env: BTreeMap::new(),
        files: BTreeMap::new(),
        working_dir: "/".into(),
        fixed_port: None,
        listens: true,
        exclusive: false,
        health: Probe {
            check: Check::Http("/healthz".into()),
            interval: Span::from_millis(500),
            timeout: Span::from_secs(1),
            failures: 2,
        },
        grace,
        resources: Resources::default(),
        log_max_size: Bytes(8 << 20),
        log_files: 2,
        restarts: overlay.restarts.get(name).copied().unwrap_or(0),
    }
}

/// What a publisher is told without asking.
pub(super) fn environment(edges: &BTreeMap<String, DesiredEdge>, service: &str) -> Option<(String, SpecEnv)> {
    let url = edge_url(edges, service, COURIER);
    (!url.is_empty()).then(|| (PUBLISH_URL.to_owned(), SpecEnv::Text(format!("{url}/channels"))))
}

/// Where `service` publishes to `channel`. The names of channels need no escaping in a path.
pub(super) fn publish_url(edges: &BTreeMap<String, DesiredEdge>, service: &str, channel: &str) -> String {
    format!("{}/channels/{channel}/messages", edge_url(edges, service, COURIER))
}

#[cfg(test)]
mod tests {
    use crate::load::{SourceFile, Sources, load};
    use crate::plan::{Desired, Overlay, Ports, render};

    use super::*;

    const SHOP: &str = "
name: shop
providers: { broker: { embedded: { retention: 2d } } }
services:
  orders: { builtin: hello, publishes: [order.placed], env: { EVENTS: { publishUrlOf: order.placed } } }
  billing: { builtin: hello, env: { NEXT: { publishUrlOf: invoice.issued } } }
  shipping: { builtin: hello }
channels:
  order.placed:
    key: orderId
    maxSize: 64MiB
    subscriptions:
      billing: { deliver: /events/order, timeout: 20s, retry: { attempts: 2 } }
      audit: { deliver: /audit, service: billing, deadLetter: { alert: { count: 3, within: 1m } } }
  invoice.issued:
    ordered: byKey
    subscriptions: { shipping: { deliver: /events/invoice } }
";

    fn desired(text: &str, overlay: &Overlay) -> Desired {
        let file = SourceFile { name: "shop.yaml".into(), folder: "/".into(), text: text.into() };
        let loaded = load(&Sources { files: vec![file], ..Sources::default() });
        let topology = loaded.topology.unwrap_or_else(|| panic!("{:?}", loaded.findings));
        render(&topology, overlay, &mut Ports::default()).expect("enough ports")
    }

    fn text(desired: &Desired, service: &str, variable: &str) -> String {
        match &desired.services[service].template.env[variable] {
            SpecEnv::Text(text) => text.clone(),
            SpecEnv::File(path) => panic!("{variable} of {service} is the file {path}"),
        }
    }

    #[test]
    fn a_channel_brings_broker_courier_and_the_edges_of_all_who_take_part() {
        let desired = desired(SHOP, &Overlay::default());
        assert_eq!(
            desired.edges.keys().collect::<Vec<_>>(),
            ["billing:courier", "courier:billing", "courier:shipping", "orders:courier"]
        );
        let address = |edge: &str| format!("http://{}", desired.edges[edge].address.expect("an address"));
        assert_eq!(
            text(&desired, "orders", "EVENTS"),
            format!("{}/channels/order.placed/messages", address("orders:courier"))
        );
        assert_eq!(text(&desired, "billing", PUBLISH_URL), format!("{}/channels", address("billing:courier")));
        assert!(!desired.services["shipping"].template.env.contains_key(PUBLISH_URL));

        let channel = &desired.channels["order.placed"];
        assert_eq!(channel.subscriptions["audit"].url, format!("{}/audit", address("courier:billing")));
        assert_eq!(channel.subscriptions["audit"].service, "billing");
        assert_eq!(desired.edges["courier:billing"].policy.deadline, Span::from_secs(20), "the longest of both");
        assert_eq!(desired.edges["orders:courier"].policy.attempt_timeout, Span::from_secs(5));
        let waits = |edge: &str| desired.edges[edge].policy.waits;
        assert!(waits("orders:courier") && !waits("courier:billing"));

        let (broker, courier) = (&desired.services["broker"], &desired.services["courier"]);
        assert!(broker.template.exclusive && broker.template.listens && broker.replicas == 1);
        assert_eq!(courier.depends_on, ["broker"]);
        let config: CourierConfig =
            serde_json::from_str(&courier.template.files[COURIER_CONFIG]).expect("the courier's configuration");
        assert_eq!(
            config,
            CourierConfig { topology: "shop".into(), channels: desired.channels.clone(), tracing: Tracing::default() }
        );
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let desired = desired(SHOP, &Overlay::default());
        let channel = &desired.channels["order.placed"];
        assert_eq!(
            (channel.partitions, channel.retention, channel.max_size),
            (8, Span::from_secs(172_800), Bytes(64 << 20))
        );
        assert_eq!((channel.max_message, channel.idempotency_window), (Bytes(1 << 20), Span::from_secs(600)));
        assert!(!channel.ordered && desired.channels["invoice.issued"].ordered);
        let billing = &channel.subscriptions["billing"];
        assert_eq!((billing.retry.attempts, billing.retry.jitter), (2, Percent(0.2)));
        assert_eq!(billing.retry.backoff, BACKOFF);
        assert_eq!((billing.concurrency, billing.timeout), (64, Span::from_secs(20)));
        let shipping = &desired.channels["invoice.issued"].subscriptions["shipping"];
        assert_eq!((shipping.retry.attempts, shipping.timeout), (5, Span::from_secs(10)));
        assert_eq!(desired.channels["invoice.issued"].max_size, Bytes(1 << 30));
    }

    #[test]
    fn couriers_scale_and_there_is_one_broker() {
        let overlay = Overlay {
            replicas: [("courier".to_owned(), 3), ("broker".to_owned(), 2)].into(),
            restarts: [("broker".to_owned(), 1)].into(),
        };
        let more = desired(SHOP, &overlay);
        assert_eq!((more.services["courier"].replicas, more.services["broker"].replicas), (3, 1));
        assert_ne!(more.services["broker"].hash, desired(SHOP, &Overlay::default()).services["broker"].hash);
        let file = SHOP.replace("retention: 2d } }", "retention: 2d } }, couriers: { instances: 2 }");
        assert_eq!(desired(&file, &Overlay::default()).services["courier"].replicas, 2);
    }

    #[test]
    fn without_channels_there_is_nothing_of_it() {
        let desired = desired("services: { a: { builtin: hello } }", &Overlay::default());
        assert_eq!(desired.services.len(), 1);
        assert!(desired.edges.is_empty() && desired.channels.is_empty());
    }
}

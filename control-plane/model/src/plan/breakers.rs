//! What operators say of breakers, and what it means for everybody else: which routes and channels a breaker can hurt.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::desired::Desired;
use super::routing::edge_name;
use crate::GATEWAY;
use crate::delivery::COURIER;
use crate::policy::Policy;
use crate::snapshot::Override;

/// What operators have said of one breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Standing {
    pub force: Option<Override>,
    /// Rises with each reset.
    pub epoch: u64,
    /// Of the first snapshot that says so.
    #[serde(skip)]
    pub generation: u64,
}

/// Who notices when an edge refuses its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The routes that lead over it, directly or through its caller, by name.
    pub routes: Vec<String>,
    /// The channels whose deliveries go over it, directly or through its caller, by name.
    pub channels: Vec<String>,
    /// What its callers get.
    pub callers_get: String,
}

/// What depends on `edge`; `None` when there is no such edge.
pub fn reach(desired: &Desired, edge: &str) -> Option<Reach> {
    let found = desired.edges.get(edge)?;
    let upstream = upstream(desired, &found.caller);
    let leads = |target: &str| {
        target == edge || desired.edges.get(target).is_some_and(|target| upstream.contains(target.callee.as_str()))
    };
    let over = |route: &&crate::snapshot::RouteRule| route.targets.iter().any(|(target, _)| leads(target));
    let routes = desired.routes.iter().filter(over).map(|route| route.name.clone());
    let delivers = |service: &str| leads(&edge_name(COURIER, service));
    let channels = desired
        .channels
        .iter()
        .filter(|(_, channel)| channel.subscriptions.values().any(|subscription| delivers(&subscription.service)));
    Some(Reach {
        routes: routes.collect(),
        channels: channels.map(|(name, _)| name.clone()).collect(),
        callers_get: callers_get(desired, edge),
    })
}

/// The services whose work needs `caller`'s: itself, and who calls it, and so on. Neither gateway nor courier is one of them:
/// what they call they call for somebody else.
fn upstream<'a>(desired: &'a Desired, caller: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next = vec![caller];
    while let Some(service) = next.pop() {
        if service != GATEWAY && service != COURIER && found.insert(service) {
            next.extend(desired.edges.values().filter(|edge| edge.callee == service).map(|edge| edge.caller.as_str()));
        }
    }
    found
}

/// Requests from outside are answered by the policy of their route, all others by that of the edge.
fn callers_get(desired: &Desired, edge: &str) -> String {
    const PROBLEM: &str = "503 problem+json breakerForcedOpen with Retry-After";
    let fallback =
        |policy: &Policy| policy.fallback.as_ref().map(|f| format!("the fallback: {}", f.status.unwrap_or(200)));
    let Some(found) = desired.edges.get(edge) else { return PROBLEM.into() };
    match found.caller.as_str() {
        COURIER => "messages wait in their channels and use up no attempt".into(),
        GATEWAY => {
            let direct = desired.routes.iter().filter(|route| route.targets.iter().any(|(target, _)| target == edge));
            let answers: Vec<(&str, String)> = direct
                .map(|route| (route.name.as_str(), fallback(&route.policy).unwrap_or_else(|| PROBLEM.into())))
                .collect();
            match answers.as_slice() {
                [] => PROBLEM.into(),
                [(_, first), rest @ ..] if rest.iter().all(|(_, answer)| answer == first) => first.clone(),
                several => {
                    several.iter().map(|(route, what)| format!("{route}: {what}")).collect::<Vec<_>>().join("; ")
                }
            }
        }
        _ => fallback(&found.policy).unwrap_or_else(|| PROBLEM.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{SourceFile, Sources, load};
    use crate::plan::{Overlay, Ports, render};

    fn desired() -> Desired {
        let text = "
services:
  web: { command: [web], calls: { orders: {} } }
  orders: { command: [orders], calls: { inventory: { fallback: { status: 203, body: '{}' } }, prices: {} }, publishes: [order.placed] }
  inventory: { command: [inventory] }
  prices: { command: [prices] }
  billing: { command: [billing], calls: { prices: {} } }
routes:
  - { path: /, to: web }
  - { path: /orders, to: orders, fallback: { body: later } }
  - { path: '/orders/*', to: orders }
  - { path: /stock, to: inventory }
channels:
  order.placed: { subscriptions: { billing: { deliver: /placed } } }
";
        let file = SourceFile { name: "test.yaml".into(), folder: "/".into(), text: text.into() };
        let loaded = load(&Sources { files: vec![file], ..Sources::default() });
        let topology = loaded.topology.unwrap_or_else(|| panic!("{:?}", loaded.findings));
        render(&topology, &Overlay::default(), &mut Ports::default()).expect("rendered")
    }

    #[test]
    fn everybody_who_needs_the_caller_is_reached() {
        let desired = desired();
        let of = |edge| reach(&desired, edge).expect("an edge");
        let inventory = of("orders:inventory");
        assert_eq!(
            inventory.routes,
            ["/", "/orders", "/orders/*"],
            "and not /stock, which leads there by another edge"
        );
        assert!(inventory.channels.is_empty());
        assert_eq!(inventory.callers_get, "the fallback: 203");
        let prices = of("billing:prices");
        assert_eq!((prices.routes.len(), prices.channels.as_slice()), (0, &["order.placed".to_owned()][..]));
        assert!(prices.callers_get.starts_with("503 problem+json breakerForcedOpen"));
        let delivery = of("courier:billing");
        assert_eq!((delivery.routes.len(), delivery.channels.len()), (0, 1), "who publishes does not wait for it");
        let direct = of("gateway:orders");
        assert_eq!(direct.routes, ["/orders", "/orders/*"]);
        assert!(direct.callers_get.starts_with("/orders: the fallback: 200; /orders/*: 503"), "{}", direct.callers_get);
        assert_eq!(of("orders:courier").routes, ["/", "/orders", "/orders/*"]);
        assert_eq!(reach(&desired, "orders:nobody"), None);
    }
}

//! Which route a request takes. Routes come most specific first, and the first that matches wins; an index by host and
//! first segment keeps that cheap when there are thousands.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, Method};
use meshctl_model::snapshot::{HostMatch, RouteRule};

#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    rules: Vec<Rule>,
    by_host: HashMap<Box<str>, Paths>,
    /// Routes of any host, and of all hosts below one.
    other: Paths,
}

/// Routes by their first segment, each list in order.
#[derive(Debug, Default)]
struct Paths {
    literal: HashMap<Box<str>, Vec<u32>>,
    wild: Vec<u32>,
}

#[derive(Debug)]
struct Rule {
    suffix: Option<Box<str>>,
    /// `None` is `*`.
    segments: Box<[Option<Box<str>>]>,
    below: bool,
    methods: Box<[Method]>,
    headers: Vec<(HeaderName, Option<Vec<u8>>)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The index of the rule.
    Route(usize),
    /// The path is there, for these methods.
    OtherMethods(Vec<Method>),
    Nothing,
}

impl RouteTable {
    /// # Errors
    /// When a rule cannot be matched by any request: a method or header name that HTTP does not allow.
    pub(crate) fn new(routes: &[RouteRule]) -> Result<Self, String> {
        let mut table = Self::default();
        for route in routes {
            let at = u32::try_from(table.rules.len()).map_err(|_| "more routes than can be counted".to_owned())?;
            let rule = Rule::new(route).map_err(|why| format!("route `{}`: {why}", route.name))?;
            let paths = match &route.host {
                Some(HostMatch::Exact(host)) => table.by_host.entry(host.as_str().into()).or_default(),
                _ => &mut table.other,
            };
            match rule.segments.first() {
                Some(Some(segment)) => paths.literal.entry(segment.clone()).or_default().push(at),
                _ => paths.wild.push(at),
            }
            table.rules.push(rule);
        }
        Ok(table)
    }

    /// `host` in lower case without a port.
    pub(crate) fn find(&self, host: &str, path: &str, method: &Method, headers: &HeaderMap) -> Found {
        let path = path.strip_prefix('/').unwrap_or(path);
        let first = path.split('/').next().unwrap_or("");
        let exact = if self.by_host.is_empty() { None } else { self.by_host.get(host) };
        let mut lists: [&[u32]; 4] = [
            exact.map_or(&[], |paths| paths.beginning(first)),
            exact.map_or(&[], |paths| &paths.wild),
            self.other.beginning(first),
            &self.other.wild,
        ];
        let mut allowed: Vec<Method> = Vec::new();
        // The lists are in order: the smallest head of all four is the next route to try.
        while let Some(list) = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0]) {
            let at = list[0] as usize;
            *list = &list[1..];
            let rule = &self.rules[at];
            if !rule.matches(host, path, headers) {
                continue;
            }
            if rule.methods.is_empty() || rule.methods.contains(method) {
                return Found::Route(at);
            }
            allowed.extend(rule.methods.iter().cloned());
        }
        if allowed.is_empty() {
            return Found::Nothing;
        }
        allowed.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        allowed.dedup();
        Found::OtherMethods(allowed)
    }
}

impl Paths {
    fn beginning(&self, first: &str) -> &[u32] {
        self.literal.get(first).map_or(&[], Vec::as_slice)
    }
}

impl Rule {
    fn new(route: &RouteRule) -> Result<Self, String> {
        let methods = route.methods.iter().map(|m| m.parse().map_err(|_| format!("`{m}` is not a method")));
        let headers = route.headers.iter().map(|(name, value)| {
            let name = name.parse::<HeaderName>().map_err(|_| format!("`{name}` is not a header name"))?;
            Ok::<_, String>((name, value.as_ref().map(|value| value.as_bytes().to_vec())))
        });
        let segments = route.path.segments.iter().map(|s| (s != "*").then(|| s.as_str().into()));
        let root = route.path.segments == [""];
        Ok(Self {
            suffix: match &route.host {
                Some(HostMatch::Suffix(suffix)) => Some(suffix.as_str().into()),
                _ => None,
            },
            segments: if root { Box::default() } else { segments.collect() },
            below: route.path.below,
            methods: methods.collect::<Result<_, _>>()?,
            headers: headers.collect::<Result<_, _>>()?,
        })
    }

    /// The exact host is settled by the index. `path` without its first slash.
    fn matches(&self, host: &str, path: &str, headers: &HeaderMap) -> bool {
        let host_fits =
            self.suffix.as_ref().is_none_or(|suffix| host.len() > suffix.len() && host.ends_with(&**suffix));
        host_fits
            && self.path_matches(path)
            && self.headers.iter().all(|(name, wanted)| match wanted {
                None => headers.contains_key(name),
                Some(wanted) => headers.get_all(name).iter().any(|value| value.as_bytes() == wanted),
            })
    }

    fn path_matches(&self, path: &str) -> bool {
        if self.segments.is_empty() {
            // `/` alone, or everything.
            return self.below || path.is_empty();
        }
        let mut rest = Some(path);
        for wanted in &*self.segments {
            let Some(present) = rest else { return false };
            let (segment, after) = match present.split_once('/') {
                Some((segment, after)) => (segment, Some(after)),
                None => (present, None),
            };
            let fits = wanted.as_ref().map_or(!segment.is_empty(), |wanted| **wanted == *segment);
            if !fits {
                return false;
            }
            rest = after;
        }
        rest.is_some() == self.below
    }
}

#[cfg(test)]
mod tests {
    use meshctl_model::snapshot::{PathMatch, Snapshot};
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> RouteRule {
        let (methods, rest) = text.split_once(' ').unwrap_or(("", text));
        let (host, path) = rest.split_once('/').expect("a path");
        let below = path.ends_with("/*") || path == "*";
        let literal = if below { path.trim_end_matches('*').trim_end_matches('/') } else { path };
        RouteRule {
            name: text.to_owned(),
            host: match host {
                "" => None,
                host => {
                    Some(host.strip_prefix('*').map_or(HostMatch::Exact(host.into()), |s| HostMatch::Suffix(s.into())))
                }
            },
            path: PathMatch {
                segments: literal.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect(),
                below,
            },
            methods: methods.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect(),
            headers: Vec::new(),
            targets: Vec::new(),
            idempotency_key: None,
            rate_limit: None,
            policy: meshctl_model::policy::Policy::default(),
        }
    }

    fn found<'a>(rules: &'a [RouteRule], host: &str, method: &str, path: &str) -> &'a str {
        let table = RouteTable::new(rules).expect("rules are well formed");
        match table.find(host, path, &method.parse().expect("a method"), &HeaderMap::new()) {
            Found::Route(at) => &rules[at].name,
            Found::OtherMethods(_) => "405",
            Found::Nothing => "404",
        }
    }

    fn ordered(texts: &[&str]) -> Vec<RouteRule> {
        let mut snapshot = Snapshot { routes: texts.iter().map(|text| rule(text)).collect(), ..Snapshot::default() };
        snapshot.order_routes();
        snapshot.routes
    }

    #[test]
    fn the_most_specific_wins() {
        let rules = ordered(&[
            "/*",
            "/orders",
            "/orders/*",
            "GET /orders",
            "/orders/*/lines",
            "/orders/special/lines",
            "beta.shop.local/orders",
            "*.shop.local/orders",
            "*.beta.shop.local/orders",
            "POST /carts",
        ]);
        for (host, method, path, wanted) in [
            ("x", "GET", "/orders", "GET /orders"),
            ("x", "POST", "/orders", "/orders"),
            ("x", "GET", "/orders/7", "/orders/*"),
            ("x", "GET", "/orders/", "/orders/*"),
            ("x", "GET", "/orders/7/lines", "/orders/*/lines"),
            ("x", "GET", "/orders/special/lines", "/orders/special/lines"),
            ("x", "GET", "/orders/7/lines/2", "/orders/*"),
            ("beta.shop.local", "GET", "/orders", "beta.shop.local/orders"),
            ("a.shop.local", "GET", "/orders", "*.shop.local/orders"),
            ("a.beta.shop.local", "GET", "/orders", "*.beta.shop.local/orders"),
            ("shop.local", "GET", "/orders", "GET /orders"),
            ("x", "GET", "/", "/*"),
            ("x", "GET", "/elsewhere/deep", "/*"),
            ("x", "POST", "/carts", "POST /carts"),
            ("x", "GET", "/carts", "/*"),
        ] {
            assert_eq!(found(&rules, host, method, path), wanted, "{method} {host}{path}");
        }
    }

    #[test]
    fn nothing_and_other_methods() {
        let rules = ordered(&["GET,PUT /orders", "POST /orders", "/users/*/cart"]);
        assert_eq!(found(&rules, "x", "GET", "/order"), "404");
        assert_eq!(found(&rules, "x", "GET", "/users//cart"), "404");
        assert_eq!(found(&rules, "x", "GET", "/users/7/cart"), "/users/*/cart");
        let table = RouteTable::new(&rules).expect("well formed");
        let Found::OtherMethods(allowed) = table.find("x", "/orders", &Method::DELETE, &HeaderMap::new()) else {
            panic!("405 expected")
        };
        assert_eq!(allowed, [Method::GET, Method::POST, Method::PUT]);
    }

    #[test]
    fn headers_narrow() {
        let mut rules = vec![rule("/orders"), rule("/orders")];
        rules[1].headers = vec![("x-beta".into(), Some("yes".into())), ("x-any".into(), None)];
        rules[1].name = "beta".into();
        let mut snapshot = Snapshot { routes: rules, ..Snapshot::default() };
        snapshot.order_routes();
        let table = RouteTable::new(&snapshot.routes).expect("well formed");
        let with = |pairs: &[(&'static str, &'static str)]| {
            HeaderMap::from_iter(
                pairs.iter().map(|(n, v)| (HeaderName::from_static(n), http::HeaderValue::from_static(v))),
            )
        };
        let at = |headers| match table.find("x", "/orders", &Method::GET, &headers) {
            Found::Route(at) => snapshot.routes[at].name.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(at(with(&[("x-beta", "yes"), ("x-any", "1")])), "beta");
        assert_eq!(at(with(&[("x-beta", "no"), ("x-any", "1")])), "/orders");
        assert_eq!(at(with(&[("x-beta", "yes")])), "/orders");
    }

    proptest! {
        /// The index finds exactly what reading the list from the top would find.
        #[test]
        fn index_equals_the_plain_list(
            rules in prop::collection::vec("(GET |POST |)(a\\.b|\\*\\.b|)/(a|b|\\*)?(/(a|\\*))?(/\\*)?", 1..20),
            host in "a\\.b|b|c\\.b", path in "/(a|b|)(/(a|b))?(/a)?", post: bool,
        ) {
            let texts: Vec<&str> = rules.iter().map(String::as_str).collect();
            let rules = ordered(&texts);
            let table = RouteTable::new(&rules).expect("well formed");
            let method = if post { Method::POST } else { Method::GET };
            let plain = rules.iter().position(|route| {
                let rule = Rule::new(route).expect("well formed");
                let exact = match &route.host { Some(HostMatch::Exact(exact)) => *exact == host, _ => true };
                exact && rule.matches(&host, &path[1..], &HeaderMap::new())
                    && (rule.methods.is_empty() || rule.methods.contains(&method))
            });
            let found = match table.find(&host, &path, &method, &HeaderMap::new()) { Found::Route(at) => Some(at), _ => None };
            prop_assert_eq!(found, plain);
        }
    }
}

//! What is sent, and to whom: flows of the running system, a request of one's own to its gateway, or any URL.

use std::net::SocketAddr;
use std::time::Duration;

use meshctl_api::client::Client;
use meshctl_api::view::flows::{Flow, FlowRequest};
use meshctl_load::plan::{Arrivals, Completion, Plan, Template};
use meshctl_model::exit;
use meshctl_model::flow::content_type;

use super::Args;
use crate::failure::Failure;
use crate::session::Session;
use crate::show::load::{connections, grouped, seconds};

/// Where requests go and what they are.
#[derive(Debug)]
pub(super) struct Target {
    address: SocketAddr,
    /// The value of `Host`.
    host: String,
    requests: Vec<Template>,
    /// Where they are flows, each with what the topology expects of it in the way in which it is sent, in the same order.
    expected: Vec<(String, Vec<String>)>,
    /// Of the system whose gateway it is.
    client: Option<Client>,
}

/// What the words of the command line mean.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// By name; all of them where empty.
    Flows(Vec<String>),
    Request {
        method: Option<String>,
        /// A path, or a URL.
        at: String,
        body: Option<String>,
    },
}

impl Target {
    /// # Errors
    /// Words that mean nothing, a flow that is not there, a system that is not up, a host that cannot be found.
    pub(super) async fn find(session: &Session, args: &Args) -> Result<Self, Failure> {
        match wanted(&args.what)? {
            Wanted::Flows(names) => {
                let own = [args.method.is_some(), args.body.is_some(), args.body_file.is_some()];
                if own.contains(&true) {
                    return Err(Failure::usage("a flow has its own method and body")
                        .hint("name a path or URL instead of a flow, or leave --method and --body out"));
                }
                let client = session.daemon().await?;
                let (address, host) = gateway(&client).await?;
                let flows = chosen(client.flows().await?.items, &names)?;
                let (requests, expected) = sides(flows, args, !names.is_empty())?;
                Ok(Self { address, host, requests, expected, client: Some(client) })
            }
            Wanted::Request { method, at, body } => {
                if args.asynchronous {
                    return Err(Failure::usage("only a flow says where its effect shows")
                        .hint("name one that has `asynchronous:` in the topology"));
                }
                let (address, host, path, client) = match at.strip_prefix("http://") {
                    Some(rest) => {
                        let (authority, path) = split_authority(rest);
                        (resolve(authority).await?, authority.to_owned(), path, None)
                    }
                    None => {
                        let client = session.daemon().await?;
                        let (address, host) = gateway(&client).await?;
                        (address, host, at, Some(client))
                    }
                };
                let request = own_request(args, method, path, body)?;
                Ok(Self { address, host, requests: vec![request], expected: Vec::new(), client })
            }
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn requests(&self) -> &[Template] {
        &self.requests
    }

    pub(super) fn expected(&self) -> &[(String, Vec<String>)] {
        &self.expected
    }

    pub(super) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// `place-order`, or several with commas.
    pub(super) fn name(&self) -> String {
        self.requests.iter().map(|request| request.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    /// What is about to happen, in a line.
    pub(super) fn intent(&self, plan: &Plan) -> String {
        let connections = connections(plan.connections);
        let how = match plan.arrivals {
            Arrivals::Open { per_second } => {
                format!("{connections}, {}/s", grouped(per_second.round() as u64))
            }
            Arrivals::Closed => format!("{connections}, each sends when it is answered"),
        };
        let before: Vec<String> = [("ramp", plan.ramp), ("warm-up", plan.warm_up)]
            .into_iter()
            .filter(|(_, span)| !span.is_zero())
            .map(|(what, span)| format!("{} of {what}", seconds(span.as_secs_f64())))
            .collect();
        let after = if before.is_empty() { String::new() } else { format!(" after {}", before.join(" and ")) };
        let (name, url) = (self.name(), self.url());
        format!("{name} at {url}: {how}, for {}{after}", seconds(plan.duration.as_secs_f64()))
    }
}

fn wanted(words: &[String]) -> Result<Wanted, Failure> {
    // `'POST /orders {…}'` in one word is what `trace --send` takes, too.
    let split: Vec<String>;
    let words = match words {
        [one] if one.contains(' ') => {
            split = one.splitn(3, ' ').map(str::to_owned).collect();
            split.as_slice()
        }
        words => words,
    };
    let is_method = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    let is_place = |word: &str| word.starts_with('/') || word.contains("://");
    let request = |method: Option<&String>, at: &String, body: Option<&String>| Wanted::Request {
        method: method.cloned(),
        at: at.clone(),
        body: body.cloned(),
    };
    let wanted = match words {
        [method, at] if is_method(method) && is_place(at) => request(Some(method), at, None),
        [method, at, body] if is_method(method) && is_place(at) => request(Some(method), at, Some(body)),
        [at] if is_place(at) => request(None, at, None),
        [at, body] if is_place(at) => request(None, at, Some(body)),
        names if !names.iter().any(|name| is_place(name)) => Wanted::Flows(names.to_vec()),
        _ => {
            return Err(Failure::usage(format!("`{}` is neither flows nor a request", words.join(" ")))
                .hint("write names of flows, or METHOD PATH [BODY] with the body in quotes, or a URL"));
        }
    };
    match &wanted {
        Wanted::Request { at, .. } if at.contains("://") && !at.starts_with("http://") => {
            Err(Failure::usage(format!("`{at}`: load is sent as plain HTTP/1.1"))
                .hint("write http://HOST:PORT/PATH, the address behind whatever ends TLS"))
        }
        _ => Ok(wanted),
    }
}

/// Where requests from outside arrive.
async fn gateway(client: &Client) -> Result<(SocketAddr, String), Failure> {
    let status = client.status().await?;
    let Some(gateway) = status.gateways.first() else {
        return Err(Failure::not_found("there is no gateway to send to: nothing is applied")
            .hint("`meshctl apply FILE` brings a system up, `meshctl loadtest URL` needs none"));
    };
    let host = gateway.url.strip_prefix("http://").unwrap_or(&gateway.url);
    let host = host.trim_end_matches('/');
    let mut address = resolve(host).await?;
    // One that listens everywhere is reached here.
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Ok((address, host.to_owned()))
}

/// `127.0.0.1:9000` and `/path?query`, which is `/` where there is none.
fn split_authority(rest: &str) -> (&str, String) {
    match rest.find(['/', '?']) {
        Some(at) if rest[at..].starts_with('/') => (&rest[..at], rest[at..].to_owned()),
        Some(at) => (&rest[..at], format!("/{}", &rest[at..])),
        None => (rest, "/".to_owned()),
    }
}

async fn resolve(authority: &str) -> Result<SocketAddr, Failure> {
    if let Ok(address) = authority.parse() {
        return Ok(address);
    }
    let with_port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => authority.to_owned(),
        _ => format!("{authority}:80"),
    };
    let found = tokio::net::lookup_host(&with_port).await;
    let unknown = || Failure::new(exit::FAILURE, format!("cannot find the host of {authority}"));
    let addresses: Vec<SocketAddr> = found.map_err(|error| unknown().caused_by(&error))?.collect();
    // What only listens on one of the two listens on the older one.
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| unknown().hint("write an address, such as http://127.0.0.1:9000/"))
}

/// Those named, or all.
fn chosen(mut flows: Vec<Flow>, names: &[String]) -> Result<Vec<Flow>, Failure> {
    if flows.is_empty() {
        return Err(Failure::not_found("the topology has no flows")
            .hint("describe some under `flows:`, or send a request: meshctl loadtest GET /path"));
    }
    let known: Vec<String> = flows.iter().map(|flow| flow.name.clone()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let near = known.iter().map(|name| (strsim::jaro_winkler(unknown, name), name));
        let near = near.filter(|(near, _)| *near > 0.8).max_by(|left, right| left.0.total_cmp(&right.0));
        return Err(Failure::not_found(format!("there is no flow `{unknown}`")).hint(match near {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None => format!("there are {}; a path begins with /", known.join(", ")),
        }));
    }
    flows.retain(|flow| names.is_empty() || names.contains(&flow.name));
    Ok(flows)
}

type Sides = (Vec<Template>, Vec<(String, Vec<String>)>);

/// The way in which each flow is sent: with `--async` until its effect shows, where it has one.
fn sides(flows: Vec<Flow>, args: &Args, named: bool) -> Result<Sides, Failure> {
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for flow in &flows {
        let wants_effect = args.asynchronous || flow.synchronous.is_none();
        if args.asynchronous && named && flow.asynchronous.is_none() {
            return Err(no_effect(&flow.name));
        }
        let effect = flow.asynchronous.as_ref().filter(|_| wants_effect);
        let Some(request) = effect.or(flow.synchronous.as_ref()) else { continue };
        requests.push(template(flow, request, effect.is_some(), &args.headers));
        let of_this = flow.slo.iter().filter(|slo| slo.asynchronous == effect.is_some());
        expected.push((flow.name.clone(), of_this.map(|slo| slo.expect.clone()).collect()));
    }
    if args.asynchronous && requests.iter().all(|request| request.completion.is_none()) {
        return Err(no_effect("any flow"));
    }
    Ok((requests, expected))
}

fn no_effect(flow: &str) -> Failure {
    Failure::usage(format!("the topology does not say where the effect of {flow} shows"))
        .hint("add `asynchronous: { request: …, done: { visible: \"GET /path/{{field}}\" } }` to the flow")
}

fn template(flow: &Flow, request: &FlowRequest, follows: bool, more: &[(String, String)]) -> Template {
    let mut headers: Vec<(String, String)> =
        request.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    replace(&mut headers, more);
    let completion = request.visible.as_ref().filter(|_| follows).map(|visible| Completion {
        path: visible.path.clone(),
        every: Duration::from_millis(visible.every_ms),
        within: Duration::from_millis(visible.within_ms),
    });
    Template {
        name: flow.name.clone(),
        weight: flow.weight,
        method: request.method.clone(),
        path: request.path.clone(),
        headers,
        body: request.body.clone(),
        values: flow.values.iter().map(|(name, values)| (name.clone(), values.clone())).collect(),
        expect: request.status.into_iter().collect(),
        completion,
    }
}

/// A header of the command line stands in place of the one of the same name.
fn replace(headers: &mut Vec<(String, String)>, more: &[(String, String)]) {
    headers.retain(|(name, _)| !more.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)));
    headers.extend(more.iter().cloned());
}

fn own_request(args: &Args, method: Option<String>, path: String, body: Option<String>) -> Result<Template, Failure> {
    let from_file = match &args.body_file {
        Some(file) => Some(
            std::fs::read_to_string(file)
                .map_err(|error| Failure::file(format_args!("cannot read {}", file.display()), &error))?,
        ),
        None => None,
    };
    if body.is_some() && (args.body.is_some() || from_file.is_some()) {
        return Err(Failure::usage("the body is given twice").hint("leave --body or --body-file out"));
    }
    let body = body.or(args.body.clone()).or(from_file).unwrap_or_default();
    let method = args.method.clone().or(method);
    let method = method.unwrap_or_else(|| if body.is_empty() { "GET" } else { "POST" }.to_owned());
    let mut headers = args.headers.clone();
    if let Some(kind) = content_type(&body, headers.iter().map(|(name, _)| name.as_str())) {
        headers.push(("content-type".to_owned(), kind.to_owned()));
    }
    let shown = path.split('?').next().unwrap_or_default();
    let name = format!("{method} {shown}");
    Ok(Template { name, weight: 1.0, method, path, headers, body, ..Template::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    fn request(method: Option<&str>, at: &str, body: Option<&str>) -> Wanted {
        Wanted::Request { method: method.map(Into::into), at: at.into(), body: body.map(Into::into) }
    }

    #[test]
    fn words_mean_what_they_look_like() {
        for (given, meant) in [
            (&[][..], Wanted::Flows(Vec::new())),
            (&["place-order", "browse"], Wanted::Flows(words(&["place-order", "browse"]))),
            (&["GET", "/a"], request(Some("GET"), "/a", None)),
            (&["POST", "/a", "{ }"], request(Some("POST"), "/a", Some("{ }"))),
            (&["POST /a {\"b\": 1}"], request(Some("POST"), "/a", Some("{\"b\": 1}"))),
            (&["/a"], request(None, "/a", None)),
            (&["http://x:1/a"], request(None, "http://x:1/a", None)),
            (&["PUT", "http://x/a"], request(Some("PUT"), "http://x/a", None)),
            (&["GET"], Wanted::Flows(words(&["GET"]))),
        ] {
            assert_eq!(wanted(&words(given)).expect("it means something"), meant, "{given:?}");
        }
        for wrong in [&["https://x/a"][..], &["get", "/a"], &["place-order", "/a"], &["POST", "/a", "b", "c"]] {
            assert_eq!(wanted(&words(wrong)).expect_err("it means nothing").exit, exit::USAGE, "{wrong:?}");
        }
    }

    #[test]
    fn urls_come_apart() {
        assert_eq!(split_authority("a:1/b?c"), ("a:1", "/b?c".into()));
        assert_eq!(split_authority("a"), ("a", "/".into()));
        assert_eq!(split_authority("a?b=c"), ("a", "/?b=c".into()));
    }
}

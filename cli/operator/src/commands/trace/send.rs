//! `meshctl trace --send`: a request through the gateway, in a trace of its own that is surely recorded.

use std::time::Duration;

use meshctl_api::client::Client;
use meshctl_api::view::InstanceState;
use meshctl_model::exit;
use tokio::time::Instant;

use super::wait::until_complete;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, styled};
use crate::payload::{self, Form};
use crate::session::Session;
use crate::{output, show};

/// What is sent: `POST /orders {"sku":"book"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    method: reqwest::Method,
    path: String,
    body: Option<String>,
}

/// So much of the answer is shown.
const SHOWN: usize = 200;

pub(super) fn request(text: &str) -> Result<Request, String> {
    let form = "write METHOD PATH and perhaps a body, such as 'GET /orders/1'";
    let (method, rest) = text.trim().split_once(char::is_whitespace).ok_or(form)?;
    let (path, body) = rest.trim_start().split_once(char::is_whitespace).unwrap_or((rest.trim_start(), ""));
    let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).map_err(|_| form)?;
    if !path.starts_with('/') {
        return Err(format!("`{path}` is no path on the gateway: {form}"));
    }
    let body = Some(body.trim()).filter(|body| !body.is_empty()).map(str::to_owned);
    Ok(Request { method, path: path.to_owned(), body })
}

pub(super) async fn run(
    session: &Session,
    request: &Request,
    headers: &[(String, String)],
    timeout: Duration,
    format: &Format,
) -> Outcome {
    let client = session.daemon().await?;
    let url = gateway(&client).await?;
    let begun = Instant::now();
    let id = trace_id();
    answer(session, request, &url, headers, &id, timeout).await?;
    until_complete(session, &client, &id, (begun, timeout), format).await
}

/// The address of a gateway that is ready.
async fn gateway(client: &Client) -> Result<String, Failure> {
    let gateways = client.gateways().await?.items;
    let ready = gateways.into_iter().find(|gateway| gateway.state == InstanceState::Ready);
    ready.map(|gateway| gateway.url).ok_or_else(|| {
        Failure::new(exit::FAILURE, "no gateway is ready to take the request").hint("`meshctl status` tells why")
    })
}

/// Sends it, and says what was answered. That it was refused is a result: what became of it is shown all the same.
async fn answer(
    session: &Session,
    request: &Request,
    url: &str,
    headers: &[(String, String)],
    trace_id: &str,
    timeout: Duration,
) -> Result<(), Failure> {
    let Request { method, path, body } = request;
    let failed = |error: &dyn std::error::Error| {
        Failure::new(exit::FAILURE, format!("cannot send {method} {path} to {url}")).caused_by(error)
    };
    // The environment's proxies are for other machines; a redirection is an answer.
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
    let http = http.map_err(|error| failed(&error))?;
    let mut call = http.request(method.clone(), format!("{url}{path}")).timeout(timeout);
    call = call.header("traceparent", format!("00-{trace_id}-{:016x}-01", rand::random::<u64>() | 1));
    let has_type = headers.iter().any(|(name, _)| name == "content-type");
    if let Some(body) = body.as_ref().filter(|_| !has_type) {
        let is_json = payload::guess(body.as_bytes()) == Form::Json;
        call = call.header("content-type", if is_json { "application/json" } else { "text/plain; charset=utf-8" });
    }
    call = headers.iter().fold(call, |call, (name, value)| call.header(name, value));
    if let Some(body) = body {
        call = call.body(body.clone());
    }
    let begun = Instant::now();
    let answer = call.send().await.map_err(|error| failed(&error))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| failed(&error))?;
    let style = if status.is_success() { output::GOOD } else { output::BAD };
    let took = show::milliseconds(begun.elapsed().as_secs_f64() * 1000.0);
    let mut shown: String = text.trim().chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().count() > SHOWN {
        shown.push('…');
    }
    session.say(format_args!("{method} {path} answered {} after {took} {shown}", styled(style, status)));
    Ok(())
}

/// No trace that there was, and never nothing but zeros.
fn trace_id() -> String {
    format!("{:032x}", rand::random::<u128>() | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_method_a_path_and_perhaps_a_body() {
        let read = |text: &str| request(text).map(|Request { method, path, body }| (method.to_string(), path, body));
        let order = r#"{"sku":"book", "quantity":1}"#;
        assert_eq!(
            read(&format!("POST /orders {order}")),
            Ok(("POST".into(), "/orders".into(), Some(order.to_owned())))
        );
        assert_eq!(read(" get  /orders/1 "), Ok(("GET".into(), "/orders/1".into(), None)));
        for wrong in ["", "GET", "/orders", "GET orders", "G(T /orders"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(trace_id().len() == 32 && trace_id() != trace_id());
    }
}

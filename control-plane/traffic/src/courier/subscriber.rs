//! A subscriber as HTTP sees it: kept-alive connections to one address, and one POST for each attempt.
//!
//! How many connections there are is bounded by how many attempts are under way. A connection that was idle may be one that
//! the other side is just closing: what fails on it without an answer goes once more, on a new one. Delivering a message
//! twice is allowed here, failing it for nothing is not.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, HOST, MaxSizeReached};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use jiff::Timestamp;
use meshctl_model::message::{Failure, Message, header};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::answer;
use super::delivery::{Answer, Failed};
use super::event::BAGGAGE;
use crate::clock;
use crate::deadline;
use crate::problem::CAUSE;
use crate::socket::Socket;
use crate::trace::{TRACEPARENT, TRACESTATE, Trace};

/// Shorter than what common servers allow (Node.js: 5 s).
const IDLE: Duration = Duration::from_secs(4);
/// An answer's body is read to its end, so that the connection can be used again, unless it is longer than this.
const BODY: usize = 64 << 10;
/// How much of it is kept, in bytes, and told, in characters.
const KEPT: usize = 2048;
const TOLD: usize = 200;

type Sender = SendRequest<Full<Bytes>>;

pub(crate) struct Subscriber {
    /// `host:port`, to connect to.
    authority: String,
    host: HeaderValue,
    target: Uri,
    channel: HeaderValue,
    subscription: HeaderValue,
    timeout: Duration,
    deadline: HeaderValue,
    idle: RefCell<Vec<(Sender, u64)>>,
}

/// Why a request has no answer.
enum Broken {
    /// The message has more headers than a request can.
    Unsendable,
    Connect(std::io::Error),
    Exchange(hyper::Error),
}

impl Subscriber {
    /// # Errors
    /// In words, when the URL is none that can be POSTed to.
    pub(crate) fn new(channel: &str, name: &str, url: &str, timeout: Duration) -> Result<Self, String> {
        let bad = |why: String| format!("cannot deliver to `{url}` for {channel}/{name}: {why}");
        let uri: Uri = url.parse().map_err(|why: http::uri::InvalidUri| bad(why.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("only http:// addresses can be delivered to".to_owned()));
        }
        let host = uri.authority().ok_or_else(|| bad("it has no host".to_owned()))?;
        let target = uri.path_and_query().map_or("/", |path| path.as_str()).parse();
        let value = |text: &str| HeaderValue::from_str(text).map_err(|why| bad(why.to_string()));
        Ok(Self {
            authority: format!("{}:{}", host.host(), host.port_u16().unwrap_or(80)),
            host: value(host.as_str())?,
            target: target.map_err(|why: http::uri::InvalidUri| bad(why.to_string()))?,
            channel: value(channel)?,
            subscription: value(name)?,
            timeout,
            deadline: HeaderValue::from(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            idle: RefCell::default(),
        })
    }

    /// Makes one attempt.
    pub(crate) async fn deliver(self: &Rc<Self>, message: &Message, number: u32, trace: &Trace) -> Answer {
        let began = clock::now();
        let until = clock::instant(began.saturating_add(clock::nanos(self.timeout)));
        let failed = |failure, status, retry_after, why: String| {
            let duration = Duration::from_nanos(clock::now().saturating_sub(began));
            let reason = format!("POST {} {why}", self.target);
            Answer::Failed(Failed { failure, reason, status, retry_after, duration })
        };
        let too_late = || failed(Failure::Timeout, None, None, format!("was not answered within {:?}", self.timeout));
        let (sender, response) = match timeout_at(until, self.exchange(message, number, trace)).await {
            Err(_) => return too_late(),
            Ok(Err(Broken::Connect(why))) => {
                let why = format!("found nobody at {}: {why}", self.authority);
                return failed(Failure::Unreachable, None, None, why);
            }
            Ok(Err(Broken::Exchange(why))) => {
                return failed(Failure::Refused, None, None, format!("got no answer: the connection broke: {why}"));
            }
            Ok(Err(Broken::Unsendable)) => {
                let why = format!("was not made: {} headers are more than a request can have", message.headers.len());
                return failed(Failure::Rejected, None, None, why);
            }
            Ok(Ok(exchanged)) => exchanged,
        };
        let (head, body) = response.into_parts();
        let failure = answer::failure(head.status, &head.headers);
        let read = timeout_at(until, read(body)).await;
        if let Ok((_, true)) = read {
            self.put(sender);
        }
        let Some(failure) = failure else { return Answer::Processed };
        let said = said(&head.headers, &read.map(|(begin, _)| begin).unwrap_or_default());
        let retry_after = answer::retry_after(&head.headers, Timestamp::now());
        failed(failure, Some(head.status.as_u16()), retry_after, format!("answered {}{said}", head.status.as_u16()))
    }

    async fn exchange(
        &self,
        message: &Message,
        number: u32,
        trace: &Trace,
    ) -> Result<(Sender, Response<Incoming>), Broken> {
        let request = || self.request(message, number, trace).map_err(|_| Broken::Unsendable);
        if let Some(mut sender) = self.take().await
            && let Ok(response) = sender.send_request(request()?).await
        {
            return Ok((sender, response));
        }
        // Known before anybody is connected to.
        let request = request()?;
        let mut sender = connect(&self.authority).await?;
        let response = sender.send_request(request).await.map_err(Broken::Exchange)?;
        Ok((sender, response))
    }

    /// The connection used last, if it is still good.
    async fn take(&self) -> Option<Sender> {
        loop {
            let (mut sender, since) = self.idle.borrow_mut().pop()?;
            if clock::now().saturating_sub(since) < clock::nanos(IDLE) && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn put(&self, sender: Sender) {
        if !sender.is_closed() {
            self.idle.borrow_mut().push((sender, clock::now()));
        }
    }

    pub(crate) fn close_idle(&self) {
        let now = clock::now();
        let fresh =
            |(sender, since): &(Sender, u64)| now.saturating_sub(*since) < clock::nanos(IDLE) && !sender.is_closed();
        self.idle.borrow_mut().retain(fresh);
    }

    /// The message in CloudEvents' binary mode. What is ours alone does not leave the system.
    fn request(&self, message: &Message, number: u32, trace: &Trace) -> Result<Request<Full<Bytes>>, MaxSizeReached> {
        let mut request = Request::new(Full::new(message.payload.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        // Ours first: for them there is room, whatever the message brings.
        headers.try_reserve(message.headers.len().saturating_add(OURS))?;
        headers.insert(HOST, self.host.clone());
        headers.insert(HeaderName::from_static(header::CE_SPECVERSION), HeaderValue::from_static("1.0"));
        if let Ok(id) = HeaderValue::from_str(&message.id) {
            headers.insert(MESSAGE_ID, id.clone());
            headers.insert(IDEMPOTENCY_KEY, id);
        }
        headers.insert(CHANNEL, self.channel.clone());
        headers.insert(SUBSCRIPTION, self.subscription.clone());
        headers.insert(ATTEMPT, HeaderValue::from(number));
        headers.insert(deadline::HEADER, self.deadline.clone());
        headers.insert(TRACEPARENT, trace.header(trace.span()));
        // The first of a name is the one that stays, as everywhere.
        for (name, text) in message.headers.iter().rev() {
            if let Some(name) = outgoing(name).filter(|name| *name != TRACESTATE || trace.continued())
                && let Ok(value) = HeaderValue::from_str(text)
            {
                headers.try_insert(name, value)?;
            }
        }
        Ok(request)
    }
}

/// Headers that every request has.
const OURS: usize = 9;
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MESSAGE_ID: HeaderName = HeaderName::from_static(header::MESSAGE_ID);
const CHANNEL: HeaderName = HeaderName::from_static(header::CHANNEL);
const SUBSCRIPTION: HeaderName = HeaderName::from_static(header::SUBSCRIPTION);
const ATTEMPT: HeaderName = HeaderName::from_static(header::ATTEMPT);

/// The name under which a subscriber gets a header of a message, if it is one of those that it gets: a message can also come
/// from other couriers than this one.
fn outgoing(name: &str) -> Option<HeaderName> {
    Some(match name {
        // The common ones need no copy.
        header::CE_ID => HeaderName::from_static(header::CE_ID),
        header::CE_SOURCE => HeaderName::from_static(header::CE_SOURCE),
        header::CE_TYPE => HeaderName::from_static(header::CE_TYPE),
        header::CE_TIME => HeaderName::from_static(header::CE_TIME),
        header::CONTENT_TYPE => CONTENT_TYPE,
        header::REPLAY => HeaderName::from_static(header::REPLAY),
        // Said anew for each attempt.
        header::CE_SPECVERSION => return None,
        "content-encoding" => CONTENT_ENCODING,
        "content-language" => CONTENT_LANGUAGE,
        "tracestate" => TRACESTATE,
        "baggage" => BAGGAGE,
        attribute if attribute.starts_with("ce-") => HeaderName::from_bytes(attribute.as_bytes()).ok()?,
        _ => return None,
    })
}

async fn connect(authority: &str) -> Result<Sender, Broken> {
    let stream = TcpStream::connect(authority).await.map_err(Broken::Connect)?;
    stream.set_nodelay(true).map_err(Broken::Connect)?;
    let (sender, connection) =
        http1::Builder::new().handshake(Socket::of_instance(stream)).await.map_err(Broken::Exchange)?;
    tokio::task::spawn_local(async move {
        // Whoever waits for the answer is told of an error.
        let _told = connection.await;
    });
    Ok(sender)
}

/// The begin of the body, and whether it was read to its end.
async fn read(mut body: Incoming) -> (Vec<u8>, bool) {
    let (mut begin, mut length) = (Vec::new(), 0);
    while !body.is_end_stream() {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                length += data.len();
                begin.extend(data.iter().take(KEPT - begin.len()));
                if length > BODY {
                    return (begin, false);
                }
            }
            Some(Err(_)) => return (begin, false),
        }
    }
    (begin, true)
}

/// What an answer says, on one line: what is wrong according to the gateway, if it is the gateway's answer.
fn said(headers: &HeaderMap, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        detail: String,
    }
    let cause = headers.get(CAUSE).and_then(|cause| cause.to_str().ok());
    let document = cause.and_then(|_| serde_json::from_slice::<Document>(body).ok());
    let text = document.map_or_else(|| String::from_utf8_lossy(body).into_owned(), |document| document.detail);
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(TOLD).collect();
    let cause = cause.map_or(String::new(), |cause| format!(" {cause}"));
    if text.is_empty() { cause } else { format!("{cause}: {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(message: &Message) -> Trace {
        Trace::after(message.header(header::TRACEPARENT).map(str::as_bytes), rand::random, |said| said == Some(true))
    }

    fn subscriber() -> Subscriber {
        Subscriber::new("order.placed", "billing", "http://127.0.0.1:9/events?x=1", Duration::from_secs(1))
            .expect("good")
    }

    #[test]
    fn what_a_subscriber_gets_and_what_not() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let pairs = [
            (header::CE_ID, "e1"),
            (header::CE_SPECVERSION, "0.3"),
            ("ce-tenant", "blue"),
            (header::CONTENT_TYPE, "application/json"),
            (header::TRACEPARENT, parent),
            (header::HISTORY, "[]"),
            (header::NOT_BEFORE, "2026-01-01T00:00:00Z"),
            (header::DEATH, "{}"),
            (header::REPLAY, "r1"),
            ("meshctl-of-tomorrow", "x"),
            ("content-length", "999"),
            ("authorization", "of another's making"),
            ("ce-tenant", "green, and said twice"),
            ("tracestate", "a=1"),
        ];
        let headers = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let message = Message { id: "m1".into(), key: None, headers, payload: Bytes::from_static(b"{}") };
        let request = subscriber().request(&message, 3, &trace(&message)).expect("few headers");
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "/events?x=1"));
        let mut got: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        got.sort_unstable();
        let span = got.iter().find(|(name, _)| *name == "traceparent").expect("a trace").1;
        assert_eq!(span[..36], parent[..36]);
        assert_ne!(span, parent, "a span of its own");
        got.retain(|(name, _)| *name != "traceparent");
        assert_eq!(
            got,
            [
                ("ce-id", "e1"),
                ("ce-specversion", "1.0"),
                ("ce-tenant", "blue"),
                ("content-type", "application/json"),
                ("host", "127.0.0.1:9"),
                ("idempotency-key", "m1"),
                ("meshctl-attempt", "3"),
                ("meshctl-channel", "order.placed"),
                ("meshctl-deadline-ms", "1000"),
                ("meshctl-message-id", "m1"),
                ("meshctl-replay-id", "r1"),
                ("meshctl-subscription", "billing"),
                ("tracestate", "a=1"),
            ]
        );
    }

    #[tokio::test]
    async fn a_message_with_more_headers_than_a_request_can_have_is_at_fault_itself() {
        let headers = (0..40_000).map(|n| (format!("ce-a{n}"), String::new()));
        for count in [24_576, 32_768, 40_000] {
            let message = Message { headers: headers.clone().take(count).collect(), ..Message::default() };
            let Answer::Failed(failed) = Rc::new(subscriber()).deliver(&message, 1, &trace(&message)).await else {
                panic!("delivered")
            };
            assert_eq!(failed.failure, Failure::Rejected, "{}", failed.reason);
            assert!(failed.reason.contains(&format!("{count} headers are more")), "{}", failed.reason);
        }
    }

    #[test]
    fn what_an_answer_says() {
        let of_gateway = HeaderMap::from_iter([(CAUSE, HeaderValue::from_static("noEndpoint"))]);
        let problem = br#"{"status":503,"detail":"no instance\nof billing"}"#;
        assert_eq!(said(&of_gateway, problem), " noEndpoint: no instance of billing");
        assert_eq!(said(&of_gateway, b"{"), " noEndpoint: {");
        let plain = HeaderMap::new();
        assert_eq!(said(&plain, b""), "");
        assert_eq!(said(&plain, b" out\n of  stock "), ": out of stock");
        let long = "\u{e9}".repeat(1000);
        assert_eq!(said(&plain, &long.as_bytes()[..1001]).chars().count(), 2 + TOLD);
    }

    #[test]
    fn addresses_that_cannot_be_delivered_to() {
        for bad in ["", "/events", "https://x/", "ftp://x", "http://"] {
            let refused = Subscriber::new("c", "s", bad, Duration::from_secs(1)).map(|_| ());
            assert!(refused.is_err_and(|why| why.contains("c/s")), "{bad}");
        }
    }
}

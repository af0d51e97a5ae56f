//! `meshctl channel publish`

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};

use meshctl_api::client::Client;
use meshctl_api::view::messages::{Channel, NewMessage, PublishRequest, Published};
use meshctl_model::exit;
use meshctl_model::units::Span;
use serde_json::{Value, json};

use super::channel::find;
use super::completion::channel_names;
use crate::args::DeedArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, document, print, print_line};
use crate::payload::{self, Form};
use crate::session::Session;
use crate::show::size;

/// Publish a message, or one for each line; when it returns, they are durable
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl channel publish order.placed '{\"orderId\":\"o-1\",\"sku\":\"book\"}'
  meshctl channel publish order.placed @order.json --key o-1 --header tenant=acme
  jq -c '.orders[]' orders.json | meshctl channel publish order.placed --lines
  meshctl channel publish order.placed @order.json --idempotency-key import-7

Where no content type is given, it is application/json, text/plain or
application/octet-stream, by what the body is.
With --lines and --idempotency-key K line 3 has the key K/3, so that publishing
the same file again repeats nothing.")]
pub struct Args {
    /// The channel
    #[arg(value_name = "CHANNEL", add = channel_names())]
    channel: String,

    /// The payload, @FILE for what is in a file, - or nothing for standard input
    #[arg(value_name = "BODY")]
    body: Option<String>,

    /// Messages with one key keep their order; the channel's own field of the payload where left out
    #[arg(long, value_name = "KEY")]
    key: Option<String>,

    /// A header, as often as wanted
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,

    /// What happened; the channel's name where left out
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// What the payload is
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// A message that was published with this key before, within the channel's window, is that message
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// One message a line; empty lines are none
    #[arg(long)]
    lines: bool,

    #[command(flatten)]
    deed: DeedArgs,
}

/// What is sent at once, whichever is reached first.
const BATCH: usize = 500;
const BATCH_BYTES: usize = 512 << 10;
/// The largest payload that is read: more than any channel takes.
const LARGEST: u64 = 64 << 20;

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.deed.timeout
    }

    fn message(&self, payload: &[u8], line: Option<usize>) -> NewMessage {
        let content_type = self.content_type.clone().unwrap_or_else(|| {
            let guessed = match payload::guess(payload) {
                Form::Json => "application/json",
                Form::Text => "text/plain; charset=utf-8",
                Form::Hex => "application/octet-stream",
            };
            guessed.to_owned()
        });
        NewMessage {
            kind: self.kind.clone(),
            key: self.key.clone(),
            content_type: Some(content_type),
            headers: self.headers.clone(),
            payload_base64: payload::encode(payload),
            idempotency_key: self.idempotency_key.as_ref().map(|key| match line {
                Some(line) => format!("{key}/{line}"),
                None => key.clone(),
            }),
        }
    }

    /// The payload, or the many of them.
    fn source(&self) -> Result<Box<dyn BufRead>, Failure> {
        Ok(match self.body.as_deref() {
            Some("-") => Box::new(io::stdin().lock()),
            None if io::stdin().is_terminal() => {
                return Err(Failure::usage("there is nothing to publish")
                    .hint("write the payload after the channel, @FILE, or - to type it"));
            }
            None => Box::new(io::stdin().lock()),
            Some(body) => match body.strip_prefix('@') {
                Some(path) => {
                    let file =
                        File::open(path).map_err(|error| Failure::file(format!("cannot read {path}"), &error))?;
                    Box::new(BufReader::new(file))
                }
                None => Box::new(io::Cursor::new(body.as_bytes().to_vec())),
            },
        })
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let source = args.source()?;
    let client = session.daemon().await?;
    let channel = find(&client, &args.channel).await?;
    let mut tally = Tally::default();
    if args.lines {
        publish_lines(&client, &channel, &args, source, &mut tally).await.map_err(|failure| tally.before(failure))?;
        return tally.report(&channel, &args.deed);
    }
    let mut payload = Vec::new();
    let read = source.take(LARGEST + 1).read_to_end(&mut payload);
    read.map_err(|error| Failure::file("cannot read the payload", &error))?;
    if payload.len() as u64 > LARGEST {
        return Err(Failure::usage(format!("the payload is larger than {}", size(LARGEST)))
            .hint("with --lines each line of it is a message"));
    }
    if payload.is_empty() && args.body.is_none() {
        return Err(
            Failure::usage("standard input is empty").hint("write '' as BODY to publish a message without payload")
        );
    }
    let message = args.message(&payload, None);
    if args.deed.dry_run {
        tally.add(&payload);
        return tally.report(&channel, &args.deed);
    }
    let request = PublishRequest { messages: vec![message], reason: args.deed.reason.clone() };
    let published = client.publish(&channel.name, &request).await?.items;
    show(&published, &args.deed.output.output)?;
    Ok(exit::OK)
}

/// Publishes line by line, as they come: a batch is durable before the next one is read.
async fn publish_lines(
    client: &Client,
    channel: &Channel,
    args: &Args,
    source: Box<dyn BufRead>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let (mut messages, mut bytes) = (Vec::new(), 0);
    for (at, line) in source.split(b'\n').enumerate() {
        let line = line.map_err(|error| Failure::file(format_args!("cannot read line {}", at + 1), &error))?;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            continue;
        }
        tally.add(line);
        if args.deed.dry_run {
            continue;
        }
        bytes += line.len();
        messages.push(args.message(line, Some(at + 1)));
        if messages.len() >= BATCH || bytes >= BATCH_BYTES {
            send(client, channel, args, std::mem::take(&mut messages), tally).await?;
            bytes = 0;
        }
    }
    if messages.is_empty() { Ok(()) } else { send(client, channel, args, messages, tally).await }
}

async fn send(
    client: &Client,
    channel: &Channel,
    args: &Args,
    messages: Vec<NewMessage>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let request = PublishRequest { messages, reason: args.deed.reason.clone() };
    let published = client.publish(&channel.name, &request).await?.items;
    tally.published += published.len();
    tally.duplicates += published.iter().filter(|one| one.duplicate).count();
    match &args.deed.output.output {
        Format::Json => published.iter().try_for_each(|one| print_line(one_document(one))),
        Format::Name => print(published.iter().map(|one| format!("message/{}\n", one.message_id)).collect::<String>()),
        Format::Table | Format::Wide => Ok(()),
        format => published.iter().try_for_each(|one| document(format, &one_document(one)).map(drop)),
    }
}

/// How much there was of it.
#[derive(Debug, Default)]
struct Tally {
    messages: usize,
    bytes: u64,
    published: usize,
    duplicates: usize,
}

impl Tally {
    fn add(&mut self, payload: &[u8]) {
        self.messages += 1;
        self.bytes += payload.len() as u64;
    }

    /// A failure in the middle says how far it went.
    fn before(&self, failure: Failure) -> Failure {
        if self.published == 0 {
            return failure;
        }
        let hint = failure.hint.clone().unwrap_or_default();
        let message = format!("{} ({} messages before that are published)", failure.message, self.published);
        Failure { message, ..failure }
            .hint(format!("{hint}{}with --idempotency-key the same can be published again", separator(&hint)))
    }

    fn report(&self, channel: &Channel, args: &DeedArgs) -> Outcome {
        if args.dry_run {
            let receivers: Vec<&str> = channel.subscriptions.iter().map(|one| one.subscription.as_str()).collect();
            let would = json!({
                "apiVersion": meshctl_model::API_VERSION, "kind": "PublishPreview", "name": channel.name,
                "messages": self.messages, "sizeBytes": self.bytes, "subscriptions": receivers
            });
            if !document(&args.output.output, &would)? {
                let receivers = if receivers.is_empty() { "nobody".to_owned() } else { receivers.join(", ") };
                let (count, size) = (messages(self.messages), size(self.bytes));
                print_line(format_args!("would publish {count} ({size}) to {}, for {receivers}", channel.name))?;
            }
        } else if args.output.output.for_people() {
            let duplicates = match self.duplicates {
                0 => String::new(),
                count => format!(", {count} of them published before"),
            };
            print_line(format_args!("{} published to {}{duplicates}", messages(self.published), channel.name))?;
        }
        Ok(exit::OK)
    }
}

fn show(published: &[Published], format: &Format) -> Result<(), Failure> {
    for one in published {
        if document(format, &one_document(one))? {
            continue;
        }
        let Published { message_id, channel, partition, offset, duplicate } = one;
        if *format == Format::Name {
            print_line(format_args!("message/{message_id}"))?;
        } else if *duplicate {
            print_line(format_args!("message/{message_id} was published to {channel} before, under the same key"))?;
        } else {
            print_line(format_args!(
                "message/{message_id} published to {channel}, partition {partition}, offset {offset}"
            ))?;
        }
    }
    Ok(())
}

fn one_document(published: &Published) -> Value {
    let mut value = json!(published);
    value["apiVersion"] = meshctl_model::API_VERSION.into();
    value["kind"] = "Message".into();
    value["name"] = published.message_id.clone().into();
    value
}

fn messages(count: usize) -> String {
    format!("{count} message{}", if count == 1 { "" } else { "s" })
}

fn separator(text: &str) -> &'static str {
    if text.is_empty() { "" } else { "; " }
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(['=', ':']).ok_or("write NAME=VALUE, such as tenant=acme")?;
    let name = name.trim().to_lowercase();
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(is_token) {
        return Err(format!("`{name}` is not a header's name"));
    }
    Ok((name, value.trim().to_owned()))
}

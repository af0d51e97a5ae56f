//! The courier process: takes messages from publishers to the broker, and from the broker to subscribers.
//!
//! One thread does all of it, and any number of processes share the work: the broker gives each partition to one of them.
//! What a courier knows of a message it knows from the broker; whatever it has not settled when it ends, in whatever way, is
//! delivered by another.
//!
//! `delivery` and `pause` decide, with time and chance as arguments; `line` is what moves, one for each subscription.

mod answer;
mod delivery;
mod event;
mod key;
mod line;
mod pause;
mod publish;
mod report;
mod server;
mod settle;
#[cfg(test)]
mod simulation;
mod spans;
mod subscriber;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use meshctl_drivers::broker::SharedBroker;
use meshctl_model::delivery::{COURIER_CONFIG, CourierConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use delivery::Deliveries;
use line::Line;
use report::{Report, Tally};
use spans::Recorder;
use subscriber::Subscriber;

use crate::spans::Source as _;

/// How long what is under way may take once the courier has been asked to end; less than the grace that a service is given.
const GRACE: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
pub struct CourierOptions {
    /// Holds the configuration ([`COURIER_CONFIG`]).
    pub files: PathBuf,
    /// Where to listen, on 127.0.0.1.
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum CourierRunError {
    #[error("cannot read the courier's configuration {path}: {why}", path = path.display())]
    Config { path: PathBuf, why: io::Error },
    #[error("cannot listen on {address}: {why}")]
    Listen { address: SocketAddr, why: io::Error },
    #[error("cannot start the courier: {0}")]
    Start(io::Error),
    #[error("{0}")]
    Subscriber(String),
    #[error("a task of the courier cannot go on, as the log says; what it has not settled will be delivered again")]
    Died,
}

/// What everything in this process shares.
pub(crate) struct Courier {
    config: CourierConfig,
    broker: SharedBroker,
    report: Rc<Report>,
    recorder: Rc<Recorder>,
    /// One permit for each byte of what is being published.
    bodies: Semaphore,
}

/// Runs a courier until SIGTERM or SIGINT, and what was under way is delivered and settled. `broker` is called once, inside
/// of the runtime.
///
/// # Errors
/// When it cannot start. Once it serves, nothing ends it but being asked to, or a task of its own that panics.
pub fn run(options: &CourierOptions, broker: impl FnOnce() -> SharedBroker) -> Result<(), CourierRunError> {
    let config = read(&options.files.join(COURIER_CONFIG))?;
    // Each subscription has connections of its own, to the broker and to its service.
    meshctl_drivers::descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(CourierRunError::Start)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(CourierRunError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(CourierRunError::Start)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
        let listen = |why| CourierRunError::Listen { address, why };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        serve(config, broker(), listener, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
    })
}

fn read(path: &Path) -> Result<CourierConfig, CourierRunError> {
    let read = || serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::other);
    read().map_err(|why| CourierRunError::Config { path: path.to_owned(), why })
}

/// Serves and delivers until `end`. To be called inside of a local runtime ([`tokio::runtime::LocalRuntime`]).
///
/// # Errors
/// When a subscription's address cannot be delivered to, and when a task of it panics.
pub async fn serve(
    config: CourierConfig,
    broker: SharedBroker,
    listener: TcpListener,
    end: impl Future<Output = ()>,
) -> Result<(), CourierRunError> {
    let (ask, ending) = watch::channel(false);
    let mut report = Report::default();
    let mut subscriptions = Vec::new();
    let count = config.channels.values().map(|channel| channel.subscriptions.len()).sum();
    for (name, channel) in &config.channels {
        report.published.get_mut().insert(name.clone(), report::Published::default());
        for (subscription, its) in &channel.subscriptions {
            let subscriber = Subscriber::new(name, subscription, &its.url, its.timeout.get());
            let tally = Rc::new(Tally::new(name, subscription));
            report.subscriptions.push(Rc::clone(&tally));
            let groups = line::groups(name, subscription, channel, count);
            report.groups.set(report.groups.get() + groups.len());
            let deliveries = Deliveries::new(name, subscription, its, channel.ordered);
            let subscriber = Rc::new(subscriber.map_err(CourierRunError::Subscriber)?);
            subscriptions.push((subscriber, tally, deliveries, groups));
        }
    }
    report.ready.set(report.groups.get() == 0);
    let report = Rc::new(report);
    let bodies = publish::bodies(&config);
    let recorder = Rc::new(Recorder::new(&config));
    let courier =
        Rc::new(Courier { config, broker, report: Rc::clone(&report), recorder: Rc::clone(&recorder), bodies });
    let mut tasks = JoinSet::new();
    for (subscriber, tally, deliveries, groups) in subscriptions {
        let (broker, report, ending) = (courier.broker.clone(), Rc::clone(&report), ending.clone());
        let recorder = Rc::clone(&recorder);
        tasks.spawn_local(Line { broker, deliveries, subscriber, tally, report, recorder, groups, ending }.run());
    }
    let address = listener.local_addr().map_err(CourierRunError::Start)?;
    tasks.spawn_local(server::serve(Rc::clone(&courier), listener, ending));
    tracing::info!(%address, channels = courier.config.channels.len(), "the courier is serving");

    let mut notes = tokio::time::interval(report::NOTE_EVERY);
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = notes.tick() => report.note(),
            Some(_panicked) = tasks.join_next() => return Err(CourierRunError::Died),
        }
    }
    tracing::info!("the courier begins nothing more and lets what is under way end");
    ask.send_replace(true);
    let all = async {
        // Once every line has ended nothing more is recorded, and a reader of spans is all that the server may wait for.
        while tasks.len() > 1 {
            tasks.join_next().await;
        }
        recorder.reading().end();
        while tasks.join_next().await.is_some() {}
    };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("cut off what did not end in time: it will be delivered again");
    }
    Ok(())
}

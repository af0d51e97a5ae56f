//! The output of instances, merged by time.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::body::Body as HttpBody;
use axum::extract::{Query, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::{LogLine, LogQuery, Told};
use meshctl_drivers::runtime::{Line, Stream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{Failure, FromShared, Shared};

/// Lines on their way to one reader; beyond them reading waits.
const IN_FLIGHT: usize = 256;

/// What is wanted, read once.
#[derive(Clone)]
struct Wanted {
    services: Option<BTreeSet<String>>,
    since: Option<Timestamp>,
    tail: Option<usize>,
    grep: Option<String>,
}

/// NDJSON of LogLine: first what is there, in the order of time; with `follow`, then what comes.
#[utoipa::path(get, path = "/v1/logs", params(LogQuery),
    responses((status = 200, content_type = "application/x-ndjson", body = LogLine)))]
pub async fn logs(Extract(shared): FromShared, Query(query): Query<LogQuery>) -> Result<Response, Failure> {
    let wanted = read(&query)?;
    let known = instances(&shared, &wanted).await?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(stream(shared, wanted, known, query.follow, sender));
    let lines = ReceiverStream::new(receiver).map(|line: LogLine| {
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        Ok::<_, Infallible>(text)
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(lines)).into_response())
}

fn read(query: &LogQuery) -> Result<Wanted, ApiError> {
    let since = query.since.as_deref().map(|text| {
        text.parse::<Timestamp>().map_err(|_| {
            ApiError::new(ErrorCode::Invalid, format!("`{text}` is not a time"))
                .hint("write RFC 3339: 2026-11-23T17:00:00Z")
        })
    });
    let services = query.services.as_deref().filter(|names| !names.is_empty());
    Ok(Wanted {
        services: services.map(|names| names.split(',').map(str::to_owned).collect()),
        since: since.transpose()?,
        tail: query.tail,
        grep: query.grep.clone().filter(|text| !text.is_empty()),
    })
}

/// `(id, service)` of every instance that is asked for. A name may be a service's or an instance's.
async fn instances(shared: &Shared, wanted: &Wanted) -> Result<Vec<(String, String)>, ApiError> {
    let names = wanted.services.clone();
    shared
        .look(move |control| {
            let observed = &control.state.observed;
            let all = || observed.instances.values().map(|i| (i.spec.id.clone(), i.spec.service.clone()));
            let Some(names) = names else {
                return Ok(all().filter(|(_, service)| service != meshctl_model::GATEWAY).collect());
            };
            for name in &names {
                let exists = control.state.desired.services.contains_key(name)
                    || all().any(|(id, service)| id == *name || service == *name);
                if !exists {
                    let message = format!("there is no service and no instance `{name}`");
                    return Err(ApiError::new(ErrorCode::NotFound, message).hint("see `meshctl get instances`"));
                }
            }
            Ok(all().filter(|(id, service)| names.contains(id) || names.contains(service)).collect())
        })
        .await
}

async fn stream(shared: Shared, wanted: Wanted, known: Vec<(String, String)>, follow: bool, to: mpsc::Sender<LogLine>) {
    // Before anything is read, so that an instance that comes meanwhile is not missed.
    let mut told = shared.hub.subscribe();
    let Some(read_until) = merge(&shared, &wanted, &known, &to).await else { return };
    if !follow {
        return;
    }
    let mut followed = BTreeSet::new();
    for ((id, service), since) in known.into_iter().zip(read_until) {
        followed.insert(id.clone());
        tokio::spawn(forward(shared.clone(), wanted.clone(), id, service, since, to.clone()));
    }
    loop {
        let next = tokio::select! {
            next = told.recv() => next,
            () = to.closed() => return,
        };
        match next {
            Ok(Told::Service(service))
                if wanted.services.as_ref().is_none_or(|names| names.contains(&service.name)) =>
            {
                for instance in service.instances {
                    if followed.insert(instance.id.clone()) {
                        let (id, name) = (instance.id, service.name.clone());
                        tokio::spawn(forward(shared.clone(), wanted.clone(), id, name, None, to.clone()));
                    }
                }
            }
            Err(RecvError::Closed) => return,
            _ => {}
        }
    }
}

/// Sends what there is of all instances in the order of time, holding no more than a line of each. Returns the time of each
/// one's last line; `None` when nobody reads any more.
async fn merge(
    shared: &Shared,
    wanted: &Wanted,
    known: &[(String, String)],
    to: &mpsc::Sender<LogLine>,
) -> Option<Vec<Option<Timestamp>>> {
    let mut sources: Vec<_> = known.iter().map(|(id, _)| history(shared, wanted, id)).collect();
    let mut heads = Vec::with_capacity(sources.len());
    for source in &mut sources {
        heads.push(source.recv().await);
    }
    let mut read_until = vec![None; sources.len()];
    loop {
        let next = heads.iter().enumerate().filter_map(|(index, head)| Some((head.as_ref()?.at, index))).min();
        let Some((at, index)) = next else { return Some(read_until) };
        read_until[index] = Some(at);
        let line = std::mem::replace(&mut heads[index], sources[index].recv().await)?;
        let (id, service) = &known[index];
        let line = shown(id, service, line);
        if wanted.wants(&line) {
            to.send(line).await.ok()?;
        }
    }
}

/// What one instance has kept and is asked for, oldest first.
fn history(shared: &Shared, wanted: &Wanted, id: &str) -> mpsc::Receiver<Line> {
    let Some(tail) = wanted.tail else { return shared.runtime.logs(id, wanted.since, false) };
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let (runtime, since, id) = (shared.runtime.clone(), wanted.since, id.to_owned());
    tokio::spawn(async move {
        let last = runtime.tail(&id, tail).await;
        for line in last.into_iter().filter(|line| since.is_none_or(|since| line.at > since)) {
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn forward(
    shared: Shared,
    wanted: Wanted,
    id: String,
    service: String,
    since: Option<Timestamp>,
    to: mpsc::Sender<LogLine>,
) {
    let mut source = shared.runtime.logs(&id, since, true);
    loop {
        let next = tokio::select! {
            next = source.recv() => next,
            () = to.closed() => return,
        };
        let Some(line) = next else { return };
        let line = shown(&id, &service, line);
        if wanted.wants(&line) && to.send(line).await.is_err() {
            return;
        }
    }
}

impl Wanted {
    fn wants(&self, line: &LogLine) -> bool {
        self.grep.as_ref().is_none_or(|text| line.line.contains(text.as_str()))
    }
}

fn shown(id: &str, service: &str, line: Line) -> LogLine {
    let stream = match line.stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    LogLine { at: line.at, instance: id.into(), service: service.into(), stream: stream.into(), line: line.text }
}

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
    let mut past = Vec::new();
    for (id, service) in &known {
        past.extend(history(&shared, &wanted, id).await.into_iter().map(|line| shown(id, service, line)));
    }
    past.sort_by_key(|line| line.at);
    let seen_until = past.last().map_or_else(Timestamp::now, |line| line.at);
    for line in past.into_iter().filter(|line| wanted.wants(line)) {
        if to.send(line).await.is_err() {
            return;
        }
    }
    if !follow {
        return;
    }
    let mut followed = BTreeSet::new();
    for (id, service) in known {
        followed.insert(id.clone());
        tokio::spawn(forward(shared.clone(), wanted.clone(), id, service, Some(seen_until), to.clone()));
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
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            _ => {}
        }
    }
}

async fn history(shared: &Shared, wanted: &Wanted, id: &str) -> Vec<Line> {
    match (wanted.since, wanted.tail) {
        (None, Some(lines)) => shared.runtime.tail(id, lines).await,
        (since, tail) => {
            let mut lines = Vec::new();
            let mut source = shared.runtime.logs(id, since, false);
            while let Some(line) = source.recv().await {
                lines.push(line);
            }
            let surplus = tail.map_or(0, |tail| lines.len().saturating_sub(tail));
            lines.drain(..surplus);
            lines
        }
    }
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

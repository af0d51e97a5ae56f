//! The control plane's own numbers, for Prometheus. The data plane's are at each gateway.

use std::fmt::Write;

use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use meshctl_api::view::Status;
use meshctl_api::view::messages::{Channel, Subscription};
use meshctl_api::view::traces::TraceStore;

use super::{Failure, FromShared};
use crate::messaging::wanted;
use crate::view;

/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain", body = String)))]
pub async fn metrics(Extract(shared): FromShared) -> Result<Response, Failure> {
    let look = shared.look(|control| Ok((view::status(control), wanted(&control.state))));
    let (mut status, wanted) = look.await?;
    status.channels = super::looks::channels(&shared, &wanted).await;
    let mut out = text(&status);
    traces(&mut out, &shared.traces.state().await?, shared.traces.spans_per_s());
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response())
}

fn traces(out: &mut String, store: &TraceStore, spans_per_s: f64) {
    for (name, kind, help, value) in [
        ("traces_kept", "gauge", "Traces in the store.", store.traces as f64),
        ("trace_spans_kept", "gauge", "Spans in the store.", store.spans as f64),
        ("trace_store_bytes", "gauge", "Bytes of the store of traces.", store.size_bytes as f64),
        ("trace_spans_per_second", "gauge", "Spans stored, over ten seconds.", spans_per_s),
        ("trace_spans_dropped_total", "counter", "Spans that found no room anywhere.", store.dropped_spans as f64),
        ("traces_evicted_total", "counter", "Traces removed for age or room.", store.evicted_traces as f64),
    ] {
        let _ = writeln!(out, "# HELP meshctl_{name} {help}\n# TYPE meshctl_{name} {kind}\nmeshctl_{name} {value}");
    }
}

/// A gauge's name, what it says, and how it is read.
type Gauge<T> = (&'static str, &'static str, fn(&T) -> f64);

/// Gauges alone need no registry: each is read off the status at the moment it is asked for.
fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, values: &mut dyn Iterator<Item = (String, f64)>| {
        let _ = writeln!(out, "# HELP meshctl_{name} {help}\n# TYPE meshctl_{name} gauge");
        for (labels, value) in values {
            let _ = writeln!(out, "meshctl_{name}{labels} {value}");
        }
    };
    let flag = |value: bool| f64::from(u8::from(value));
    gauge("ready", "Whether everything is as wanted.", &mut [(String::new(), flag(status.ready))].into_iter());
    gauge("revision", "The wanted revision.", &mut [(String::new(), status.revision as f64)].into_iter());
    let service = |name: &str| format!("{{service=\"{name}\"}}");
    gauge(
        "service_instances_desired",
        "Instances wanted.",
        &mut status.items.iter().map(|s| (service(&s.name), f64::from(s.desired))),
    );
    gauge(
        "service_instances_ready",
        "Instances ready.",
        &mut status.items.iter().map(|s| (service(&s.name), f64::from(s.ready))),
    );
    gauge(
        "service_restarts",
        "Restarts of the present instances.",
        &mut status.items.iter().map(|s| (service(&s.name), s.instances.iter().map(|i| f64::from(i.restarts)).sum())),
    );
    gauge(
        "gateway_revision",
        "The revision that a gateway has acknowledged.",
        &mut status.gateways.iter().map(|g| (format!("{{gateway=\"{}\"}}", g.id), g.revision as f64)),
    );
    let channels: [Gauge<Channel>; 5] = [
        ("depth", "Messages that the slowest subscription has not settled, retries included.", |c| c.depth as f64),
        ("kept", "Messages kept, settled or not.", |c| c.kept as f64),
        ("kept_bytes", "Keys and payloads kept.", |c| c.kept_bytes as f64),
        ("published_per_second", "Published, over ten seconds.", |c| c.published_per_s),
        ("delivered_per_second", "Delivered to all subscriptions, over ten seconds.", |c| c.delivered_per_s),
    ];
    for (name, help, of) in channels {
        let values = status.channels.iter().map(|channel| (format!("{{channel=\"{}\"}}", channel.name), of(channel)));
        gauge(&format!("channel_{name}"), help, &mut { values });
    }
    let subscriptions: [Gauge<Subscription>; 7] = [
        ("lag", "Messages in the channel that it has not settled.", |s| s.lag as f64),
        ("in_flight", "Messages with a courier.", |s| s.in_flight as f64),
        ("retrying", "Messages that wait for their next attempt.", |s| s.retrying as f64),
        ("dead_letters", "Dead letters.", |s| s.dead_letters as f64),
        ("delivered_per_second", "Delivered, over ten seconds.", |s| s.delivered_per_s),
        ("oldest_age_seconds", "Age of the oldest message that it has not settled; 0 without any.", |s| {
            s.oldest_ms.unwrap_or(0) as f64 / 1000.0
        }),
        ("flowing", "Whether it is neither paused nor waits for a subscriber that is down.", |s| {
            f64::from(u8::from(s.state == "flowing"))
        }),
    ];
    for (name, help, of) in subscriptions {
        let all = status.channels.iter().flat_map(|channel| &channel.subscriptions);
        let values = all.map(|s| (format!("{{channel=\"{}\",subscription=\"{}\"}}", s.channel, s.subscription), of(s)));
        gauge(&format!("subscription_{name}"), help, &mut { values });
    }
    out
}

//! The control plane's own numbers, for Prometheus. The data plane's are at each gateway.

use std::fmt::Write;

use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use meshctl_api::view::Status;

use super::{Failure, FromShared};
use crate::view;

/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain", body = String)))]
pub async fn metrics(Extract(shared): FromShared) -> Result<Response, Failure> {
    let status = shared.look(|control| Ok(view::status(control))).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text(&status)).into_response())
}

/// Six gauges need no registry: each is read off the status at the moment it is asked for.
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
    out
}

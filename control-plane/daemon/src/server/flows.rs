//! The flows of the topology, for load tests.

use axum::Json;
use axum::extract::State as Extract;
use meshctl_api::view::List;
use meshctl_api::view::flows::{Flow, FlowEffect, FlowRequest, FlowSlo};
use meshctl_model::flow;
use meshctl_model::topology::FlowMode;

use super::{Answer, FromShared};

/// What those who use the system do with it, by name, with every default filled in.
#[utoipa::path(get, path = "/v1/flows", responses((status = 200, body = List<Flow>)))]
pub async fn flows(Extract(shared): FromShared) -> Answer<List<Flow>> {
    let flows = shared.look(|control| Ok(control.state.desired.flows.clone())).await?;
    Ok(Json(List::of("Flow", flows.into_iter().map(|(name, flow)| view(name, flow)).collect())))
}

fn view(name: String, flow: flow::Flow) -> Flow {
    let slo = |slo: flow::Expected| FlowSlo { asynchronous: slo.mode == FlowMode::Asynchronous, expect: slo.expect };
    Flow {
        name,
        weight: flow.weight,
        values: flow.values,
        synchronous: flow.synchronous.map(request),
        asynchronous: flow.asynchronous.map(request),
        slo: flow.slo.into_iter().map(slo).collect(),
    }
}

fn request(request: flow::Request) -> FlowRequest {
    let flow::Request { method, path, headers, body, status, visible } = request;
    let effect = |visible: flow::Visible| FlowEffect {
        path: visible.path,
        every_ms: visible.every.as_millis(),
        within_ms: visible.within.as_millis(),
    };
    FlowRequest { method, path, headers, body, status, visible: visible.map(effect) }
}

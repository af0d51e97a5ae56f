//! Following requests, forcing breakers, the golden signals, and what load tests send.

use std::sync::Arc;

use reqwest::Method;

use super::lines::Lines;
use super::messages::path;
use super::{Client, Follow};
use crate::error::ApiError;
use crate::view::List;
use crate::view::breakers::{Breaker, BreakerChange, BreakerRequest};
use crate::view::flows::Flow;
use crate::view::traces::{Trace, TraceList, TraceQuery};
use crate::view::vitals::Vitals;

impl Client {
    pub async fn traces(&self, query: &TraceQuery) -> Result<TraceList, ApiError> {
        self.json(self.request(Method::GET, "/v1/traces").query(query)).await
    }

    /// One trace with all that belongs to it, by its id or by the id of a message.
    pub async fn trace(&self, id: &str) -> Result<Trace, ApiError> {
        self.get(&path(&["traces", id])).await
    }

    pub async fn breakers(&self) -> Result<List<Breaker>, ApiError> {
        self.get("/v1/breakers").await
    }

    /// Refuses every request of the edge, on every gateway, until it is reset or the time is over. Returns when all gateways have
    /// acknowledged, or five seconds have passed.
    pub async fn trip_breaker(&self, edge: &str, body: &BreakerRequest) -> Result<BreakerChange, ApiError> {
        self.post(&path(&["breakers", edge, "trip"]), body).await
    }

    /// Keeps it closed, whatever fails.
    pub async fn hold_breaker(&self, edge: &str, body: &BreakerRequest) -> Result<BreakerChange, ApiError> {
        self.post(&path(&["breakers", edge, "hold"]), body).await
    }

    /// Takes back what was forced, and closes it: it begins anew.
    pub async fn reset_breaker(&self, edge: &str, body: &BreakerRequest) -> Result<BreakerChange, ApiError> {
        self.post(&path(&["breakers", edge, "reset"]), body).await
    }

    /// The flows of the topology.
    pub async fn flows(&self) -> Result<List<Flow>, ApiError> {
        self.get("/v1/flows").await
    }

    /// The golden signals now.
    pub async fn vitals(&self) -> Result<Vitals, ApiError> {
        self.get("/v1/vitals").await
    }

    /// The same each second, a JSON object on a line.
    pub async fn follow_vitals(&self) -> Result<Follow<Vitals>, ApiError> {
        let answer = self.open(self.http.get(self.url("/v1/vitals")).query(&[("follow", true)])).await?;
        Ok(Follow::new(Lines::new(answer, Arc::clone(&self.place))))
    }
}

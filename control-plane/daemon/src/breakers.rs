//! What operators say of breakers: written down first, given to the gateways with the next snapshot, and ended when its time
//! is over. A gateway does not need us for that last part; we only stop saying what has ended there already.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::breakers::Breaker;
use meshctl_model::event::EventSeverity;
use meshctl_model::plan::Standing;
use meshctl_model::recent::Recent;
use meshctl_model::snapshot::{BreakerState, EdgeStatus, Forced, GatewayStatus, Override};
use serde_json::json;

use crate::operate::{Asked, unwritable};
use crate::state::State;
use crate::store::{Changes, Store};

/// What an operator can do to a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Refuse everything.
    Trip,
    /// Let everything through.
    Hold,
    /// Take back what was said, close it, forget what led to it.
    Reset,
}

impl Act {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trip => "trip",
            Self::Hold => "hold",
            Self::Reset => "reset",
        }
    }

    /// As the audit calls it.
    pub const fn audited(self) -> &'static str {
        match self {
            Self::Trip => "breaker.trip",
            Self::Hold => "breaker.hold",
            Self::Reset => "breaker.reset",
        }
    }

    const fn event(self) -> (&'static str, &'static str) {
        match self {
            Self::Trip => ("breaker.tripped", "opens"),
            Self::Hold => ("breaker.held", "holds closed"),
            Self::Reset => ("breaker.reset", "resets"),
        }
    }

    const fn forced(self) -> Option<Forced> {
        match self {
            Self::Trip => Some(Forced::Open),
            Self::Hold => Some(Forced::Closed),
            Self::Reset => None,
        }
    }
}

impl State {
    /// Says it of the breaker of `edge`, from now on. Returns the generation of the snapshot that carries it.
    ///
    /// # Errors
    /// When there is no such edge, the time makes no sense, or it cannot be written down; nothing has changed then.
    pub fn say_of_breaker(
        &mut self,
        edge: &str,
        act: Act,
        ttl: Option<Duration>,
        asked: &Asked,
        store: &mut Store,
        now: Timestamp,
    ) -> Result<u64, ApiError> {
        self.must_have_edge(edge)?;
        let expires_at = ttl.map(|ttl| end_of(ttl, now)).transpose()?;
        let before = self.standings.get(edge).cloned().unwrap_or_default();
        let force = act.forced().map(|state| Override {
            state,
            reason: asked.reason.clone(),
            by: asked.by.clone(),
            since: now,
            expires_at,
        });
        let epoch = before.epoch + u64::from(act == Act::Reset);
        let standing = Standing { force, epoch, generation: 0 };
        let saved = Changes { breakers: vec![(edge.to_owned(), standing.clone())], ..Changes::default() };
        store.commit(&saved).map_err(|why| unwritable(&why))?;
        self.standings.insert(edge.to_owned(), standing);
        // It differs from all that was said before, so it is in a generation of its own.
        self.refresh_snapshot();
        let generation = self.observed.generation;
        if let Some(standing) = self.standings.get_mut(edge) {
            standing.generation = generation;
        }
        let (kind, word) = act.event();
        let until = expires_at.map(|at| format!(" until {at:.0}")).unwrap_or_default();
        let why = asked.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let message = format!("{} {word} the breaker of {edge}{until}{why}", asked.by);
        let severity = if act == Act::Trip { EventSeverity::Warning } else { EventSeverity::Info };
        let data = json!({"by": asked.by, "reason": asked.reason, "expiresAt": expires_at});
        self.event(severity, kind, format!("edge/{edge}"), message, data);
        Ok(generation)
    }

    /// # Errors
    /// When there is no such edge.
    pub fn must_have_edge(&self, edge: &str) -> Result<(), ApiError> {
        if self.desired.edges.contains_key(edge) {
            return Ok(());
        }
        let known: Vec<_> = self.desired.edges.keys().map(String::as_str).collect();
        let hint = match known.as_slice() {
            [] => "nothing is applied yet: `meshctl apply FILE`".to_owned(),
            known => format!("there are: {}", known.join(", ")),
        };
        Err(ApiError::new(ErrorCode::NotFound, format!("there is no edge `{edge}`")).hint(hint))
    }

    /// What was forced for a time that is over is not wanted any more.
    pub fn expire_breakers(&mut self, now: Timestamp) {
        let is_over = |standing: &Standing| standing.force.as_ref().is_some_and(|force| force.is_over(now));
        let over = self.standings.iter().filter(|(_, standing)| is_over(standing)).map(|(edge, _)| edge.clone());
        for edge in over.collect::<Vec<_>>() {
            let Some(force) = self.standings.get_mut(&edge).and_then(|standing| standing.force.take()) else {
                continue;
            };
            self.unwritten.breakers.insert(edge.clone());
            let message =
                format!("what {} said of the breaker of {edge} is over: it decides for itself again", force.by);
            let data = json!({"by": force.by, "reason": force.reason, "expiresAt": force.expires_at});
            self.event(EventSeverity::Info, "breaker.expired", format!("edge/{edge}"), message, data);
        }
    }

    /// When the next override is over.
    pub fn next_breaker_end(&self) -> Option<Timestamp> {
        self.standings.values().filter_map(|standing| standing.force.as_ref()?.expires_at).min()
    }

    /// Of an edge that there is no more nothing is said any more: should it come again, it is another.
    pub fn drop_breakers(&mut self) {
        let edges = &self.desired.edges;
        let gone: Vec<String> = self.standings.keys().filter(|edge| !edges.contains_key(*edge)).cloned().collect();
        for edge in gone {
            let Some(standing) = self.standings.remove(&edge) else { continue };
            self.unwritten.breakers.insert(edge.clone());
            if let Some(force) = standing.force {
                let message =
                    format!("there is no edge {edge} any more: what {} said of its breaker is dropped", force.by);
                let data = json!({"by": force.by, "reason": force.reason, "expiresAt": force.expires_at});
                self.event(EventSeverity::Warning, "breaker.dropped", format!("edge/{edge}"), message, data);
            }
        }
    }
}

fn end_of(ttl: Duration, now: Timestamp) -> Result<Timestamp, ApiError> {
    let refused =
        |why: &str| ApiError::new(ErrorCode::Invalid, format!("a breaker cannot be forced for {ttl:?}: {why}"));
    if ttl.is_zero() {
        return Err(refused("it would be over at once"));
    }
    now.checked_add(ttl).map_err(|_| refused("time does not go that far").hint("leave it out: for ever"))
}

/// What is wanted of all breakers, and which gateways know of it.
pub struct Standings {
    /// Every edge, with what operators said of its breaker.
    edges: Vec<(String, Standing)>,
    /// Those that serve, by id, with the generation that each carries.
    gateways: Vec<(String, u64)>,
}

impl Standings {
    pub fn of(state: &State) -> Self {
        let said = |edge: &String| (edge.clone(), state.standings.get(edge).cloned().unwrap_or_default());
        let carried = |id: &str| state.observed.gateways.get(id).map_or(0, |link| link.acked_generation);
        let ids = state.observed.serving().map(|gateway| gateway.spec.id.clone());
        Self {
            edges: state.desired.edges.keys().map(said).collect(),
            gateways: ids.map(|id| (id.clone(), carried(&id))).collect(),
        }
    }

    /// Every breaker, with what gateways say of it.
    pub fn seen<'a>(&self, answers: impl IntoIterator<Item = &'a GatewayStatus>) -> Vec<Breaker> {
        let mut by_edge: BTreeMap<&str, Vec<&EdgeStatus>> = BTreeMap::new();
        for seen in answers.into_iter().flat_map(|gateway| &gateway.edges) {
            by_edge.entry(&seen.edge).or_default().push(seen);
        }
        let seen = |edge: &str| by_edge.get(edge).map(Vec::as_slice).unwrap_or_default();
        self.edges.iter().map(|(edge, standing)| self.breaker(edge, standing, seen(edge))).collect()
    }

    fn breaker(&self, edge: &str, standing: &Standing, seen: &[&EdgeStatus]) -> Breaker {
        let worst = seen.iter().max_by_key(|seen| (seen.breaker.severity(), seen.since));
        // Without a word of it even a gateway that carries nothing else of ours is up to date.
        let missing = |(_, carried): &&(String, u64)| *carried < standing.generation.max(1);
        let stragglers: Vec<String> = self.gateways.iter().filter(missing).map(|(id, _)| id.clone()).collect();
        let (mut state, mut since) = (worst.map(|seen| seen.breaker), worst.map(|seen| seen.since));
        let mut reason = worst.and_then(|seen| seen.reason.clone());
        if let Some(force) = &standing.force {
            (state, since, reason) = (Some(force.state.into()), Some(force.since), force.reason.clone());
            if let Some(why) = seen.iter().find_map(|seen| seen.would_open.as_ref())
                && force.state == Forced::Closed
            {
                let said = reason.map(|said| format!("{said}; ")).unwrap_or_default();
                reason = Some(format!("{said}would be open: {why}"));
            }
        }
        let (requests_per_s, refused_per_s) = rates(seen);
        let instances = u32::try_from(self.gateways.len()).unwrap_or(u32::MAX);
        Breaker {
            edge: edge.into(),
            state: state.map_or("unknown", BreakerState::name).into(),
            since,
            reason,
            by: standing.force.as_ref().map(|force| force.by.clone()),
            expires_at: standing.force.as_ref().and_then(|force| force.expires_at),
            acknowledged: instances - u32::try_from(stragglers.len()).unwrap_or(0),
            instances,
            stragglers,
            requests_per_s,
            refused_per_s,
        }
    }
}

/// Requests, and those that the breaker refused, in a second.
fn rates(seen: &[&EdgeStatus]) -> (f64, f64) {
    let sum = |count: fn(&Recent) -> u64| {
        let sum: f64 = seen.iter().map(|seen| seen.recent.per_s(count(&seen.recent))).sum();
        (sum * 100.0).round() / 100.0
    };
    (sum(|recent| recent.requests), sum(|recent| recent.refused_by_breaker))
}

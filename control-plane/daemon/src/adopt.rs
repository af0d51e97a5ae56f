//! After a restart: what was remembered meets what still runs.

use jiff::Timestamp;
use meshctl_drivers::runtime::{Found, FoundState, Running, RuntimeError, SharedRuntime};
use meshctl_model::instance::Exit;
use meshctl_model::plan::{AfterStop, GatewayLink, Instance, Phase};

use crate::gateways;
use crate::state::State;

/// Takes over every instance that runs, found by pid and start time, ends what nobody remembers, and notes what ended
/// meanwhile. Afterwards the control loop decides as if it had never been away.
///
/// # Errors
/// When the runtime cannot tell what runs.
pub async fn adopt(state: &mut State, runtime: &SharedRuntime) -> Result<(), RuntimeError> {
    let now = Timestamp::now();
    let found = runtime.list().await?;
    let (known, unknown): (Vec<Found>, Vec<Found>) =
        found.into_iter().partition(|found| state.observed.instances.contains_key(&found.spec.id));
    let mut missing: std::collections::BTreeSet<String> = state.observed.instances.keys().cloned().collect();
    let mut adopted = 0;
    for found in known {
        let id = found.spec.id.clone();
        missing.remove(&id);
        link_gateway(state, &id);
        match found.state {
            FoundState::Running(running) => {
                adopted += 1;
                self::running(state, &id, running, now);
            }
            FoundState::Ended(exit) => ended_meanwhile(state, &id, &exit, now),
        }
    }
    for id in missing {
        link_gateway(state, &id);
        let reason = Some("it was to be started, and was not".to_owned());
        ended_meanwhile(state, &id, &Exit { at: now, code: None, signal: None, asked: false, reason }, now);
    }
    for stranger in unknown {
        end_stranger(state, stranger, now);
    }
    if adopted > 0 {
        state.info("daemon.adopted", "system".into(), format!("{adopted} running instances were taken over"));
    }
    Ok(())
}

/// Nobody remembers it: it is stopped like everything that is not wanted. Its id is not given to another.
fn end_stranger(state: &mut State, stranger: Found, now: Timestamp) {
    let id = stranger.spec.id.clone();
    let FoundState::Running(running) = stranger.state else {
        state.litter.push(id);
        return;
    };
    state.warn("instance.orphan", format!("instance/{id}"), format!("{id} runs and is not known; ending it"));
    if let Some(ordinal) = id.rsplit('-').next().and_then(|text| text.parse::<u64>().ok()) {
        state.record(&stranger.spec.service, |record| record.next_ordinal = record.next_ordinal.max(ordinal + 1));
    }
    state.insert(Instance {
        spec: stranger.spec,
        hash: String::new(),
        revision: 0,
        phase: Phase::Drained,
        since: now,
        process: Some(running.process),
        started_at: Some(running.started_at),
        restarts: 0,
        failures: 0,
        reason: Some("nobody remembers it".into()),
    });
    link_gateway(state, &id);
}

/// It runs: what was under way with it when the daemon ended is begun again.
pub fn running(state: &mut State, id: &str, running: Running, now: Timestamp) {
    let generation = state.observed.generation;
    state.update(id, |instance| {
        instance.process = Some(running.process);
        instance.started_at = Some(running.started_at);
        match instance.phase {
            Phase::Draining { .. } | Phase::Quiescing => instance.phase = Phase::Draining { generation },
            Phase::Stopping { then: AfterStop::Forget } => instance.phase = Phase::Drained,
            Phase::Stopping { then: AfterStop::Retry } | Phase::BackingOff { .. } => {
                instance.enter(Phase::Starting, now)
            }
            Phase::Starting => instance.since = now,
            Phase::Ready | Phase::Unhealthy | Phase::Drained => {}
        }
    });
}

fn link_gateway(state: &mut State, id: &str) {
    let Some(instance) = state.observed.instances.get(id).filter(|instance| instance.is_gateway()) else { return };
    let slot = gateways::slot_of(&instance.spec);
    state.observed.gateways.insert(id.to_owned(), GatewayLink { slot, ..GatewayLink::default() });
}

pub fn ended_meanwhile(state: &mut State, id: &str, exit: &Exit, now: Timestamp) {
    let mut forget = false;
    state.update(id, |instance| {
        forget = instance.ended(exit, now);
        // Time enough has passed: it is not made to wait for having ended while nobody looked.
        instance.failures = 0;
        if matches!(instance.phase, Phase::BackingOff { .. }) {
            instance.enter(Phase::BackingOff { until: now }, now);
        }
    });
    if forget {
        state.forget(id);
        state.litter.push(id.to_owned());
    } else {
        state.warn(
            "instance.exited",
            format!("instance/{id}"),
            format!("{id} ended while the daemon was away: {exit}"),
        );
    }
}

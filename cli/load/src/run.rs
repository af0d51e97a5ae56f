//! One run from the plan to the report.

use crate::plan::Plan;
use crate::report::Tick;
use crate::{LoadError, Outcome, Stop};

/// Runs `plan` to its end, or until `stop`; `on_tick` hears of it four times a second, on the caller's thread.
pub fn run(plan: &Plan, stop: &Stop, mut on_tick: impl FnMut(Tick)) -> Result<Outcome, LoadError> {
    let _ = (stop, on_tick(Tick::default()));
    Err(LoadError::Plan(format!("the engine is being built; {} requests were planned", plan.requests.len())))
}

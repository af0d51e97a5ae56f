//! Policy where it is written: quantities that make no sense by themselves or beside each other.

use super::at::At;
use super::{Context, routes};
use crate::finding::{ATTEMPT_BEYOND_DEADLINE, RETRIES_BEYOND_DEADLINE, ZERO};
use crate::policy::Policy;
use crate::topology::EdgePolicy;
use crate::units::{Percent, Span};

pub(super) fn check(context: &mut Context<'_, '_>) {
    let topology = context.topology;
    let defaults = &topology.defaults;
    one(context, defaults, &[defaults], context.root.get("defaults"));
    for (_, service, at) in context.services() {
        let calls = at.get("calls");
        for (callee, policy) in &service.calls {
            if *policy != EdgePolicy::default() {
                one(context, policy, &[defaults, policy], calls.get(callee));
            }
        }
    }
    for (index, route) in topology.routes.iter().enumerate() {
        let policy = route.policy();
        one(context, &policy, &[defaults, &policy], context.root.get("routes").nth(index));
    }
}

/// `written` stands at `at` and is the last of `layers`.
fn one(context: &mut Context<'_, '_>, written: &EdgePolicy, layers: &[&EdgePolicy], at: At<'_>) {
    context.not_zero(written.deadline, at, "deadline");
    context.not_zero(written.attempt_timeout, at, "attemptTimeout");
    routes::fallback(context, written.fallback.as_ref(), at);
    if let Some(breaker) = &written.breaker {
        let at = at.get("breaker");
        context.not_zero(breaker.window, at, "window");
        context.not_zero(breaker.open_for, at, "openFor");
        if breaker.failure_ratio == Some(Percent(0.0)) {
            context.add(ZERO, at.get("failureRatio").place(), || {
                (
                    "`failureRatio` must be more than zero: this breaker would open without any failure",
                    "write a share such as 50%",
                )
            });
        }
    }
    let policy = Policy::resolve(layers);
    if at.incomplete() || policy.deadline == Span::default() {
        return;
    }
    if let Some(attempt) = written.attempt_timeout.filter(|attempt| *attempt > policy.deadline) {
        let place = at.get("attemptTimeout").place();
        let from = if written.deadline.is_some() { "" } else { " by default" };
        context.add(ATTEMPT_BEYOND_DEADLINE, place, || {
            (
                format!("one attempt may take {attempt}, and all of them together {}{from}", policy.deadline),
                format!("write an `attemptTimeout` of at most {}, or a longer `deadline`", policy.deadline),
            )
        });
        return;
    }
    if let Some(retries @ 1..) = written.retry.as_ref().and_then(|retry| retry.attempts) {
        out_of_time(context, retries + 1, &policy, at);
    }
}

/// The attempts that were asked for need more time than there is.
fn out_of_time(context: &mut Context<'_, '_>, attempts: u32, policy: &Policy, at: At<'_>) {
    let Policy { deadline, attempt_timeout, .. } = policy;
    let needed = attempt_timeout.as_millis().saturating_mul(attempts.into());
    if needed <= deadline.as_millis() || attempt_timeout.as_millis() == 0 {
        return;
    }
    let begun = deadline.as_millis().div_ceil(attempt_timeout.as_millis());
    let effect = match u64::from(attempts).saturating_sub(begun) {
        0 => "the last attempt is cut short".to_owned(),
        1 => "the last attempt can never run".to_owned(),
        lost => format!("the last {lost} attempts can never run"),
    };
    let fitting = deadline.as_millis() / u64::from(attempts);
    context.add(RETRIES_BEYOND_DEADLINE, at.get("retry").get("attempts").place(), || {
        (
            format!(
                "{attempts} attempts of {attempt_timeout} need {}, the deadline is {deadline}: when they time out, {effect}",
                Span::from_millis(needed)
            ),
            format!("write an `attemptTimeout` of at most {}, fewer attempts or a longer `deadline`", Span::from_millis(fitting.max(1))),
        )
    });
}

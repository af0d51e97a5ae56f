//! The load engine: requests on a schedule, latencies from the time at which each was to be sent, and a verdict on whether the
//! generator itself kept up. No terminal code, no daemon: what to send comes as a [`Plan`](plan::Plan), what happened goes out
//! as a [`Report`](report::Report), and [`Tick`](report::Tick)s tell of it meanwhile.

pub mod plan;
pub mod report;

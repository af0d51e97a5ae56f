//! One run from arguments, for comparing the engine with other generators without the command line:
//!
//! `load URL CONNECTIONS SECONDS THREADS closed|RATE`, where URL is `http://127.0.0.1:8080/path`.

use std::error::Error;
use std::time::Duration;

use meshctl_load::plan::{Arrivals, Plan, Template};
use meshctl_load::{Stop, run};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, connections, seconds, threads, rate] = &arguments[..] else {
        return Err("usage: load URL CONNECTIONS SECONDS THREADS closed|RATE".into());
    };
    let rest = url.strip_prefix("http://").ok_or("only http:// is spoken")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let arrivals = match rate.as_str() {
        "closed" => Arrivals::Closed,
        rate => Arrivals::Open { per_second: rate.parse()? },
    };
    let request = Template {
        name: url.clone(),
        weight: 1.0,
        method: "GET".into(),
        path: format!("/{path}"),
        ..Template::default()
    };
    let plan = Plan {
        address: host.parse()?,
        host: host.into(),
        requests: vec![request],
        arrivals,
        connections: connections.parse()?,
        duration: Duration::from_secs_f64(seconds.parse()?),
        ramp: Duration::ZERO,
        warm_up: Duration::from_millis(500),
        timeout: Duration::from_secs(5),
        threads: threads.parse()?,
        seed: 1,
    };
    let outcome = run(&plan, &Stop::new(), |tick| eprintln!("{tick:?}"))?;
    println!("{}", serde_json::to_string_pretty(&outcome.report)?);
    Ok(())
}

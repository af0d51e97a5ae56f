//! A gateway by itself, for tests and measurements: `gateway DIR [THREADS] [METRICS-ADDRESS]`.

use meshctl_traffic::gateway::{GatewayOptions, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("MESHCTL_LOG"))
        .init();
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: gateway DIR [THREADS] [METRICS-ADDRESS]")?.into();
    let threads = arguments.next().map(|text| text.parse()).transpose()?;
    let metrics = arguments.next().map(|text| text.parse()).transpose()?;
    Ok(run(GatewayOptions { dir, siblings: None, threads, metrics })?)
}

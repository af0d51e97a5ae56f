//! The processes of the message line by themselves, for tests and measurements: `messages broker STATE-DIR`, and
//! `messages courier STATE-DIR FILES PORT`.

use std::path::Path;
use std::sync::Arc;

use meshctl_drivers::broker::embedded::{Client, Options, serve};
use meshctl_traffic::courier::{CourierOptions, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("MESHCTL_LOG"))
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["broker", state_dir] => Ok(serve(&Options { state_dir: state_dir.into(), listen: None, port: None })?),
        ["courier", state_dir, files, port] => {
            let options = CourierOptions { files: files.into(), port: port.parse()? };
            Ok(run(&options, || Arc::new(Client::new(Path::new(state_dir))))?)
        }
        _ => Err("usage: messages broker STATE-DIR | messages courier STATE-DIR FILES PORT".into()),
    }
}

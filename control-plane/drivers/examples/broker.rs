//! The broker role by itself, for tests and measurements: `broker STATE_DIR [LISTEN]`, as `meshctl broker`; HTTP on `PORT`.

use std::path::PathBuf;
use std::process::ExitCode;

use meshctl_drivers::broker::embedded::{Options, serve};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut arguments = std::env::args_os().skip(1);
    let Some(state_dir) = arguments.next().map(PathBuf::from) else { return ExitCode::from(2) };
    let listen = arguments.next().and_then(|address| address.to_str()?.parse().ok());
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    match serve(&Options { state_dir, listen, port }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

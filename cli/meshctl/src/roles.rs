//! The long-running roles: the same executable, each in a process of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Subcommand;
use meshctl_drivers::broker::SharedBroker;
use meshctl_drivers::broker::embedded as broker;
use meshctl_model::exit;
use meshctl_operator::Globals;

/// Roles are started by meshctl itself; an operator starts a daemon by hand at most.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Own a state directory: run what was applied and keep it running (started by `apply` itself)
    #[command(after_help = "\
Examples:
  meshctl daemon                            in the foreground; its log goes to stderr
  meshctl --state-dir /var/lib/shop daemon

SIGTERM ends the daemon and leaves the services running; the next one adopts them. `meshctl down` ends everything.")]
    Daemon,

    /// Carry requests (started by the daemon)
    #[command(hide = true)]
    Gateway {
        /// Where the last snapshot and the admin socket are kept
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Where the gateways of one system agree about addresses that they share
        #[arg(long, value_name = "DIR")]
        siblings: Option<PathBuf>,
        /// One for each core where left out
        #[arg(long, value_name = "N")]
        threads: Option<usize>,
        /// Where Prometheus reads
        #[arg(long, value_name = "ADDRESS:PORT")]
        metrics: Option<SocketAddr>,
    },

    /// Keep messages (started by the daemon); HTTP on 127.0.0.1:$PORT
    #[command(hide = true)]
    Broker {
        /// Where clients may connect besides the socket in the state directory; loopback only
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
        /// Of /healthz and /metrics
        #[arg(long, env = "PORT", value_name = "PORT")]
        port: Option<u16>,
    },

    /// Take messages from publishers, and deliver them (started by the daemon); HTTP on 127.0.0.1:$PORT
    #[command(hide = true)]
    Courier {
        /// Of publishes, /healthz, /status and /metrics
        #[arg(long, env = "PORT", value_name = "PORT")]
        port: u16,
        /// The folder that holds courier.json
        #[arg(long, env = meshctl_model::delivery::FILES, value_name = "DIR")]
        files: PathBuf,
    },

    /// Run a reference service on 127.0.0.1:$PORT: hello, inventory, orders, billing, shipping
    #[command(after_help = "\
Examples:
  PORT=9000 meshctl service hello
  PORT=9001 DATA_DIR=/tmp/stock meshctl service inventory")]
    Service {
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Whether this process is to be the nursery of a daemon.
pub(crate) fn is_nursery() -> bool {
    std::env::args_os().nth(1).is_some_and(|role| role == "nursery")
}

pub(crate) fn run(role: Role, globals: &Globals) -> ExitCode {
    match role {
        Role::Daemon => {
            log();
            daemon(globals)
        }
        Role::Gateway { dir, siblings, threads, metrics } => {
            log();
            let options = meshctl_traffic::gateway::GatewayOptions { dir, siblings, threads, metrics };
            finish(meshctl_traffic::gateway::run(options))
        }
        Role::Broker { listen, port } => {
            log();
            match meshctl_operator::state_dir(globals.state_dir.as_deref()) {
                Ok(state_dir) => finish(broker::serve(&broker::Options { state_dir, listen, port })),
                Err(why) => finish(Err::<(), _>(why.message)),
            }
        }
        Role::Courier { port, files } => {
            log();
            match meshctl_operator::state_dir(globals.state_dir.as_deref()) {
                Ok(state_dir) => {
                    let options = meshctl_traffic::courier::CourierOptions { files, port };
                    let broker = || Arc::new(broker::Client::new(&state_dir)) as SharedBroker;
                    finish(meshctl_traffic::courier::run(&options, broker))
                }
                Err(why) => finish(Err::<(), _>(why.message)),
            }
        }
        Role::Service { name } => meshctl_services::run(&name),
    }
}

fn daemon(globals: &Globals) -> ExitCode {
    let state_dir = match meshctl_operator::state_dir(globals.state_dir.as_deref()) {
        Ok(state_dir) => state_dir,
        Err(why) => return finish(Err::<(), _>(why.message)),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => return finish(Err::<(), _>(why)),
    };
    finish(runtime.block_on(meshctl_daemon::run(meshctl_daemon::DaemonOptions { state_dir })))
}

fn finish<E: std::fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Where its log cannot be written, that is no reason to end in a panic.
            let _ = writeln!(std::io::stderr(), "error: {why}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// Roles log to stderr: for people on a terminal, as JSON elsewhere.
fn log() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESHCTL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A full disk must not end a role because it cannot be told of.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    if std::io::stderr().is_terminal() { log.compact().init() } else { log.json().flatten_event(true).init() }
}

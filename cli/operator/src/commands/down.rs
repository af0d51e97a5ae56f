//! `meshctl down`

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use meshctl_api::client::Client;
use meshctl_api::error::ErrorCode;
use meshctl_api::place::{DAEMON, DAEMON_LOG, DEAD_LETTERS, LOCK, SOCKET, STORE, TRACES};
use meshctl_api::view::DownRequest;
use meshctl_model::delivery::BROKER;
use meshctl_model::exit;
use meshctl_model::units::Span;

use crate::ask;
use crate::failure::{Failure, Outcome};
use crate::launch::{self, Process, gone};
use crate::letters;
use crate::output::{self, print_line};
use crate::progress::{Ending, Goal, follow};
use crate::session::Session;

/// Stop everything: services, gateways and the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl down
  meshctl down --reason 'moving house'
  meshctl down --purge --yes

The system's data stays, and `meshctl apply` brings it up again; --purge removes it too,
with every message that is kept and every dead letter: --dry-run says how many.")]
pub struct Args {
    /// Remove the state directory too: history, logs, messages, dead letters, everything
    #[arg(long)]
    purge: bool,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    /// Say what would be done and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// How long to wait, after which the exit status is 5; stopping goes on
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Span,
}

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.timeout
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    if args.purge {
        must_be_ours(session.state_dir())?;
    }
    if args.dry_run {
        return announce(session, args.purge).await;
    }
    let mut left = Vec::new();
    let mut daemon = daemon(session).await?;
    if daemon.is_none() {
        left = labelled(session.state_dir());
        if !left.is_empty() {
            session.say(format_args!("no daemon runs, and {} processes of one do: a new one ends them", left.len()));
            daemon = Some(launch::start(session).await?);
        }
    }
    let system = match daemon {
        Some(client) => {
            let name = client.status().await?.name;
            let goods = if args.purge && !args.yes { goods(&client).await } else { String::new() };
            agree_to_purge(session, &args, &name, &goods)?;
            stop(session, &client, &args).await?;
            Some(name)
        }
        None => {
            agree_to_purge(session, &args, "purge", "")?;
            None
        }
    };
    if !left.is_empty() {
        must_have_ended(session.state_dir())?;
    }
    match system {
        _ if !left.is_empty() => print_line(format_args!("ended what a daemon had left: {}", left.join(", ")))?,
        Some(name) if name.is_empty() => print_line("stopped")?,
        Some(name) => print_line(format_args!("{name} stopped"))?,
        None => print_line("nothing is running")?,
    }
    if args.purge {
        purge(session.state_dir())?;
    }
    Ok(exit::OK)
}

/// The daemon that can stop everything: the one that runs, or a new one in place of one that died and left things running.
async fn daemon(session: &Session) -> Result<Option<Client>, Failure> {
    if !session.state_dir().exists() {
        return Ok(None);
    }
    let client = session.client()?;
    let error = match client.version().await {
        Ok(_) => return Ok(Some(client)),
        Err(error) => error,
    };
    match launch::recorded(session.state_dir()) {
        _ if error.code != ErrorCode::Unreachable => Err(error.into()),
        None => Ok(None),
        Some(record) if launch::is_alive(&record) => {
            Err(Failure::new(exit::UNREACHABLE, format!("the daemon (pid {}) runs and does not answer", record.pid))
                .hint(format!("look at its log; `kill -9 {}` and `meshctl down` again end it", record.pid)))
        }
        Some(record) => {
            session.say(format_args!("the daemon (pid {}) died: a new one takes over what it left", record.pid));
            launch::start(session).await.map(Some)
        }
    }
}

/// Stops everything, and returns when nothing of it is left, the daemon included.
async fn stop(session: &Session, client: &Client, args: &Args) -> Result<(), Failure> {
    let pid = client.version().await?.pid;
    let process = Process::of(pid);
    // Before it is told, so that nothing of it is missed: at its end the daemon is gone.
    let watch = client.watch(None, Duration::ZERO).await?;
    client.down(&DownRequest { reason: args.reason.clone() }).await?;
    let (ending, _) = follow(session, watch, &Goal::Down, args.timeout.get()).await?;
    match ending {
        Ending::TimedOut => {
            Err(Failure::new(exit::TIMED_OUT, format!("not everything has stopped after {}", args.timeout))
                .hint("it goes on: `meshctl status` shows what is left"))
        }
        Ending::Interrupted => {
            session.say("detached: stopping goes on; `meshctl status` shows what is left");
            Err(Failure::silent(exit::INTERRUPTED))
        }
        _ => {
            gone(process, pid).await?;
            must_be_gone(client.socket())
        }
    }
}

/// A socket that is left behind means that the daemon did not end as it should.
fn must_be_gone(socket: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(Failure::new(exit::FAILURE, format!("the daemon ended and left its socket: {}", socket.display()))
            .hint("it may have been killed while it stopped: `meshctl down` again makes sure")),
    }
}

async fn announce(session: &Session, purges: bool) -> Outcome {
    let running = if session.state_dir().exists() { session.client()?.status().await.ok() } else { None };
    match running {
        None => {
            let left = labelled(session.state_dir());
            match left.is_empty() {
                true => print_line("nothing is running")?,
                false => print_line(format_args!("{} would be ended (dry run)", left.join(", ")))?,
            }
        }
        Some(status) => {
            for service in &status.items {
                print_line(format_args!("service/{} would be stopped (dry run)", service.name))?;
            }
            for gateway in &status.gateways {
                print_line(format_args!("gateway/{} would be stopped (dry run)", gateway.id))?;
            }
            print_line("the daemon would end (dry run)")?;
            if purges {
                let goods = goods(&session.client()?).await;
                if !goods.is_empty() {
                    print_line(format_args!("{goods} would be removed (dry run)"))?;
                }
            }
        }
    }
    if purges {
        print_line(format_args!("{} would be removed (dry run)", session.state_dir().display()))?;
    }
    Ok(exit::OK)
}

/// The messages that go with the state directory; empty where there are no channels, or their daemon is too old to say.
async fn goods(client: &Client) -> String {
    let Ok(channels) = client.channels().await else { return String::new() };
    if channels.items.is_empty() {
        return String::new();
    }
    let kept: u64 = channels.items.iter().map(|channel| channel.kept).sum();
    let dead: u64 = channels.items.iter().map(|channel| channel.dead_letters).sum();
    format!("{kept} kept message{} and {}", if kept == 1 { "" } else { "s" }, letters::count(dead))
}

fn agree_to_purge(session: &Session, args: &Args, word: &str, goods: &str) -> Result<(), Failure> {
    if !args.purge || args.yes || !session.state_dir().exists() {
        return Ok(());
    }
    if !output::interactive() {
        return Err(
            Failure::usage("--purge removes everything, and there is nobody to ask").hint("add --yes if that is meant")
        );
    }
    let word = if word.is_empty() { "purge" } else { word };
    let goods = if goods.is_empty() { String::new() } else { format!(" with {goods}") };
    let question = format!("This stops everything and removes {}{goods}.", session.state_dir().display());
    if ask::typed(&question, word) { Ok(()) } else { Err(Failure::new(exit::FAILURE, "nothing was changed")) }
}

/// A folder is only removed if a daemon of ours has lived in it.
fn must_be_ours(dir: &Path) -> Result<(), Failure> {
    let is_file = |name: &str| fs::symlink_metadata(dir.join(name)).is_ok_and(|file| file.is_file());
    let has_lived = is_file(STORE) && (is_file(LOCK) || is_file(DAEMON) || is_file(DAEMON_LOG));
    if !dir.exists() || has_lived {
        return Ok(());
    }
    Err(Failure::new(exit::FAILURE, format!("{} does not look like a state directory of meshctl", dir.display()))
        .hint("nothing was removed; remove it yourself if that is meant"))
}

/// Removes what meshctl keeps in `dir`, and `dir` itself where nothing else is in it.
fn purge(dir: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::file(format_args!("cannot remove {}", dir.display()), &error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    let mut foreign = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        match (is_folder, is_ours(&name, is_folder)) {
            (_, false) => foreign.push(name),
            (true, true) => fs::remove_dir_all(entry.path()).map_err(failed)?,
            (false, true) => fs::remove_file(entry.path()).map_err(failed)?,
        }
    }
    if foreign.is_empty() {
        fs::remove_dir(dir).map_err(failed)?;
        return print_line(format_args!("{} removed", dir.display()));
    }
    foreign.sort();
    print_line(format_args!("{} purged; what is not of meshctl stays: {}", dir.display(), foreign.join(", ")))
}

/// Whether meshctl makes things of this name in a state directory.
fn is_ours(name: &str, is_folder: bool) -> bool {
    if is_folder {
        return matches!(name, "instances" | "gateways" | "data" | BROKER);
    }
    // SQLite keeps its journal beside a store, and a store that was damaged is put aside.
    let is_of = |store: &str| {
        name.strip_prefix(store)
            .is_some_and(|rest| matches!(rest, "" | "-wal" | "-shm") || rest.starts_with(".damaged-"))
    };
    [STORE, DEAD_LETTERS, TRACES].into_iter().any(is_of)
        || matches!(name, DAEMON | DAEMON_LOG | LOCK | SOCKET | "daemon.log.1" | "daemon.json.new")
}

/// The processes that say in their environment that they belong to an instance of the system in `dir`, whoever started
/// them: `orders-1 (pid 4001)`. They are all that is left of a system whose directory somebody removed.
fn labelled(dir: &Path) -> Vec<String> {
    // The daemon resolves links before it names its directory; of one that is gone only the folder above can be resolved.
    let above = || Some(dir.parent()?.canonicalize().ok()?.join(dir.file_name()?));
    let resolved = dir.canonicalize().ok().or_else(above).unwrap_or_else(|| dir.to_owned());
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<(u32, String)> = processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let value = |name: &[u8]| {
                environment.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(name)?.strip_prefix(b"="))
            };
            let at = Path::new(OsStr::from_bytes(value(b"MESHCTL_STATE_DIR")?));
            let instance = String::from_utf8_lossy(value(b"MESHCTL_INSTANCE")?).into_owned();
            ((at == dir || at == resolved) && pid != std::process::id()).then_some((pid, instance))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(pid, instance)| format!("{instance} (pid {pid})")).collect()
}

/// The new daemon has ended what was left.
fn must_have_ended(dir: &Path) -> Result<(), Failure> {
    let left = labelled(dir);
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(exit::FAILURE, format!("some of what a daemon had left runs on: {}", left.join(", ")))
        .hint("`meshctl down` again, or `kill -9` them"))
}

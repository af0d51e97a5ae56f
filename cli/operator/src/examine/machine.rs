//! The machine: whether it can carry what a system needs, up to 10,000 connections. Every question is a pure function of a
//! fact; what a kernel does not tell is not judged.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use meshctl_model::topology::{AUTOMATIC_PORTS, GATEWAY_LISTEN, GatewayProvider, RuntimeProvider, Topology};
use rustix::process::{Resource, getrlimit};

use super::{Check, broken, careful, good};

const MIB: u64 = 1 << 20;

/// What a system takes of the machine's ports.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    /// Where its gateway listens.
    listen: String,
    /// Whether a topology says so; otherwise it is what a topology would get that says nothing.
    named: bool,
    /// Of the automatic ports, the first and the last.
    range: (u16, u16),
}

impl Ports {
    /// Those of a topology, or those that one gets that says nothing.
    pub(crate) fn of(topology: Option<&Topology>) -> Self {
        let (mut listen, mut range) = (None, None);
        if let Some(topology) = topology {
            let GatewayProvider::Embedded(gateway) = &topology.providers.gateway;
            let RuntimeProvider::Process(runtime) = &topology.providers.runtime;
            (listen, range) = (gateway.listen.clone(), runtime.ports.clone());
        }
        let bounds = |text: &str| {
            let (low, high) = text.split_once('-')?;
            Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
        };
        Self {
            named: listen.is_some(),
            listen: listen.unwrap_or_else(|| GATEWAY_LISTEN.to_owned()),
            range: range.as_deref().and_then(bounds).or_else(|| bounds(AUTOMATIC_PORTS)).unwrap_or((20_000, 29_999)),
        }
    }
}

/// Looks at the machine. `own`: addresses on which this very system listens already.
pub(super) fn examine(state_dir: &Path, ports: &Ports, own: &[String]) -> Vec<Check> {
    let kernel = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).ok();
    let number = |name: &str| kernel(name)?.trim().parse::<u64>().ok();
    let mut checks = vec![
        open_files(getrlimit(Resource::Nofile).maximum),
        clock(Timestamp::now()),
        clocks_agree(watch_clocks(Duration::from_millis(20))),
        cores(std::thread::available_parallelism().map_or(1, usize::from)),
    ];
    checks.extend(fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory(&text)));
    checks.extend(disk_of(state_dir).map(|(free, total)| disk(free, total)));
    checks
        .extend(kernel("net/ipv4/ip_local_port_range").into_iter().flat_map(|text| outgoing_ports(&text, ports.range)));
    checks.push(free_ports(ports.range, &listening()));
    if !own.contains(&ports.listen) {
        checks.extend(ports.listen.parse().ok().map(|address| listen(address, ports.named, try_to_listen(address))));
    }
    checks.extend(number("net/core/somaxconn").map(somaxconn));
    checks.extend(number("fs/file-max").map(file_max));
    checks
}

/// The hard limit is what counts: the roles raise their own soft limit.
fn open_files(limit: Option<u64>) -> Check {
    let Some(limit) = limit else { return good("any number of open files is allowed") };
    let remedy = "raise it: `LimitNOFILE=65536` in the unit, or `* hard nofile 65536` in /etc/security/limits.d";
    match limit {
        0..4096 => broken(format!("only {limit} open files are allowed for a process"), remedy),
        4096..25_000 => {
            careful(format!("{limit} open files are allowed: too few for 10,000 connections at a gateway"), remedy)
        }
        _ => good(format!("{limit} open files are allowed for a process")),
    }
}

fn clock(now: Timestamp) -> Check {
    // The year this was written: no clock that is right shows less. Certificates and leases end long before the other.
    const WRITTEN: i64 = 1_767_225_600;
    const FAR: i64 = 4_102_444_800;
    if !(WRITTEN..FAR).contains(&now.as_second()) {
        let remedy = "set it, `timedatectl set-ntp true` keeps it right: ages, leases and logs depend on it";
        return broken(format!("the clock shows {now:.0}"), remedy);
    }
    good(format!("the clock shows {now:.0}"))
}

/// How much further than the steady clock the wall clock went meanwhile, in milliseconds.
fn watch_clocks(meanwhile: Duration) -> f64 {
    let (wall, steady) = (Timestamp::now(), Instant::now());
    std::thread::sleep(meanwhile);
    let steady = steady.elapsed();
    let wall = Timestamp::now().duration_since(wall);
    (wall.as_secs_f64() - steady.as_secs_f64()) * 1000.0
}

fn clocks_agree(apart_ms: f64) -> Check {
    if apart_ms.abs() > 5.0 {
        let message = format!("the clock jumped by {apart_ms:.0} ms while it was looked at");
        return careful(
            message,
            "see who sets it: `timedatectl`, chrony or the hypervisor; traces show wrong gaps meanwhile",
        );
    }
    good("the clock goes steadily")
}

fn cores(count: usize) -> Check {
    match count {
        1 => {
            careful("there is 1 core: gateway, services and load share it", "expect latencies to grow early under load")
        }
        count => good(format!("there are {count} cores")),
    }
}

/// `text` is `/proc/meminfo`.
fn memory(text: &str) -> Option<Check> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024 / MIB;
    let message = format!("{available} MiB of memory are available");
    Some(match available {
        0..128 => broken(message, "end something, or give the machine more: a system of some services takes 100 MiB"),
        128..1024 => careful(message, "10,000 connections take several hundred MiB over all processes"),
        _ => good(message),
    })
}

/// Bytes free and in all where the state directory is or will be.
fn disk_of(state_dir: &Path) -> Option<(u64, u64)> {
    let existing = state_dir.ancestors().find(|dir| dir.exists())?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    Some((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
}

fn disk(free: u64, total: u64) -> Check {
    let share = (100 * free).checked_div(total).unwrap_or(0);
    let shown = format!("{} MiB ({share} %) are free for state, messages and logs", free / MIB);
    let remedy = "make room, or name another folder with --state-dir";
    match free / MIB {
        0..100 => broken(shown, remedy),
        100..1024 => careful(shown, remedy),
        _ if share < 2 => careful(shown, remedy),
        _ => good(shown),
    }
}

/// `text` is the kernel's range of ports for outgoing connections: wide enough, and apart from those that are given to instances.
fn outgoing_ports(text: &str, ours: (u16, u16)) -> Vec<Check> {
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high))) = (bounds.next(), bounds.next()) else { return Vec::new() };
    let overlap = if low <= ours.1 && ours.0 <= high {
        careful(
            format!("outgoing connections use the ports {low}-{high}, some of which meshctl gives to instances"),
            "`sysctl -w net.ipv4.ip_local_port_range='32768 60999'`, or name others in `providers.runtime.process.ports`",
        )
    } else {
        good(format!("outgoing connections ({low}-{high}) and instances ({}-{}) use different ports", ours.0, ours.1))
    };
    let count = u32::from(high.saturating_sub(low)) + 1;
    let mut checks = vec![overlap];
    if count < 20_000 {
        let message = format!("{count} ports are there for outgoing connections: too few for 10,000 to one address");
        checks.push(careful(message, "`sysctl -w net.ipv4.ip_local_port_range='32768 60999'`"));
    }
    checks
}

/// The ports on which anybody listens.
fn listening() -> BTreeSet<u16> {
    const LISTENS: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        (state == LISTENS).then(|| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok())?
    };
    tables.iter().flat_map(|table| table.lines()).filter_map(port).collect()
}

fn free_ports((low, high): (u16, u16), taken: &BTreeSet<u16>) -> Check {
    let all = usize::from(high.saturating_sub(low)) + 1;
    let free = all.saturating_sub(taken.range(low..=high).count());
    let message = format!("{free} of the {all} ports {low}-{high} are free for instances");
    let remedy = "widen `providers.runtime.process.ports` in the topology";
    match free {
        0..10 => broken(message, remedy),
        10..100 => careful(message, remedy),
        _ => good(message),
    }
}

fn try_to_listen(address: SocketAddr) -> Result<(), ErrorKind> {
    TcpListener::bind(address).map(drop).map_err(|error| error.kind())
}

/// Whether a gateway could listen there. Where no topology names the address, another can still be named.
fn listen(address: SocketAddr, named: bool, tried: Result<(), ErrorKind>) -> Check {
    let port = address.port();
    let (why, remedy) = match tried {
        Ok(()) => return good(format!("{address} is free for the gateway")),
        Err(ErrorKind::AddrInUse) => (
            "another process listens there".to_owned(),
            format!("`ss -ltnp 'sport = :{port}'` shows which; or name another in `providers.gateway.embedded.listen`"),
        ),
        Err(ErrorKind::PermissionDenied) => (
            "ports below 1024 are for root".to_owned(),
            "name one above 1024, or `sysctl -w net.ipv4.ip_unprivileged_port_start=80`".to_owned(),
        ),
        Err(kind) => (kind.to_string(), "name an address of this machine: `ip address` lists them".to_owned()),
    };
    let message = format!("the gateway cannot listen on {address}: {why}");
    if named { broken(message, remedy) } else { careful(message, remedy) }
}

fn somaxconn(limit: u64) -> Check {
    if limit < 1024 {
        let message = format!("{limit} connections may wait to be accepted: a burst of new ones is refused");
        return careful(message, "`sysctl -w net.core.somaxconn=4096`");
    }
    good(format!("{limit} connections may wait to be accepted"))
}

fn file_max(limit: u64) -> Check {
    if limit < 100_000 {
        let message =
            format!("the whole machine may have {limit} files open: too few for 10,000 connections end to end");
        return careful(message, "`sysctl -w fs.file-max=1000000`");
    }
    good(format!("the whole machine may have {limit} files open"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examine::Grade::{self, Broken, Careful, Good};

    #[test]
    fn limits_are_graded() {
        for (limit, grade) in [(Some(1024), Broken), (Some(4096), Careful), (Some(65_536), Good), (None, Good)] {
            assert_eq!(open_files(limit).grade, grade, "{limit:?}");
        }
        let memory = |kib: u64| memory(&format!("MemTotal: 9 kB\nMemAvailable:   {kib} kB\n")).map(|check| check.grade);
        assert_eq!([64 << 10, 512 << 10, 4 << 20].map(memory), [Some(Broken), Some(Careful), Some(Good)]);
        assert_eq!(
            [(50, 100), (500, 1_000), (5_000, 500_000), (50_000, 500_000)].map(|(f, t)| disk(f * MIB, t * MIB).grade),
            [Broken, Careful, Careful, Good]
        );
        assert_eq!(
            [somaxconn(128).grade, somaxconn(4096).grade, file_max(1000).grade, cores(1).grade],
            [Careful, Good, Careful, Careful]
        );
    }

    #[test]
    fn a_clock_that_is_wrong_or_jumps_is_noticed() {
        let at = |text: &str| clock(text.parse().expect("a time")).grade;
        assert_eq!(
            ["1970-01-01T00:00:00Z", "2026-11-23T10:00:00Z", "2190-01-01T00:00:00Z"].map(at),
            [Broken, Good, Broken]
        );
        assert_eq!([0.4, -900.0].map(|apart| clocks_agree(apart).grade), [Good, Careful]);
    }

    #[test]
    fn ports_that_both_use_are_a_warning() {
        let grades = |range| {
            outgoing_ports(range, (20_000, 29_999)).into_iter().map(|check| check.grade).collect::<Vec<Grade>>()
        };
        assert_eq!(grades("32768\t60999\n"), [Good]);
        assert_eq!(grades("1024\t65535\n"), [Careful]);
        assert_eq!(grades("29999 30000"), [Careful, Careful]);
        assert_eq!(grades("what"), []);
    }

    #[test]
    fn ports_that_are_taken_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        assert!(listening().contains(&address.port()));
        let taken = listen(address, true, try_to_listen(address));
        assert_eq!(taken.grade, Broken);
        assert!(taken.message.contains("another process listens there"), "{taken:?}");
        assert_eq!(listen(address, false, Err(ErrorKind::AddrInUse)).grade, Careful, "another can be named");
        assert_eq!(free_ports((address.port(), address.port()), &listening()).grade, Broken);
        assert_eq!(free_ports((20_000, 29_999), &BTreeSet::new()).grade, Good);
    }
}

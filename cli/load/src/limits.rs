//! What the machine must have for so many connections: descriptors, which are raised to the hard limit, and local ports, of
//! which loopback has as many as it has source addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::LoadError;

/// For what else a process opens meanwhile: terminals, files, sockets to a daemon.
const RESERVE: u64 = 64;
/// Of the ports that there are, so many are taken for granted: others use some, and closed connections hold theirs a minute.
const PORTS_USABLE: f64 = 0.9;
/// As Linux comes, for where `/proc` does not say: 32768 to 60999.
const DEFAULT_PORTS: u32 = 28_232;

/// Raises the limit of descriptors as far as `connections` and `more` sockets beside them need.
pub(crate) fn raise_descriptors(connections: u32, more: u32) -> Result<(), LoadError> {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let beside = u64::from(more) + open + RESERVE;
    let needed = u64::from(connections) + beside;
    // None is no limit.
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Some(limit) = maximum
        && limit < needed
    {
        return Err(LoadError::Descriptors { connections, needed, limit, possible: limit.saturating_sub(beside) });
    }
    if current.is_some_and(|current| current < needed) {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
            .map_err(|source| LoadError::Machine { what: "raising the limit of descriptors", source: source.into() })?;
    }
    Ok(())
}

/// Where connections come from: each in turn from one of these; none means that the machine chooses.
pub(crate) fn sources(address: SocketAddr, connections: u32) -> Result<Vec<IpAddr>, LoadError> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ports = parse_range(&range).unwrap_or(DEFAULT_PORTS);
    sources_with(address, connections, ports)
}

fn parse_range(text: &str) -> Option<u32> {
    let mut numbers = text.split_whitespace().map(str::parse::<u32>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (last + 1).checked_sub(first)
}

fn sources_with(address: SocketAddr, connections: u32, ports: u32) -> Result<Vec<IpAddr>, LoadError> {
    let usable = (f64::from(ports) * PORTS_USABLE) as u32;
    if connections <= usable {
        return Ok(Vec::new());
    }
    match address.ip() {
        // All of 127.0.0.0/8 is this machine, and each address has all ports.
        IpAddr::V4(ip) if ip.is_loopback() && usable > 0 => {
            let count = connections.div_ceil(usable);
            Ok((1..=count).map(|i| IpAddr::V4(Ipv4Addr::new(127, 1, (i >> 8) as u8, i as u8))).collect())
        }
        _ => Err(LoadError::Ports { connections, address, ports: usable }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_ports_is_read() {
        assert_eq!(parse_range("32768\t60999\n"), Some(28_232));
        assert_eq!(parse_range("60999 32768"), None);
        assert_eq!(parse_range("some"), None);
    }

    #[test]
    fn loopback_gets_more_addresses_when_ports_do_not_suffice() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 80));
        assert_eq!(sources_with(loopback, 9_000, 10_000).ok(), Some(Vec::new()));
        let many = sources_with(loopback, 20_000, 10_000).expect("three addresses");
        assert_eq!(many, [[127, 1, 0, 1], [127, 1, 0, 2], [127, 1, 0, 3]].map(IpAddr::from));
    }

    #[test]
    fn elsewhere_ports_are_what_they_are() {
        let error = sources_with(SocketAddr::from(([192, 0, 2, 1], 80)), 20_000, 10_000).expect_err("too many");
        assert!(error.to_string().contains("this machine gives out 9000: widen"), "{error}");
    }

    #[test]
    fn more_than_the_hard_limit_is_refused_with_what_is_possible() {
        // Where there is no limit, none can be exceeded.
        if getrlimit(Resource::Nofile).maximum.is_some_and(|limit| limit < u64::from(u32::MAX)) {
            let error = raise_descriptors(u32::MAX, 0).expect_err("too many");
            assert!(error.to_string().contains("ulimit -Hn"), "{error}");
        }
    }
}

//! Who listens on an address that we cannot have: an operator's next question, answered from /proc as far as this user
//! may look.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Why an address cannot be listened on, without the address.
pub(crate) fn why(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match of(address) {
            Some((program, pid)) => format!("address already in use by {program} (pid {pid})"),
            None => "address already in use".to_owned(),
        },
        _ => error.to_string(),
    }
}

/// Program and pid of a process that listens on the address or, for all of its machine's, on the port. `None` if there is
/// none, or it is another user's.
fn of(address: SocketAddr) -> Option<(String, u32)> {
    let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inodes: Vec<&str> = sockets.iter().flat_map(|table| listening(table, address)).collect();
    let holds = |link: &str| {
        link.strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inode| inodes.contains(&inode))
    };
    if inodes.is_empty() {
        return None;
    }
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids = pids.filter(|pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| link.to_str().is_some_and(holds))
    });
    let pid = pids.next()?;
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((program.trim_end().to_owned(), pid))
}

/// Inodes of the sockets in one of the kernel's tables that keep others from listening on `address`.
fn listening(table: &str, address: SocketAddr) -> impl Iterator<Item = &str> {
    const LISTENS: &str = "0A";
    // Local address, state and inode are fields 1, 3 and 9; the line of headings has no address there.
    table.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (ip, port) = fields.next()?.split_once(':')?;
        let (state, inode) = (fields.nth(1)?, fields.nth(5)?);
        let same_port = u16::from_str_radix(port, 16) == Ok(address.port());
        let ip = read_ip(ip)?;
        let collides = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        (state == LISTENS && same_port && collides).then_some(inode)
    })
}

/// An address as the kernel prints it: words of 32 bits, each in this machine's order of bytes.
fn read_ip(text: &str) -> Option<IpAddr> {
    let words = (0..text.len()).step_by(8).map(|at| u32::from_str_radix(text.get(at..at + 8)?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Some(IpAddr::from(four)),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|sixteen| IpAddr::from(sixteen).to_canonical()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_by_its_address() {
        for at in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).expect("bound");
            let mut address = listener.local_addr().expect("an address");
            if at.starts_with('0') {
                address.set_ip([127, 0, 0, 1].into());
            }
            assert_eq!(of(address).map(|(_, pid)| pid), Some(std::process::id()), "{at}");
            let text = why(address, &io::ErrorKind::AddrInUse.into());
            assert!(text.starts_with("address already in use by ") && text.ends_with(')'), "{text}");
            drop(listener);
            assert_eq!(why(address, &io::ErrorKind::AddrInUse.into()), "address already in use");
        }
    }
}

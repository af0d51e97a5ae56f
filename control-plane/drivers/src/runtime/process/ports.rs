//! Which TCP ports are taken: those on which something listens. The kernel is asked for exactly these, because its tables in
//! `/proc` list every connection of the machine, which takes milliseconds where there are thousands.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

// From <linux/netlink.h>, <linux/sock_diag.h> and <linux/tcp.h>.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u32 = 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The TCP ports of this machine on which something listens, on any address, IPv4 and IPv6.
///
/// # Errors
/// When the kernel does not tell.
pub fn listening_ports() -> io::Result<BTreeSet<u16>> {
    // A kernel need not have the faster of its two answers.
    asked().or_else(|_| listed())
}

fn asked() -> io::Result<BTreeSet<u16>> {
    let kernel =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    let mut ports = BTreeSet::new();
    for family in [AF_INET, AF_INET6] {
        // The header, then `struct inet_diag_req_v2`: which sockets, and zeros where any will do.
        let mut request = [0; HEADER + 56];
        request[..4].copy_from_slice(&72_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
        request[HEADER] = family;
        request[HEADER + 1] = IPPROTO_TCP;
        request[HEADER + 4..HEADER + 8].copy_from_slice(&(1_u32 << TCP_LISTEN).to_ne_bytes());
        send(&kernel, &request, SendFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        while {
            let (read, _) = recv(&kernel, &mut buffer[..], RecvFlags::empty())?;
            take(&buffer[..read], &mut ports)?
        } {}
    }
    Ok(ports)
}

/// Takes the ports out of one datagram, and tells whether more follow.
fn take(mut messages: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    while let Some((header, _)) = messages.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let message = messages.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match (u16::from_ne_bytes([header[4], header[5]]), message) {
            (NLMSG_DONE, _) => return Ok(false),
            (NLMSG_ERROR, _) => return Err(io::ErrorKind::Unsupported.into()),
            // `struct inet_diag_msg`: four bytes, then the port in network order.
            (SOCK_DIAG_BY_FAMILY, [_, _, _, _, high, low, ..]) => {
                ports.insert(u16::from_be_bytes([*high, *low]));
            }
            _ => {}
        }
        messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn listed() -> io::Result<BTreeSet<u16>> {
    const LISTEN: &str = "0A";
    let mut ports = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            text => text?,
        };
        for line in text.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (Some(local), Some(LISTEN)) = (fields.next(), fields.nth(1)) else { continue };
            ports.extend(local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok()));
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answers_of_the_kernel_name_who_listens_and_not_who_is_connected() -> io::Result<()> {
        let four = std::net::TcpListener::bind("127.0.0.1:0")?;
        let six = std::net::TcpListener::bind("[::1]:0").ok();
        let client = std::net::TcpStream::connect(four.local_addr()?)?;
        for ports in [asked()?, listed()?] {
            assert!(ports.contains(&four.local_addr()?.port()), "{ports:?}");
            assert!(!ports.contains(&client.local_addr()?.port()), "{ports:?}");
            if let Some(six) = &six {
                assert!(ports.contains(&six.local_addr()?.port()), "{ports:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_kernel_that_refuses_or_talks_nonsense_is_an_error() {
        let message = |length: u32, kind: u16| {
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &[0, 0, 0, 0, 0x1f, 0x90]].concat()
        };
        let mut ports = BTreeSet::new();
        assert!(take(&message(22, SOCK_DIAG_BY_FAMILY), &mut ports).is_ok_and(|more| more));
        assert_eq!(ports, BTreeSet::from([8080]));
        assert!(take(&message(22, NLMSG_DONE), &mut ports).is_ok_and(|more| !more));
        assert!(take(&message(22, NLMSG_ERROR), &mut ports).is_err());
        assert!(take(&message(4, SOCK_DIAG_BY_FAMILY), &mut ports).is_err(), "shorter than its own header");
        assert!(take(&message(200, SOCK_DIAG_BY_FAMILY), &mut ports).is_err(), "longer than what came");
    }
}

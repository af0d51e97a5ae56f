//! Listening sockets: one per worker thread and address, told apart by the kernel (SO_REUSEPORT), so that threads share
//! nothing when they accept.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// `count` sockets on one address.
///
/// SO_REUSEPORT alone would let two gateways of one user share a port without anybody noticing; a socket without it goes
/// first to see whether the address is free.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn open(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    bind(address, false)?.listen(1)?;
    join(address, count)
}

/// More sockets beside those that are open already.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn join(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    (0..count)
        .map(|_| {
            let socket = bind(address, true)?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_noticed_even_if_it_would_be_shared() {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let open_sockets = open(free, 2).expect("opened");
        assert_eq!(open_sockets.len(), 2);
        assert_eq!(open(free, 2).map_err(|e| e.kind()).err(), Some(io::ErrorKind::AddrInUse));
        assert!(join(free, 1).is_ok());
        drop(open_sockets);
        assert!(open(free, 2).is_ok());
    }
}

//! Listening sockets: one per worker thread and address, told apart by the kernel (SO_REUSEPORT), so that threads share
//! nothing when they accept.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 4096;

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) sockets: Vec<TcpListener>,
    /// Locked for as long as the sockets are open, so that siblings know whose they are.
    _claim: Option<File>,
}

/// `count` sockets on an address that is free, or that only siblings listen on: gateways of one system that agree about
/// it by locks on files in `siblings`. The kernel gives a lock back however its owner ends.
///
/// # Errors
/// When the address cannot be bound, or somebody else listens there.
pub(crate) fn open_beside(address: SocketAddr, count: usize, siblings: Option<&Path>) -> io::Result<Held> {
    let Some(siblings) = siblings else { return Ok(Held { sockets: open(address, count)?, _claim: None }) };
    // One at a time, or the look at whether the address is free would meet that of a sibling.
    let (_turn, claim) = (turn(siblings)?, file(siblings, &address.to_string())?);
    let sockets = match claim.try_lock() {
        Ok(()) => {
            let sockets = open(address, count)?;
            claim.unlock()?;
            sockets
        }
        Err(TryLockError::WouldBlock) => join(address, count)?,
        Err(TryLockError::Error(why)) => return Err(why),
    };
    claim.lock_shared()?;
    Ok(Held { sockets, _claim: Some(claim) })
}

/// Sockets that a predecessor left: every one is accepted from, or its queue would starve; more threads than sockets open
/// more.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn inherit(
    address: SocketAddr,
    count: usize,
    mut sockets: Vec<TcpListener>,
    siblings: Option<&Path>,
) -> io::Result<Held> {
    sockets.extend(join(address, count.saturating_sub(sockets.len()))?);
    let Some(siblings) = siblings else { return Ok(Held { sockets, _claim: None }) };
    let (_turn, claim) = (turn(siblings)?, file(siblings, &address.to_string())?);
    claim.lock_shared()?;
    Ok(Held { sockets, _claim: Some(claim) })
}

fn turn(siblings: &Path) -> io::Result<File> {
    std::fs::create_dir_all(siblings)?;
    let turn = file(siblings, "turn")?;
    turn.lock()?;
    Ok(turn)
}

fn file(folder: &Path, name: &str) -> io::Result<File> {
    File::options().create(true).append(true).open(folder.join(name))
}

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

    #[test]
    fn siblings_share_an_address_and_nobody_else_does() {
        let (ours, theirs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let one = open_beside(free, 2, Some(ours.path())).expect("opened");
        let two = open_beside(free, 2, Some(ours.path())).expect("a sibling");
        for siblings in [Some(theirs.path()), None] {
            let refused = open_beside(free, 2, siblings).map_err(|why| why.kind());
            assert_eq!(refused.err(), Some(io::ErrorKind::AddrInUse));
        }
        drop(one);
        let one = open_beside(free, 2, Some(ours.path())).expect("the second keeps the place of the first");
        drop((one, two));
        let other = open_beside(free, 2, Some(theirs.path())).expect("nobody is left");
        assert!(open_beside(free, 2, Some(ours.path())).is_err(), "what was ours once is not ours for ever");
        drop(other);
    }
}

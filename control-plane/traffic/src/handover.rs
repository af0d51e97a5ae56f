//! How a newer gateway takes over from a running one in the same folder without losing a connection.
//!
//! The newer process asks for the listening sockets and the live snapshot; both processes then hold the same sockets.
//! Only when the newer one says that it is accepting does the older one stop: a connection that waits in a queue at that
//! moment stays in it and is accepted by the newer one. If the newer one dies before it says so, nothing has happened.
//!
//! Packets over a Unix socket, blocking, on threads of their own: it happens once in a process's life.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use meshctl_drivers::gateway::embedded::place::HANDOVER_SOCKET;
use meshctl_drivers::socket_path::SocketPath;
use meshctl_model::snapshot::Snapshot;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::control::Legacy;
use crate::name::Name;

/// The kernel passes at most 253 descriptors at a time.
const AT_ONCE: usize = 128;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Packet {
    /// The newer one: give me what you have.
    Take,
    /// Comes with one descriptor, a file that holds the live snapshot.
    Snapshot,
    /// Comes with one listening socket for each address.
    Sockets(Vec<SocketAddr>),
    /// That was all.
    End,
    /// The newer one: I accept connections; stop.
    Accepting,
    /// I have stopped.
    Stopped,
}

/// What the older process left.
pub(crate) struct Inheritance {
    pub(crate) snapshot: Snapshot,
    pub(crate) sockets: HashMap<SocketAddr, Vec<TcpListener>>,
    from: OwnedFd,
}

/// Asks a running gateway in `dir` for its sockets; `None` if there is none.
///
/// # Errors
/// When one is there but cannot hand over.
pub(crate) fn take(dir: &Path) -> io::Result<Option<Inheritance>> {
    let path = SocketPath::inside(dir, HANDOVER_SOCKET)?;
    let socket = packets()?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_path())?) {
        Ok(()) => {}
        // Nobody there: never was, or ended without tidying up.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    send(&socket, &Packet::Take, &[])?;
    let (mut snapshot, mut sockets) = (None, HashMap::<_, Vec<_>>::new());
    loop {
        let (packet, descriptors) = receive(&socket)?;
        match packet {
            Packet::Snapshot => {
                let descriptor =
                    descriptors.into_iter().next().ok_or_else(|| protocol("no file came with the snapshot"))?;
                let mut file = File::from(descriptor);
                let mut text = Vec::new();
                file.rewind()?;
                file.read_to_end(&mut text)?;
                snapshot = Some(serde_json::from_slice(&text)?);
            }
            Packet::Sockets(addresses) if addresses.len() == descriptors.len() => {
                for (address, descriptor) in addresses.into_iter().zip(descriptors) {
                    sockets.entry(address).or_default().push(TcpListener::from(descriptor));
                }
            }
            Packet::End => break,
            other => return Err(protocol(&format!("{other:?} is not what comes here"))),
        }
    }
    let snapshot = snapshot.ok_or_else(|| protocol("no snapshot came"))?;
    Ok(Some(Inheritance { snapshot, sockets, from: socket }))
}

/// Tells the older process that it may stop, and waits until it has stopped accepting.
///
/// # Errors
/// When it does not answer; it may still be accepting then.
pub(crate) fn accepting(from: &OwnedFd) -> io::Result<()> {
    send(from, &Packet::Accepting, &[])?;
    match receive(from)?.0 {
        Packet::Stopped => Ok(()),
        other => Err(protocol(&format!("{other:?} is not what comes here"))),
    }
}

impl Inheritance {
    /// What is inherited, and the other end, for [`accepting`].
    pub(crate) fn split(self) -> (Snapshot, HashMap<SocketAddr, Vec<TcpListener>>, OwnedFd) {
        (self.snapshot, self.sockets, self.from)
    }
}

/// What the thread that listens for a successor asks of the control thread.
pub(crate) enum Ask {
    Legacy(oneshot::Sender<io::Result<Legacy>>),
    /// Stop accepting, answer, and drain.
    Stop(oneshot::Sender<()>),
}

/// Listens for a successor on a thread of its own, in the place of whoever listened before. Returns the socket's name.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) fn listen(dir: &Path, ask: mpsc::Sender<Ask>) -> io::Result<Name> {
    let (socket, name) = Name::give(dir, HANDOVER_SOCKET, |path| {
        let socket = packets()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, 4)?;
        Ok(socket)
    })?;
    std::thread::Builder::new().name("handover".to_owned()).spawn(move || {
        loop {
            let handed = rustix::net::accept_with(&socket, SocketFlags::CLOEXEC)
                .map_err(io::Error::from)
                .and_then(|successor| hand_over(&successor, &ask));
            match handed {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "handing over to a newer gateway failed; serving on");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            if ask.is_closed() {
                return;
            }
        }
    })?;
    Ok(name)
}

/// True when the successor has taken over.
fn hand_over(successor: &OwnedFd, ask: &mpsc::Sender<Ask>) -> io::Result<bool> {
    let peer = sockopt::socket_peercred(successor)?;
    if peer.uid != rustix::process::getuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user asked for the sockets"));
    }
    sockopt::set_socket_timeout(successor, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let Packet::Take = receive(successor)?.0 else { return Err(protocol("it did not begin with a request")) };
    let gone = |_| io::Error::other("the control thread is gone");
    let (answer, legacy) = oneshot::channel();
    ask.blocking_send(Ask::Legacy(answer)).map_err(|_| io::Error::other("the control thread is gone"))?;
    let Legacy { snapshot, sockets } = legacy.blocking_recv().map_err(gone)??;
    let mut file = File::from(rustix::fs::memfd_create("snapshot", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&snapshot)?)?;
    send(successor, &Packet::Snapshot, &[file.into()])?;
    let (addresses, sockets): (Vec<SocketAddr>, Vec<OwnedFd>) =
        sockets.into_iter().map(|(address, socket)| (address, OwnedFd::from(socket))).unzip();
    for (addresses, sockets) in addresses.chunks(AT_ONCE).zip(sockets.chunks(AT_ONCE)) {
        send(successor, &Packet::Sockets(addresses.to_vec()), sockets)?;
    }
    send(successor, &Packet::End, &[])?;
    let Packet::Accepting = receive(successor)?.0 else { return Err(protocol("it did not say that it accepts")) };
    let (stopped, told) = oneshot::channel();
    ask.blocking_send(Ask::Stop(stopped)).map_err(|_| io::Error::other("the control thread is gone"))?;
    told.blocking_recv().map_err(gone)?;
    // It is accepting whether or not it hears this.
    let _heard = send(successor, &Packet::Stopped, &[]);
    Ok(true)
}

fn packets() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn protocol(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("handover: {why}"))
}

fn send(to: &OwnedFd, packet: &Packet, descriptors: &[OwnedFd]) -> io::Result<()> {
    let text = serde_json::to_vec(packet)?;
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(protocol("too many descriptors at once"));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: &OwnedFd) -> io::Result<(Packet, Vec<OwnedFd>)> {
    let mut text = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "handover: the other process went away"));
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    Ok((serde_json::from_slice(&text[..received.bytes])?, descriptors))
}

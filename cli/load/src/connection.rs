//! One connection: it opens, carries one request at a time, and is opened again after it was closed. It knows nothing of
//! schedules and latencies; what it costs in memory is a few hundred bytes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::poller::{Event, Poller};
use crate::response::{Done, Progress, Reader};

#[derive(Debug)]
enum Link {
    Closed,
    Connecting(TcpStream),
    Open(TcpStream),
}

pub(crate) struct Connection<Job> {
    link: Link,
    /// Counts sockets, so that news of a former one is not taken for news of this one.
    generation: u32,
    /// Has carried an answer since it was opened.
    proven: bool,
    unwritten: Vec<u8>,
    reader: Reader,
    /// What it is doing.
    pub job: Option<Job>,
    /// The body of the answer, where it is wanted.
    pub answer: Vec<u8>,
}

/// What reading gave.
#[derive(Debug)]
pub(crate) enum Received {
    /// The answer has not ended.
    More,
    Answered(Done),
    /// Closed or broken by the other side.
    Ended,
    Malformed,
}

impl<Job> Connection<Job> {
    pub fn new() -> Self {
        let (unwritten, answer) = (Vec::new(), Vec::new());
        Self { link: Link::Closed, generation: 0, proven: false, unwritten, reader: Reader::new(), job: None, answer }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    pub fn is_connecting(&self) -> bool {
        matches!(self.link, Link::Connecting(_))
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.link, Link::Closed)
    }

    /// Worth opening again at once: a server that closes connections before their first answer would be asked for ever.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// Begins to connect, from `source` where there is one. It may be open at the return.
    pub fn connect(&mut self, to: SocketAddr, source: Option<IpAddr>, poller: &Poller, index: u32) -> io::Result<()> {
        self.close();
        let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        let open = match socket.connect(&to.into()) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => false,
            Err(error) => return Err(error),
        };
        poller.add(&socket, u64::from(self.generation) << 32 | u64::from(index))?;
        let stream = TcpStream::from(socket);
        self.link = if open { Link::Open(stream) } else { Link::Connecting(stream) };
        Ok(())
    }

    /// Whether `event` is about the socket that is here now.
    pub fn is_meant(&self, event: &Event) -> bool {
        (event.token >> 32) as u32 == self.generation
    }

    /// The end of connecting, which `event` tells of; `None` where it goes on.
    pub fn connected(&mut self, event: &Event) -> Option<io::Result<()>> {
        let Link::Connecting(stream) = &self.link else { return None };
        if !event.writable && !event.hung_up {
            return None;
        }
        let result = match stream.take_error() {
            Ok(Some(error)) | Err(error) => Err(error),
            Ok(None) => Ok(()),
        };
        self.link = match (std::mem::replace(&mut self.link, Link::Closed), &result) {
            (Link::Connecting(stream), Ok(())) => Link::Open(stream),
            _ => Link::Closed,
        };
        Some(result)
    }

    pub fn close(&mut self) {
        self.link = Link::Closed;
        self.generation = self.generation.wrapping_add(1);
        self.proven = false;
        self.reader = Reader::new();
        self.unwritten = Vec::new();
        self.answer = Vec::new();
    }

    /// Writes `request`; what the socket does not take now goes out by [`Self::flush`].
    pub fn write(&mut self, request: &[u8]) -> io::Result<()> {
        let Link::Open(stream) = &mut self.link else { return Err(io::ErrorKind::NotConnected.into()) };
        let written = write(stream, request)?;
        self.unwritten.extend_from_slice(&request[written..]);
        Ok(())
    }

    /// The socket is writable again.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Link::Open(stream) = &mut self.link
            && !self.unwritten.is_empty()
        {
            let written = write(stream, &self.unwritten)?;
            self.unwritten.drain(..written);
        }
        Ok(())
    }

    /// Reads what is there through `buffer`. `hung_up`: to its end, as no further event will tell of it. Gives the number of
    /// bytes, too.
    pub fn read(&mut self, buffer: &mut [u8], hung_up: bool, to_head: bool, keep: bool) -> (u64, Received) {
        let Link::Open(stream) = &mut self.link else { return (0, Received::More) };
        let mut bytes = 0;
        loop {
            let count = match stream.read(buffer) {
                Ok(0) => {
                    let end = self.reader.end().filter(|_| self.job.is_some());
                    return (bytes, end.map_or(Received::Ended, Received::Answered));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (bytes, Received::More),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return (bytes, Received::Ended),
            };
            bytes += count as u64;
            if self.job.is_none() {
                // Nothing was asked: whatever this is, it would be taken for the next answer.
                return (bytes, Received::Ended);
            }
            match self.reader.feed(&buffer[..count], to_head, keep.then_some(&mut self.answer)) {
                Ok(Progress::Done(done)) => {
                    self.proven = true;
                    // An answer before the request's end: the rest of the request must not go out as another.
                    let close = done.close || hung_up || !self.unwritten.is_empty();
                    return (bytes, Received::Answered(Done { close, ..done }));
                }
                // Edge-triggered: a short read has emptied the socket.
                Ok(Progress::More) if count < buffer.len() && !hung_up => return (bytes, Received::More),
                Ok(Progress::More) => {}
                Err(_) => return (bytes, Received::Malformed),
            }
        }
    }
}

/// As much as the socket takes.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

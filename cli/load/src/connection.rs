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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::poller::monotonic;

    const A_MINUTE: u64 = 60_000_000_000;

    /// Until the connection is open.
    fn open(connection: &mut Connection<()>, to: SocketAddr, source: Option<IpAddr>, poller: &mut Poller) {
        connection.connect(to, source, poller, 0).expect("it begins to connect");
        let mut events = Vec::new();
        while connection.is_connecting() {
            poller.wait(monotonic() + A_MINUTE, &mut events).expect("it waits");
            for event in events.iter().filter(|event| connection.is_meant(event)).collect::<Vec<_>>() {
                connection.connected(event).transpose().expect("it connects");
            }
        }
    }

    #[test]
    fn it_comes_from_the_address_that_it_was_given() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = listener.local_addr().expect("its address");
        let source = IpAddr::from([127, 1, 0, 3]);
        let mut poller = Poller::new().expect("a poller");
        let mut connection = Connection::new();
        open(&mut connection, to, Some(source), &mut poller);
        assert!(connection.is_open());
        assert_eq!(listener.accept().expect("it came").1.ip(), source);
    }

    #[test]
    fn news_of_a_former_socket_is_not_taken_for_news_of_this_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = listener.local_addr().expect("its address");
        let mut poller = Poller::new().expect("a poller");
        let mut connection = Connection::<()>::new();
        open(&mut connection, to, None, &mut poller);
        drop(listener.accept().expect("it came"));
        let mut events = Vec::new();
        while !events.iter().any(|event: &Event| event.hung_up) {
            poller.wait(monotonic() + A_MINUTE, &mut events).expect("it waits");
        }
        assert!(events.iter().all(|event| connection.is_meant(event)));
        open(&mut connection, to, None, &mut poller);
        assert!(!events.iter().any(|event| connection.is_meant(event)));
    }

    #[test]
    fn a_request_larger_than_the_sockets_buffer_goes_out_whole() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let to = listener.local_addr().expect("its address");
        let mut poller = Poller::new().expect("a poller");
        let mut connection = Connection::<()>::new();
        open(&mut connection, to, None, &mut poller);
        let request: Vec<u8> = (0..20_000_000u32).map(|i| i as u8).collect();
        connection.write(&request).expect("the first part");
        assert!(!connection.unwritten.is_empty());
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            listener.accept().and_then(|(mut stream, _)| stream.read_to_end(&mut all)).map(|_| all)
        });
        let mut events = Vec::new();
        while !connection.unwritten.is_empty() {
            poller.wait(monotonic() + A_MINUTE, &mut events).expect("it waits");
            connection.flush().expect("the next part");
        }
        connection.close();
        assert!(reader.join().expect("no panic").expect("all was read") == request);
    }
}

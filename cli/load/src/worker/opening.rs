//! Connections are opened before the schedule begins, so that no request of a full-rate run pays for it.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;

use super::{BEAT, MILLISECOND, PAUSE, Worker};
use crate::poller::Event;

/// At the same time; more would overflow the backlog of the server.
const OPENING: u32 = 128;

impl Worker<'_> {
    /// Opens every connection of the plan. Those that failed are tried again twice, unless none was opened at all.
    pub(super) fn open_all(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let deadline = self.now() + self.timeout.max(5_000 * MILLISECOND);
        for _ in 0..3 {
            let mut missing: Vec<u32> =
                (0..self.senders).filter(|&i| self.connections[i as usize].is_closed()).collect();
            while self.connecting > 0 || !missing.is_empty() {
                while self.connecting < OPENING
                    && let Some(index) = missing.pop()
                {
                    self.connect(index);
                }
                self.turn((self.now() + BEAT).min(deadline), events)?;
                self.gauge.connections.store(u64::from(self.open_count()), Relaxed);
                if self.now() >= deadline || self.control.is_cancelled() {
                    return Ok(());
                }
            }
            if [0, self.senders].contains(&self.open_count()) {
                return Ok(());
            }
            let again = self.now() + PAUSE;
            while self.now() < again {
                self.turn(again, events)?;
            }
        }
        Ok(())
    }

    pub(super) fn open_count(&self) -> u32 {
        self.connections[..self.senders as usize].iter().filter(|connection| connection.is_open()).count() as u32
    }

    /// False where it failed at once.
    pub(super) fn connect(&mut self, index: u32) -> bool {
        let source = match self.sources {
            [] => None,
            sources => Some(sources[index as usize % sources.len()]),
        };
        let connection = &mut self.connections[index as usize];
        match connection.connect(self.plan.address, source, &self.poller, index) {
            Ok(()) => self.connecting += u32::from(connection.is_connecting()),
            Err(error) => {
                self.note(error);
                return false;
            }
        }
        true
    }

    pub(super) fn note(&mut self, error: io::Error) {
        let ours = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
        if ours.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) {
            self.recorder.refused_here += 1;
        }
        self.gauge.set_problem(error);
    }
}

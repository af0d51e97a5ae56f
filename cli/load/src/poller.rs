//! Readiness of many sockets and the time, for one thread.
//!
//! epoll and a timer descriptor directly, because the timers of event libraries are a millisecond coarse: a tenth of a
//! millisecond of sleep too long would be in every latency that is measured. Sockets are watched edge-triggered, once for their
//! whole life, so that a request costs one write, one read, and a share of one wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime, timerfd_create,
    timerfd_settime,
};

/// Small enough that the schedule is looked at between them.
const EVENTS: usize = 256;
const TIMER: u64 = u64::MAX;

/// Something happened to the socket that was added with `token`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
    /// The other side will send nothing more, or the connection broke.
    pub hung_up: bool,
}

pub(crate) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer goes off; 0 where it is not set.
    armed: u64,
    ready: Vec<epoll::Event>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, timer, armed: 0, ready: Vec::with_capacity(EVENTS) })
    }

    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Sleeps until something is ready, at most until `until` (see [`monotonic`]); moves what is ready to `events`.
    pub fn wait(&mut self, until: u64, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = if until <= monotonic() {
            Some(&now)
        } else {
            self.arm(until)?;
            None
        };
        self.ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.ready {
            let token = event.data.u64();
            if token == TIMER {
                self.armed = 0;
                continue;
            }
            let flags = event.flags;
            events.push(Event {
                token,
                readable: flags.contains(EventFlags::IN),
                writable: flags.contains(EventFlags::OUT),
                hung_up: flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
            });
        }
        Ok(())
    }

    fn arm(&mut self, at: u64) -> io::Result<()> {
        if self.armed == at {
            return Ok(());
        }
        let value = Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        self.armed = at;
        Ok(())
    }
}

/// Nanoseconds since the machine started.
pub(crate) fn monotonic() -> u64 {
    nanos(ClockId::Monotonic)
}

/// What a thread has had of the processors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a processor.
    pub busy: u64,
    /// Nanoseconds ready to run, and not running.
    pub waited: u64,
}

impl Usage {
    /// Of the calling thread so far.
    pub fn of_this_thread() -> Self {
        // Kernels without scheduling statistics do not say: then only the lag of the schedule tells.
        let waited = std::fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0);
        Self { busy: nanos(ClockId::ThreadCPUTime), waited }
    }

    pub fn since(self, earlier: Self) -> Self {
        Self { busy: self.busy.saturating_sub(earlier.busy), waited: self.waited.saturating_sub(earlier.waited) }
    }
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

//! The loop that owns everything that is not pure: the terminal, the daemon's streams, the clock, signals. It draws only when
//! something has happened, and then not more often than an eye can follow.

use std::io::{IsTerminal, stdin, stdout};
use std::time::Duration;

use crossterm::event::{Event, EventStream};
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_model::exit;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::effects::{Effect, follow_log, perform, sense, watch};
use super::model::Model;
use super::msg::Msg;
use super::terminal::Screen;
use super::update::update;
use super::view::{Theme, view};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::session::Session;

/// Between two frames at least.
const FRAME: Duration = Duration::from_millis(33);
/// Messages that may wait to be taken in.
const WAITING: usize = 1024;

/// Shows the system of `session` until it is left.
///
/// # Errors
/// Where there is no terminal, or no daemon to begin with.
pub(crate) async fn run(session: &Session) -> Outcome {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        return Err(Failure::usage("`meshctl tui` needs a terminal to draw on and to be typed at")
            .hint("`meshctl status --watch` shows the system in a pipe, with -o json a line for each change"));
    }
    let client = session.daemon().await?;
    let failed = |error: std::io::Error| Failure::file("the terminal does not work", &error);
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let theme = Theme {
        color: anstream::AutoStream::choice(&stdout()) != anstream::ColorChoice::Never,
        unicode: output::speaks_unicode() && !is_dumb,
    };
    let screen = Screen::enter().map_err(failed)?;
    let size = screen.size().map_err(failed)?;
    let runtime = Runtime::new(client, Model::new(Timestamp::now(), size), theme, screen);
    runtime.run().await.map_err(failed)
}

struct Runtime {
    client: Client,
    model: Model,
    theme: Theme,
    screen: Screen,
    to: mpsc::Sender<Msg>,
    from: mpsc::Receiver<Msg>,
    tasks: JoinSet<()>,
    log: Option<AbortHandle>,
    is_dirty: bool,
}

impl Runtime {
    fn new(client: Client, model: Model, theme: Theme, screen: Screen) -> Self {
        let (to, from) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(client.clone(), to.clone()));
        tasks.spawn(sense(client.clone(), to.clone()));
        Self { client, model, theme, screen, to, from, tasks, log: None, is_dirty: true }
    }

    async fn run(mut self) -> std::io::Result<u8> {
        let mut keys = EventStream::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut stop = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
        let mut go_on = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let mut clock = interval(Duration::from_secs(1));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_frame = Instant::now();
        loop {
            let goes_on = tokio::select! {
                event = keys.next() => match event {
                    Some(Ok(event)) => self.take_event(event)?,
                    // The terminal is gone.
                    Some(Err(_)) | None => false,
                },
                Some(message) = self.from.recv() => self.take_all(message)?,
                _ = clock.tick() => self.take(Msg::Tick(Timestamp::now()))?,
                Some(ended) = self.tasks.join_next() => {
                    if let Err(error) = ended
                        && error.is_panic()
                    {
                        std::panic::resume_unwind(error.into_panic());
                    }
                    true
                }
                () = sleep_until(next_frame), if self.is_dirty => {
                    self.draw()?;
                    next_frame = Instant::now() + FRAME;
                    true
                }
                _ = terminate.recv() => false,
                _ = hang_up.recv() => false,
                _ = interrupt.recv() => false,
                _ = stop.recv() => {
                    self.screen.suspend()?;
                    self.is_dirty = true;
                    true
                }
                // Somebody stopped this process without asking, and its shell has used the terminal since.
                _ = go_on.recv() => {
                    self.screen.resume()?;
                    self.is_dirty = true;
                    true
                }
            };
            if !goes_on {
                return Ok(exit::OK);
            }
        }
    }

    fn draw(&mut self) -> std::io::Result<()> {
        self.is_dirty = false;
        self.model.settle();
        let Self { model, theme, screen, .. } = self;
        screen.draw(|frame| view(model, *theme, frame))
    }

    /// What has come is taken in before it is drawn: a hundred services change at once.
    fn take_all(&mut self, first: Msg) -> std::io::Result<bool> {
        let mut goes_on = self.take(first)?;
        while goes_on && let Some(Some(message)) = self.from.recv().now_or_never() {
            goes_on = self.take(message)?;
        }
        Ok(goes_on)
    }

    fn take_event(&mut self, event: Event) -> std::io::Result<bool> {
        match event {
            Event::Key(key) => self.take(Msg::Key(key)),
            Event::Paste(text) => self.take(Msg::Paste(text)),
            Event::Resize(columns, rows) => self.take(Msg::Resize(columns, rows)),
            Event::Mouse(_) | Event::FocusGained | Event::FocusLost => Ok(true),
        }
    }

    /// False where it is left.
    fn take(&mut self, message: Msg) -> std::io::Result<bool> {
        self.is_dirty = true;
        for effect in update(&mut self.model, message) {
            match effect {
                Effect::Quit => return Ok(false),
                Effect::Redraw => self.screen.forget()?,
                Effect::Suspend => self.screen.suspend()?,
                Effect::LeaveLog => self.leave_log(),
                Effect::FollowLog { screen, service, since } => {
                    self.leave_log();
                    let log = follow_log(self.client.clone(), screen, service, since, self.to.clone());
                    self.log = Some(self.tasks.spawn(log));
                }
                effect => {
                    let (client, to) = (self.client.clone(), self.to.clone());
                    self.tasks.spawn(async move {
                        if let Some(message) = perform(client, effect).await {
                            let _ = to.send(message).await;
                        }
                    });
                }
            }
        }
        Ok(true)
    }

    fn leave_log(&mut self) {
        if let Some(log) = self.log.take() {
            log.abort();
        }
    }
}

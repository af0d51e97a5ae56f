//! The terminal while the screen is up, and as it was before, whatever happens in between.

use std::io::{self, Stdout, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use crossterm::execute;
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use rustix::process::{Signal, getpid, kill_process};

/// Whether there is something to put back: a panic may come at any time.
static IS_UP: AtomicBool = AtomicBool::new(false);

/// The screen. Dropping it puts the terminal back.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// # Errors
    /// When the terminal does not answer.
    pub(super) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        // What a panic has to say would be lost with the alternate screen.
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |why| {
                restore();
                before(why);
            }));
        });
        set_up()?;
        let terminal = Terminal::new(CrosstermBackend::new(stdout()));
        terminal.map(|terminal| Self { terminal }).inspect_err(|_| restore())
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> io::Result<(u16, u16)> {
        self.terminal.size().map(|size| (size.width, size.height))
    }

    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// The next frame draws everything.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        // `Terminal::clear` asks the terminal where the cursor is, and the answer would be taken for keys.
        execute!(stdout(), Clear(ClearType::All))?;
        self.terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(())
    }

    /// Gives the terminal to the shell, and takes it again when the shell brings the program back.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        restore();
        kill_process(getpid(), Signal::STOP)?;
        self.resume()
    }

    /// Takes the terminal again, after this process was stopped without being asked.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        // The shell may have set it as it likes; only a mode that was left is entered again.
        disable_raw_mode()?;
        set_up()?;
        self.forget()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn set_up() -> io::Result<()> {
    enable_raw_mode()?;
    IS_UP.store(true, Ordering::SeqCst);
    // A pasted text is one thing: a line end in it confirms nothing.
    execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste).inspect_err(|_| restore())
}

/// Once, whoever comes first. A terminal that is gone cannot be put back, and nobody could be told.
fn restore() {
    if IS_UP.swap(false, Ordering::SeqCst) {
        let _ = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

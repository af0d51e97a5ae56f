//! A terminal with a program in it: what it shows, and what is typed at it.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use portable_pty::{Child, CommandBuilder, ExitStatus, PtyPair, PtySize, native_pty_system};
use vt100::Parser;

use crate::{System, process, wait_until};

/// Dropping it ends the program.
pub struct Screen {
    pair: PtyPair,
    child: Box<dyn Child + Send + Sync>,
    keyboard: Box<dyn Write + Send>,
    parser: Arc<Mutex<Parser>>,
    /// How the terminal was set before the program had it.
    settings: String,
}

fn size(columns: u16, rows: u16) -> PtySize {
    PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }
}

impl Screen {
    /// `meshctl ARGS` for `system`, in a terminal of that many columns and rows.
    pub fn start(system: &System, args: &[&str], (columns, rows): (u16, u16)) -> Self {
        let pair = native_pty_system().openpty(size(columns, rows)).expect("a terminal");
        let plain: Command = system.command(args);
        let mut command = CommandBuilder::new(plain.get_program());
        command.args(plain.get_args());
        command.cwd(system.folder());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            }
        }
        command.env("TERM", "xterm-256color");
        command.env("LC_ALL", "C.UTF-8");
        let settings = settings(&pair);
        let child = pair.slave.spawn_command(command).expect("it starts");
        let keyboard = pair.master.take_writer().expect("a keyboard");
        let mut output = pair.master.try_clone_reader().expect("what it shows");
        let parser = Arc::new(Mutex::new(Parser::new(rows, columns, 0)));
        let shown = Arc::clone(&parser);
        std::thread::spawn(move || {
            let mut bytes = [0; 16 << 10];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                lock(&shown).process(&bytes[..count]);
            }
        });
        Self { pair, child, keyboard, parser, settings }
    }

    pub fn pid(&self) -> u32 {
        self.child.process_id().expect("it was started")
    }

    /// What stands on it, a line each.
    pub fn text(&self) -> String {
        lock(&self.parser).screen().contents()
    }

    /// Whether the program has it for itself.
    pub fn is_taken(&self) -> bool {
        lock(&self.parser).screen().alternate_screen()
    }

    /// Whether nothing is left of the program: its screen, its settings, a hidden cursor, bracketed paste.
    pub fn is_as_before(&self) -> bool {
        let parser = lock(&self.parser);
        let screen = parser.screen();
        !screen.alternate_screen()
            && !screen.hide_cursor()
            && !screen.bracketed_paste()
            && settings(&self.pair) == self.settings
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).and_then(|()| self.keyboard.flush()).expect("typed");
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        lock(&self.parser).screen_mut().set_size(rows, columns);
        self.pair.master.resize(size(columns, rows)).expect("resized");
    }

    /// Waits until it shows every one of `texts`.
    #[track_caller]
    pub fn shows(&self, texts: &[&str]) {
        self.wait(&format!("{texts:?}"), |text| texts.iter().all(|wanted| text.contains(wanted)));
    }

    #[track_caller]
    pub fn wait(&self, what: &str, is: impl Fn(&str) -> bool) {
        let mut last = String::new();
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, || {
                last = self.text();
                is(&last)
            });
        }));
        assert!(waited.is_ok(), "waited in vain for {what}; the screen shows\n{last}");
    }

    /// Waits until the program has ended.
    pub fn end(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_until("the program to end", || {
            ended = self.child.try_wait().expect("it can be asked");
            ended.is_some()
        });
        ended.expect("it ended")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            process::kill(self.pid());
            let _ = self.child.wait();
        }
    }
}

fn settings(pair: &PtyPair) -> String {
    format!("{:?}", pair.master.get_termios().expect("a terminal has settings"))
}

fn lock(parser: &Mutex<Parser>) -> MutexGuard<'_, Parser> {
    parser.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

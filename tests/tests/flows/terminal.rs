//! A terminal of 80 by 24: progress is redrawn in place, and whatever happens the terminal is left as it was.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use meshctl_tests::{System, installed, process, skip, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::HELLO;

/// `script` in the background. What is written to its standard input is typed; what the terminal shows is in the file
/// `screen`, and what `stty` says of the terminal before and afterwards in `before` and `after`.
fn in_terminal(system: &System, args: &str) -> Child {
    // Ctrl-C reaches the shell too, and a shell without a trap may end before it has written the status.
    let inner = format!(
        "trap : INT; stty cols 80 rows 24; stty -g >before; '{}' {args}; echo $? >status; stty -g >after",
        system.binary().display()
    );
    let mut command = Command::new("script");
    let plain = system.command(&[]);
    command
        .args(["-qfec", &inner, "screen"])
        .current_dir(system.folder())
        .env("TERM", "xterm-256color")
        .env("SHELL", "/bin/sh");
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("script runs")
}

fn read(system: &System, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(system.folder().join(name)).unwrap_or_default()).into_owned()
}

/// What stands on a screen of 80 columns after `text`: understands what progress may use, and refuses the rest.
fn screen(text: &str) -> Vec<String> {
    let (mut lines, mut row, mut column): (Vec<Vec<char>>, usize, usize) = (vec![Vec::new()], 0, 0);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                assert_eq!(rest.next(), Some('['), "an escape other than CSI in {text:?}");
                let mut sequence = String::new();
                while !sequence.ends_with(|c: char| c.is_ascii_alphabetic()) {
                    sequence.push(rest.next().expect("the rest of an escape"));
                }
                let (number, verb) = sequence.split_at(sequence.len() - 1);
                let count = number.parse().unwrap_or(1);
                match verb {
                    "A" => row = row.saturating_sub(count),
                    "B" => row += count,
                    "G" => column = count - 1,
                    "K" if number == "2" => lines[row].clear(),
                    "K" => lines[row].truncate(column),
                    "J" => {
                        lines.truncate(row + 1);
                        lines[row].truncate(column);
                    }
                    "m" | "h" | "l" => {}
                    _ => panic!("CSI {sequence} in {text:?}"),
                }
            }
            c => {
                // Only the character after the last column goes to the next line.
                if column == 80 {
                    (row, column) = (row + 1, 0);
                    lines.resize(lines.len().max(row + 1), Vec::new());
                }
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
        if lines.len() <= row {
            lines.resize(row + 1, Vec::new());
        }
    }
    lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

/// What `script` itself writes around the session is none of ours.
fn shown(system: &System) -> Vec<String> {
    let text = read(system, "screen");
    let lines = screen(text.split_once('\n').map_or("", |(_, rest)| rest));
    lines.into_iter().filter(|line| !line.starts_with("Script done on")).collect()
}

#[test]
fn progress_is_shown_and_leaves_only_what_is_worth_keeping() {
    if !installed("script") {
        skip!("script (util-linux) is not installed");
    }
    let system = System::new();
    let file = system.file(HELLO);
    let ended = in_terminal(&system, &format!("apply '{file}' --yes")).wait().expect("the end of script");
    assert!(ended.success(), "{:#?}", shown(&system));
    let (lines, raw) = (shown(&system), read(&system, "screen"));
    assert!(raw.contains("\x1b["), "nothing was drawn: {raw:?}");
    assert!(lines.iter().any(|line| line.contains("service/hello created")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("curl")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("starting")), "progress is left on the screen: {lines:#?}");
    assert!(raw.matches("\x1b[?25l").count() <= raw.matches("\x1b[?25h").count(), "the cursor stays hidden: {raw:?}");
}

#[test]
fn ctrl_c_leaves_the_terminal_as_it_was() {
    if !installed("script") {
        skip!("script (util-linux) is not installed");
    }
    let system = System::new();
    let unready = HELLO.replace("builtin: hello,", "builtin: hello, env: { KNOBS: '{\"notReady\": true}' },");
    let file = system.file(&unready);
    let mut session = in_terminal(&system, &format!("apply '{file}' --yes"));
    wait_until("progress to name what is waited for", || read(&system, "screen").contains("503"));
    session.stdin.as_mut().expect("the keyboard").write_all(b"\x03").expect("typed");
    let _status = session.wait().expect("the end of script");
    let lines = shown(&system);
    assert!(lines.iter().any(|line| line.contains("detached")), "{lines:#?}");
    assert_eq!(read(&system, "status").trim(), "130", "{lines:#?}");
    let (before, after) = (read(&system, "before"), read(&system, "after"));
    assert!(!before.is_empty());
    assert_eq!(before, after, "the terminal's settings");
    let raw = read(&system, "screen");
    assert!(raw.matches("\x1b[?25l").count() <= raw.matches("\x1b[?25h").count(), "the cursor stays hidden: {raw:?}");

    let daemon = system.daemon_pid().expect("the daemon goes on");
    for instance in system.instances("hello") {
        system.turn_knobs(&instance, &json!({}));
    }
    wait_until("the system to become ready by itself", || system.status()["ready"] == true);
    // The daemon is not the terminal's: its end is none of the daemon's business.
    process::signal(daemon, Signal::HUP);
    assert_eq!(system.status()["ready"], true);
    assert_eq!(system.daemon_pid(), Some(daemon));
}

#[test]
fn top_is_drawn_in_place_and_interrupted_cleanly() {
    if !installed("script") {
        skip!("script (util-linux) is not installed");
    }
    let system = System::new();
    system.apply(HELLO);
    let mut session = in_terminal(&system, "--color never top");
    let frames = || read(&system, "screen").matches("\x1b[H").count();
    wait_until("three frames", || frames() >= 3);
    session.stdin.as_mut().expect("the keyboard").write_all(b"\x03").expect("typed");
    let _status = session.wait().expect("the end of script");
    let raw = read(&system, "screen");
    assert_eq!(raw.matches("\x1b[2J").count(), 1, "only the first frame clears the screen: {raw:?}");
    assert!(raw.contains("SERVICE") && raw.contains("hello") && raw.contains("REQ/S"), "{raw:?}");
    assert!(!raw.contains("\x1b[1m") && !raw.contains("\x1b[3"), "colours: {raw:?}");
    assert_eq!(read(&system, "status").trim(), "130");
    assert_eq!(read(&system, "before"), read(&system, "after"), "the terminal's settings");
}

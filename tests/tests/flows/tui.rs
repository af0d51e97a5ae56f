//! The screen as an operator has it: the real program in a terminal, over a real system.

use std::fs;

use meshctl_tests::process;
use meshctl_tests::{Screen, System, repository, wait_until};
use rustix::process::Signal;

/// The smallest system, up and ready.
fn hello() -> System {
    let system = System::new();
    let port = system.port(0).to_string();
    let system = system.with("HELLO_PORT", &port);
    apply(&system);
    system
}

fn apply(system: &System) {
    let file = repository().join("manifests/topologies/hello.yaml");
    system.run(&["apply", &file.to_string_lossy(), "--yes"]).expect(0);
}

/// The screen once it is live.
fn open(system: &System, size: (u16, u16)) -> Screen {
    let screen = Screen::start(system, &["tui"], size);
    screen.shows(&["hello", "2/2 instances", "live"]);
    screen
}

#[test]
fn a_round_through_the_screen_leaves_the_terminal_as_it_was() {
    let system = hello();
    let mut screen = open(&system, (80, 24));
    assert!(screen.is_taken() && !screen.is_as_before());
    screen.press(":svc\r");
    screen.shows(&["overview › services", "READY", "2/2"]);
    screen.press("\r");
    screen.shows(&["instances of hello", "hello-1", "hello-2"]);
    screen.press("/hello-2\r");
    screen.wait("the other instance to be filtered out", |text| text.contains("1 of 2") && !text.contains("hello-1"));
    screen.press("/\x15nothing like it\r");
    screen.shows(&["nothing here contains"]);
    screen.press("\x1b");
    screen.shows(&["hello-1"]);
    screen.press("d");
    screen.shows(&["instance/hello-1", "Address:"]);
    screen.press("?");
    screen.shows(&["ANYWHERE", "ctrl-z", "take the filter away"]);
    screen.press("?\x1b");
    screen.wait("the help to be left", |text| !text.contains("ANYWHERE"));
    screen.press(":nothing\r");
    screen.shows(&["there is no view"]);
    screen.press("\x1b:logs hello\r");
    screen.shows(&["logs of hello", "hello-2"]);
    screen.press("q");
    assert!(screen.end().success());
    wait_until("the terminal to be as it was", || screen.is_as_before());
}

#[test]
fn a_scale_shows_its_radius_its_command_and_its_outcome() {
    let system = hello();
    let mut screen = open(&system, (120, 40));
    screen.press(":svc\rS");
    screen.shows(&["Scale hello, which has 2", "$ meshctl scale hello=2", "nothing would change"]);
    screen.press("\x7f3\t");
    screen.shows(&["scale service/hello", "$ meshctl scale hello=3"]);
    screen.press("\r");
    screen.shows(&["say why"]);
    screen.press("more of it\r");
    screen.shows(&["done: revision 2 is applied", "--reason 'more of it'"]);
    assert_eq!(system.service("hello")["ready"], 3);
    // Esc and ctrl-r, typed at once.
    screen.press("\x1b\x12");
    screen.shows(&["Restart hello", "$ meshctl restart hello"]);
    screen.press("\x1b");
    screen.wait("the dialog to be left", |text| !text.contains("Restart hello"));
    assert_eq!(system.status()["revision"], 2, "what is not confirmed is not done");
}

#[test]
fn a_breaker_is_tripped_and_reset_and_what_is_shown_is_so() {
    let system = hello();
    assert_eq!(system.get("/").status, 200);
    let mut screen = open(&system, (120, 40));
    screen.press(":cb\r");
    screen.shows(&["gateway:hello", "closed", "1/1"]);
    screen.press("t");
    screen.shows(&["Trip the breaker of gateway:hello", "callers get 503", "breaker trip gateway:hello --ttl 10m"]);
    screen.press("a test\r");
    screen.shows(&["done: gateway:hello is forcedOpen: acknowledged 1/1"]);
    assert_eq!(system.get("/").status, 503);
    screen.press("\x1b");
    screen.shows(&["forcedOpen", "a test"]);
    screen.press(":overview\r");
    screen.shows(&["WRONG NOW (1)", "breaker/gateway:hello"]);
    screen.press("\rR");
    screen.shows(&["Reset the breaker of gateway:hello"]);
    screen.press("enough of it\r");
    screen.shows(&["done: gateway:hello is closed"]);
    assert_eq!(system.get("/").status, 200);
}

#[test]
fn a_daemon_that_was_killed_leaves_what_is_known_and_comes_back() {
    let system = hello();
    let mut screen = open(&system, (80, 24));
    screen.press(":inst\r");
    screen.shows(&["hello-1", "hello-2"]);
    system.kill_daemon();
    screen.shows(&["stale since", "hello-1", "hello-2"]);
    screen.press("/hello-1\r");
    screen.wait("keys to be heard", |text| text.contains("1 of 2"));
    apply(&system);
    screen.wait("what is live", |text| text.contains("● live") && !text.contains("stale"));
    screen.shows(&["hello-1"]);
    // It is told again what happens from now on.
    system.run(&["scale", "hello=3", "--yes"]).expect(0);
    screen.press("\x1b");
    screen.shows(&["hello-3"]);
}

#[test]
fn a_storm_of_sizes_ends_in_the_last_one() {
    let system = hello();
    let screen = open(&system, (80, 24));
    for at in 0..200u16 {
        screen.resize(20 + at * 37 % 180, 2 + at * 13 % 60);
    }
    screen.resize(200, 60);
    screen.wait("a screen of that size", |text| {
        let lines: Vec<&str> = text.lines().collect();
        lines.len() == 60 && lines[0].trim_end().ends_with("live") && lines[59].contains("q quit")
    });
    screen.resize(80, 24);
    screen.wait("the smaller one", |text| {
        let lines: Vec<&str> = text.lines().collect();
        lines.len() == 24 && lines[0].chars().count() == 80 && lines[23].contains("q quit")
    });
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    let system = hello();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut screen = open(&system, (80, 24));
        process::signal(screen.pid(), signal);
        assert!(screen.end().success(), "{signal:?}");
        wait_until("the terminal to be as it was", || screen.is_as_before());
    }
    let mut screen = open(&system, (80, 24));
    screen.press("\x03");
    assert!(screen.end().success(), "ctrl-c");
    wait_until("the terminal to be as it was", || screen.is_as_before());
}

#[test]
fn ctrl_z_gives_the_terminal_to_the_shell_until_it_is_continued() {
    let system = hello();
    let mut screen = open(&system, (80, 24));
    screen.press(":ev\r");
    screen.shows(&["overview › events"]);
    let is_stopped = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    screen.press("\x1a");
    wait_until("it to stop", || is_stopped(screen.pid()));
    wait_until("the terminal to be as it was", || screen.is_as_before());
    process::signal(screen.pid(), Signal::CONT);
    screen.shows(&["overview › events", "revision.applied", "live"]);
    assert!(screen.is_taken());
    screen.press("q");
    assert!(screen.end().success());
    wait_until("the terminal to be as it was", || screen.is_as_before());
}

#[test]
fn without_a_terminal_it_says_what_to_use_instead() {
    let system = System::new();
    let ran = system.run(&["tui"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("meshctl status --watch"), "{}", ran.stderr);
}

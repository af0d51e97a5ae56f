//! What the README says, done: each line of its shell blocks, in their order, as somebody would paste them.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use meshctl_tests::{System, installed, repository, skip};

#[test]
fn the_five_minutes() {
    paste("Five minutes", &[]);
}

#[test]
fn the_messages() {
    paste("Messages", &["meshctl apply manifests/topologies/shop.yaml"]);
}

/// Runs `first`, then every command of the section, each of which must end as its comment says: with 0 where it says nothing.
fn paste(section: &str, first: &[&str]) {
    if !installed("curl") {
        skip!("curl is not installed");
    }
    let system = System::new();
    let folder = system.folder();
    symlink(repository().join("manifests"), folder.join("manifests")).expect("a link");
    fs::write(folder.join("broken.yaml"), "services: { a: { bultin: hello } }\n").expect("a file");
    fs::create_dir(folder.join("bin")).expect("a folder");
    symlink(system.binary(), folder.join("bin/meshctl")).expect("a link");
    let readme = fs::read_to_string(repository().join("README.md")).expect("the README");
    let lines: Vec<&str> = first.iter().copied().chain(commands(&readme, section)).collect();
    assert!(lines.len() > first.len() + 5, "{section} has no commands");

    let ended = folder.join("ended");
    let mut script = String::new();
    for (number, line) in lines.iter().enumerate() {
        let line = here(line, system.port(0));
        script.push_str(&format!("{line}\nprintf '%s %s\\n' {number} $? >>'{}'\n", ended.display()));
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut bash = Command::new("bash");
    bash.args(["-c", &script])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", folder.join("bin").display()))
        .env("MESHCTL_STATE_DIR", system.state_dir())
        .env("SHOP_PORT", system.port(0).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ran = system.run_command(bash);
    let ended = fs::read_to_string(ended).expect("the statuses");
    let ended: Vec<(usize, &str)> = ended
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(number, status)| Some((number.parse().ok()?, status)))
        .collect();
    assert_eq!(ended.len(), lines.len(), "{}\n{}", ran.stdout, ran.stderr);
    for (number, status) in ended {
        let (line, expected) = (lines[number], expected(lines[number]));
        assert!(
            expected.contains(&status),
            "`{line}` ended with {status}, not with {expected:?}\n{}\n{}",
            ran.stdout,
            ran.stderr
        );
    }
}

/// The lines of the shell blocks of one section that are no comments.
fn commands<'a>(readme: &'a str, section: &str) -> Vec<&'a str> {
    let title = format!("## {section}");
    let mut found = Vec::new();
    let (mut inside, mut shell) = (false, false);
    for line in readme.lines() {
        match line {
            "```sh" => shell = true,
            "```" => shell = false,
            line if line.starts_with("## ") => inside = line == title,
            line if inside && shell && !line.trim().is_empty() && !line.starts_with('#') => found.push(line),
            _ => {}
        }
    }
    found
}

/// The same for this machine: on a port of its own, with less load, and what goes on until Ctrl-C for two seconds only.
fn here(line: &str, port: u16) -> String {
    let line = line.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}")).replace("-c 10k", "-c 100");
    if line.contains(" -f ") { format!("timeout -s INT 2 {line}") } else { line }
}

/// The statuses with which a line may end.
fn expected(line: &str) -> Vec<&str> {
    if let Some((_, said)) = line.split_once("exit status ") {
        return said.split([',', ':', ';', ' ', ')']).next().into_iter().collect();
    }
    match line {
        // A screen needs a terminal; the test of the screen has one.
        line if line.starts_with("meshctl tui") => vec!["2"],
        // Whether objectives are met, and whether the generator keeps up, is up to the machine.
        line if line.starts_with("meshctl loadtest") => vec!["0", "98", "99"],
        line if line.contains(" -f ") => vec!["0", "124", "130"],
        _ => vec!["0"],
    }
}

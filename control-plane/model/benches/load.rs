//! The worst that a megabyte can cost: time and peak memory of [`load`] on friendly and on hostile texts.
//!
//! Beside the best and the worst of some runs stands the time on the processor, which others on the machine do not stretch.
//!
//! `cargo bench -p meshctl-model --bench load` runs every case in a process of its own, so that one peak does not hide
//! another. The target is 50 ms and 64 MB.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use meshctl_model::load::{SourceFile, Sources, load};

const MEGABYTE: usize = 1_000_000;
const RUNS: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--case") {
        return measure(&arguments[at + 1]);
    }
    println!("{:<34} {:>9} {:>9} {:>9} {:>9} {:>9}  answer", "case", "text", "processor", "best", "worst", "peak");
    for (name, _) in CASES {
        let executable = std::env::current_exe().expect("the benchmark knows its own path");
        let status = Command::new(executable).args(["--case", name]).status().expect("a case starts");
        assert!(status.success(), "{name} ended with {status}");
    }
}

fn measure(name: &str) {
    let (_, text) = CASES.iter().find(|(case, _)| *case == name).expect("a case of that name");
    let file = SourceFile { name: "a.yaml".into(), folder: "/srv".into(), text: text() };
    let size = file.text.len();
    let sources = Sources { files: vec![file], ..Sources::default() };
    let (mut best, mut worst) = (f64::MAX, 0.0);
    let mut answer = String::new();
    let before = on_processor();
    for _ in 0..RUNS {
        let start = Instant::now();
        let loaded = load(&sources);
        let took = start.elapsed().as_secs_f64() * 1e3;
        (best, worst) = (f64::min(best, took), f64::max(worst, took));
        answer = match (loaded.topology, loaded.findings.as_slice()) {
            (Some(topology), []) => format!("{} services", topology.services.len()),
            (_, findings) => format!("{} findings, first {}", findings.len(), findings.first().map_or("", |f| &f.code)),
        };
    }
    let own = (on_processor() - before) / RUNS as f64;
    println!(
        "{name:<34} {:>6} kB {own:>6.1} ms {best:>6.1} ms {worst:>6.1} ms {:>6.1} MB  {answer}",
        size / 1000,
        peak()
    );
}

/// Milliseconds that this process has spent on a processor.
fn on_processor() -> f64 {
    let spent = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    spent.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
}

/// The most memory that this process ever had, in megabytes.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1e3
}

type Case = (&'static str, fn() -> String);

const CASES: &[Case] = &[
    ("nothing", String::new),
    ("1,000 services", || shop(1_000)),
    ("4,000 services", || shop(4_000)),
    ("more services than are taken", || shop(4_100)),
    ("services that call one another", || {
        fill("services:\n", |at| format!("  s{at}: {{builtin: hello, calls: {{s{}: }}}}\n", at / 2), 4_000)
    }),
    ("routes with retries", || {
        fill(
            "services: {a: {builtin: hello}}\nroutes:\n",
            |at| format!("- {{path: /p{at}, to: a, retry: {{attempts: 1}}}}\n"),
            7_000,
        )
    }),
    ("a long chain of calls", || {
        fill("services:\n", |at| format!("  s{at}: {{builtin: hello, calls: {{s{}: }}}}\n", at + 1), 4_000)
    }),
    ("a circle of calls", || {
        fill("services:\n", |at| format!("  s{at}: {{builtin: hello, calls: {{s{}: }}}}\n", (at + 1) % 4_000), 5_000)
    }),
    ("unknown services", || {
        fill("services: {a: {builtin: hello}}\nroutes:\n", |at| format!("- {{path: /p{at}, to: b{at}}}\n"), 12_500)
    }),
    ("unknown keys", || fill("", |at| format!("abcdefghijk{at}: x\n"), usize::MAX)),
    ("long unknown keys", || fill("", |at| format!("{}{at}: x\n", "k".repeat(200)), usize::MAX)),
    ("one service that calls all", || {
        let callee = |at| format!("  s{at}: {{builtin: hello}}\n");
        let call = |at| format!("      s{at}:\n");
        format!(
            "services:\n{}  a:\n    builtin: hello\n    calls:\n{}",
            fill("", callee, 3_999),
            fill("", call, 21_000)
        )
    }),
    ("unset variables", || fill("services:\n", |at| format!("  a{at}: {{builtin: \"${{X{at}}}\"}}\n"), 18_000)),
    ("unset variables in one scalar", || format!("name: \"{}\"", "${A} ".repeat(60_000))),
    ("unset variables with escapes", || format!("name: \"{}\"", "\\x24{A}".repeat(60_000))),
    ("variables without an end", || fill("a:\n", |_| "- \"${\"\n".into(), 60_000)),
    ("variables beyond ASCII on one line", || fill("labels: {", |at| format!("ä{at}: \"ü${{X{at}}}\","), 40_000)),
    ("a dense list", || fill("a: [", |_| "1,".into(), usize::MAX)),
    ("a dense list inside of another", || fill("a: [[", |_| "1,".into(), usize::MAX)),
    ("a dense list of lines", || fill("a:\n", |_| "- 1\n".into(), usize::MAX)),
    ("lists of nothing", || fill("a: [[", |_| "[],".into(), usize::MAX)),
    ("maps in lists", || fill("a:\n", |_| "- a: {b: {}}\n".into(), usize::MAX)),
    ("nested lists", || "[".repeat(MEGABYTE)),
    ("nested block lists", || "- ".repeat(MEGABYTE / 2)),
    ("nested maps", || fill("", |_| "{a: ".into(), usize::MAX)),
    ("nested explicit keys", || "? ".repeat(MEGABYTE / 2)),
    ("explicit keys in a list", || format!("[[{}", "? ".repeat(MEGABYTE / 2))),
    ("anchors in a list", || format!("[[{}", "&a ".repeat(MEGABYTE / 3))),
    ("colons in a list", || format!("[[{}", ": ".repeat(MEGABYTE / 2))),
    ("quotes in a list", || format!("[[{}", "''".repeat(MEGABYTE / 2))),
    ("words on lines in a list", || format!("[[{}", "a\n".repeat(MEGABYTE / 2))),
    ("quoted words in a list", || format!("[[{}", "\"\" ".repeat(MEGABYTE / 3))),
    ("a billion laughs", || {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for at in 1..64 {
            let before = format!("*a{},", at - 1).repeat(10);
            let _ = writeln!(text, "a{at}: &a{at} [{before}]");
        }
        text
    }),
    ("a long text many times", || {
        format!("a: &a \"{}\"\nlabels:\n{}", "x".repeat(500_000), fill("", |at| format!("  l{at}: *a\n"), 20_000))
    }),
    ("many anchors", || fill("", |at| format!("- &a{at} x\n"), usize::MAX)),
    ("comments", || fill("", |_| "# a comment of some length\n".into(), usize::MAX)),
    ("spaces", || " ".repeat(MEGABYTE)),
    ("line breaks", || "\n".repeat(MEGABYTE)),
    ("a tab on every line", || "\t\n".repeat(MEGABYTE / 2)),
    ("documents", || "---\n".repeat(MEGABYTE / 4)),
    ("directives", || fill("", |at| format!("%TAG !t{at}! tag:x{at}\n"), usize::MAX)),
    ("one plain scalar of lines", || format!("name: {}", "word word\n  ".repeat(MEGABYTE / 12))),
    ("one quoted scalar", || format!("name: \"{}\"", "a\\u0041".repeat(MEGABYTE / 7))),
    ("one block scalar", || format!("name: |\n{}", "  line\n".repeat(MEGABYTE / 7))),
    ("one folded scalar of empty lines", || format!("name: >\n  a\n{}", "\n".repeat(MEGABYTE))),
    ("one long key", || format!("{}: x", "k".repeat(MEGABYTE - 4))),
    ("dollars", || format!("name: \"{}\"", "$".repeat(MEGABYTE - 9))),
    ("broken variables", || format!("name: \"{}\"", "${".repeat(MEGABYTE / 2 - 9))),
    ("variables in one scalar", || format!("name: \"{}\"", "${A}".repeat(MEGABYTE / 4 - 9))),
];

/// `head` and as many of `part` as a megabyte holds, at most `most`.
fn fill(head: &str, part: impl Fn(usize) -> String, most: usize) -> String {
    let mut text = head.to_owned();
    for at in 0..most {
        let next = part(at);
        if text.len() + next.len() > MEGABYTE {
            break;
        }
        text.push_str(&next);
    }
    text
}

/// A topology as somebody might generate it, without any finding.
fn shop(services: usize) -> String {
    let mut text = fill(
        "name: large\ndefaults: {retry: {attempts: 0}}\nservices:\n  service-0:\n    builtin: hello\n",
        |at| {
            format!(
                "  service-{}:\n    command: [./server, \"{{{{port}}}}\"]\n    replicas: 2\n    calls:\n      \
                 service-{}:\n",
                at + 1,
                (at + 1) / 3
            )
        },
        services - 1,
    );
    text.push_str("routes:\n");
    for at in 0..services / 100 {
        let _ = writeln!(text, "- {{path: /p{at}, to: service-{at}}}");
    }
    text
}

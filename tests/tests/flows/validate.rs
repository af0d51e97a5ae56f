//! What a file may say, and how it is told what is wrong with it.

use std::collections::BTreeSet;

use meshctl_tests::{System, repository};

#[test]
fn five_findings_come_in_one_go_each_with_its_place_and_a_remedy() {
    let system = System::new();
    let file = system.raw_file(
        "wrong.yaml",
        "services:
  orders:
    builtin: orders
    replcas: 2
    dependsOn: [stock]
  web: { command: [web], port: 9000 }
  api: { command: [api], port: 9000 }
  a: { builtin: hello, dependsOn: [b] }
  b: { builtin: hello, dependsOn: [a] }
routes:
  - { path: /x, to: nobody }
",
    );
    let ran = system.run(&["validate", &file, "-o", "json"]).expect(78);
    let report = ran.json();
    let findings = report["findings"].as_array().expect("findings");
    let of_line = |line: u64| findings.iter().find(|finding| finding["line"] == line);
    for (line, word) in [(4, "replicas"), (5, "stock"), (11, "nobody")] {
        let finding = of_line(line).unwrap_or_else(|| panic!("nothing about line {line} in {report:#}"));
        let told = format!("{} {}", finding["message"], finding["help"]);
        assert!(told.contains(word), "no {word} in {told}");
        for field in ["column", "endLine", "endColumn"] {
            assert!(finding[field].as_u64().is_some_and(|number| number > 0), "{field} of {finding:#}");
        }
        assert_eq!(finding["severity"], "error");
        assert!(finding["code"].is_string());
        assert!(finding["help"].is_string(), "no remedy in {finding:#}");
        assert!(finding["file"].as_str().is_some_and(|name| name.ends_with("wrong.yaml")), "{finding:#}");
    }
    assert!(of_line(6).or(of_line(7)).is_some(), "nothing about the port of two services in {report:#}");
    assert!(of_line(8).or(of_line(9)).is_some(), "nothing about the cycle in {report:#}");
    let codes: BTreeSet<&str> = findings.iter().filter_map(|finding| finding["code"].as_str()).collect();
    assert!(codes.contains("unknown-key") && codes.contains("unknown-service"), "{codes:?}");

    let people = system.run(&["validate", &file]).expect(78);
    people.says("wrong.yaml:4:").says("wrong.yaml:11:").says("replcas");
    system.run(&["apply", &file, "--yes"]).expect(78);
    system.expect_nothing_runs();
}

#[test]
fn what_comes_later_is_refused_with_a_word_that_says_so() {
    let system = System::new();
    let file = system.raw_file("later.yaml", "services:\n  a: { image: shop/a:1 }\n");
    system.run(&["validate", &file]).expect(78).says("image");
}

#[test]
fn every_topology_of_the_repository_is_valid_and_names_the_schema() {
    let system = System::new();
    let folder = repository().join("manifests/topologies");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("manifests/topologies") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            system.run(&["validate", &path.to_string_lossy()]).expect(0);
            let text = std::fs::read_to_string(&path).expect("a readable file");
            assert!(
                text.starts_with("# yaml-language-server: $schema=../topology.schema.json\n"),
                "{}",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} topologies");
}

#[test]
fn the_starter_applies_as_it_is() {
    let system = System::new();
    system.run(&["init"]).expect(0);
    let written: Vec<_> = std::fs::read_dir(system.folder())
        .expect("the test's folder")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    assert_eq!(written.len(), 1, "init writes one file: {written:?}");
    let file = written[0].to_string_lossy().into_owned();
    system.run(&["validate", &file]).expect(0);
    // The starter listens where an operator expects it; the test must not depend on that port being free.
    let text = std::fs::read_to_string(&written[0]).expect("the starter");
    let moved = system.raw_file("moved.yaml", &text.replace("8080", &system.port(0).to_string()));
    system.run(&["apply", &moved, "--yes"]).expect(0);
    let pids = system.all_pids();
    system.run(&["apply", &moved, "--yes"]).expect(0);
    assert_eq!(system.all_pids(), pids, "applied again it changes nothing");
    system.down();
    let again = system.run(&["init"]);
    assert_ne!(again.status, 0, "init writes over nothing: {again}");
    assert_eq!(std::fs::read_to_string(&written[0]).expect("the starter"), text);
}

#[test]
fn several_files_and_a_folder_are_one_topology() {
    let system = System::new();
    let providers = std::fs::read_to_string(system.file("")).expect("the providers");
    let folder = system.folder().join("parts");
    std::fs::create_dir(&folder).expect("a folder");
    for (name, text) in [
        ("providers.yaml", providers.as_str()),
        ("services.yaml", "services:\n  hello: { builtin: hello }\n"),
        ("routes.yaml", "routes:\n  - { path: /, to: hello }\n"),
    ] {
        std::fs::write(folder.join(name), text).expect("a part");
    }
    system.run(&["up", "-f", "parts", "--yes"]).expect(0);
    assert_eq!(system.get("/").status, 200);
    let parts = ["parts/providers.yaml", "parts/services.yaml", "parts/routes.yaml"];
    let args: Vec<&str> = ["plan"].into_iter().chain(parts).chain(["--exit-code"]).collect();
    system.run(&args).expect(0);
}

#[test]
fn bombs_are_refused_and_a_megabyte_is_answered_in_little_memory() {
    let system = System::new();
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let deep = format!("labels: {}{}", "[".repeat(200_000), "]".repeat(200_000));
    let text = "x".repeat(300);
    let one = |number: usize| format!("  s{number}: {{ builtin: hello, env: {{ TEXT: {text} }} }}\n");
    let many = (0..).map(one).scan(0, |bytes, line| {
        *bytes += line.len();
        (*bytes < 1_000_000).then_some(line)
    });
    let many = format!("services:\n{}", many.collect::<String>());
    for (name, text, status) in [("laughs.yaml", laughs, 78), ("deep.yaml", deep, 78), ("many.yaml", many, 0)] {
        let file = system.raw_file(name, &text);
        // Address space, which is more than memory in use: the program itself and its stacks are in it.
        let script = format!("ulimit -v 262144; exec '{}' validate '{file}'", system.binary().display());
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        system.run_command(command).expect(status);
    }
}

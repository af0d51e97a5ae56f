//! The loader from the outside: texts in, topology and findings out.

use std::collections::BTreeMap;

use meshctl_model::finding::{CODES, Finding, Severity};
use meshctl_model::load::{Loaded, SourceFile, Sources, load, variables};
use meshctl_model::starter::starter;
use meshctl_model::topology::{EnvSource, EnvValue, Port, Topology};

fn sources(texts: &[&str], environment: &[(&str, &str)]) -> Sources {
    let file = |(at, text): (usize, &&str)| SourceFile {
        name: format!("{}.yaml", ["one", "two", "three"][at]),
        folder: format!("/srv/{}", ["one", "two", "three"][at]),
        text: (*text).to_owned(),
    };
    Sources {
        files: texts.iter().enumerate().map(file).collect(),
        environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

fn read(text: &str) -> Loaded {
    load(&sources(&[text], &[]))
}

fn findings(text: &str) -> Vec<(String, usize, usize)> {
    read(text).findings.into_iter().map(|f| (f.code, f.line, f.column)).collect()
}

fn topology(loaded: Loaded) -> Topology {
    let findings = listed(&loaded.findings);
    loaded.topology.unwrap_or_else(|| panic!("{findings}"))
}

/// One finding in two lines.
fn listed(findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let severity = if f.severity == Severity::Error { "error" } else { "warning" };
        let help = f.help.as_deref().unwrap_or_default();
        format!(
            "{}:{}:{}-{}:{} {severity}[{}] {}\n    {help}\n",
            f.file, f.line, f.column, f.end_line, f.end_column, f.code, f.message
        )
    };
    findings.iter().map(line).collect()
}

#[test]
fn scratch() {
    println!("{}", listed(&read(starter()).findings));
    println!("{}", listed(&read(&std::fs::read_to_string("/work/shared/topology-example.yaml").unwrap()).findings));
    let _ = (CODES.len(), variables(""), BTreeMap::<u8, u8>::new());
    let _ = |a: EnvSource, b: EnvValue, c: Port| (a, b, c);
    let _ = (findings(""), topology(read(starter())));
}

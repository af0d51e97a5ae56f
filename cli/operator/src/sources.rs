//! From what an operator names on the command line to [`Sources`] or a saved plan.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use meshctl_api::view::Plan;
use meshctl_model::exit;
use meshctl_model::load::{Loaded, SourceFile, Sources, load, variables};
use meshctl_model::topology::{EnvSource, EnvValue, Topology};

use crate::failure::Failure;
use crate::output::{self, Format, findings};

/// The largest file that is read.
const LARGEST: u64 = 1 << 20;

/// Where the topology is.
#[derive(Clone, Debug, Args)]
pub(crate) struct FileArgs {
    /// Topology files, folders of them (*.yaml, *.yml), or - for standard input
    #[arg(value_name = "FILE", required_unless_present = "file", value_hint = clap::ValueHint::AnyPath)]
    pub files: Vec<PathBuf>,

    /// The same as FILE, for fingers that know kubectl
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    pub file: Vec<PathBuf>,
}

/// What an operator hands over.
#[derive(Debug)]
pub(crate) enum Input {
    Topology(Sources),
    /// From `plan --out`.
    Plan(Box<Plan>),
}

impl FileArgs {
    /// Reads everything that is named.
    ///
    /// # Errors
    /// What cannot be read, is too large, or is no text.
    pub(crate) fn read(&self) -> Result<Input, Failure> {
        let mut files = Vec::new();
        for path in self.files.iter().chain(&self.file) {
            read_into(path, &mut files)?;
        }
        if let [only] = files.as_slice()
            && let Some(plan) = saved_plan(only)?
        {
            return Ok(Input::Plan(Box::new(plan)));
        }
        let mentioned = files.iter().flat_map(|file| variables(&file.text));
        let environment = mentioned.filter_map(|name| std::env::var(&name).ok().map(|value| (name, value))).collect();
        Ok(Input::Topology(Sources { files, environment }))
    }

    /// The same, where only a topology makes sense.
    ///
    /// # Errors
    /// As [`Self::read`], and for a saved plan.
    pub(crate) fn topology(&self) -> Result<Sources, Failure> {
        match self.read()? {
            Input::Topology(sources) => Ok(sources),
            Input::Plan(_) => Err(Failure::usage("this is a saved plan, and a topology is wanted here")
                .hint("a saved plan can only be applied: `meshctl apply PLAN`")),
        }
    }
}

/// Checks `sources` on the spot and shows what is wrong with them.
///
/// # Errors
/// When anything is an error.
pub(crate) fn check(sources: &Sources, format: &Format) -> Result<(), Failure> {
    let Loaded { topology, findings } = load(sources);
    if !findings::has_errors(&findings) {
        findings::tell(&findings, sources);
        topology.iter().flat_map(missing).for_each(output::warn);
        return Ok(());
    }
    findings::show(&findings, sources, format)?;
    Err(invalid(&findings::count(&findings)))
}

/// What the topology needs of this machine and does not find: programs and files that are named by their path. It is no
/// error, because they may come before the instances start.
pub(crate) fn missing(topology: &Topology) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, service) in &topology.services {
        let folder = Path::new(service.working_dir.as_deref().unwrap_or("/"));
        if let Some(program) =
            service.command.iter().flatten().next().filter(|program| program.contains('/') && !program.contains("{{"))
        {
            let wrong = match std::fs::metadata(folder.join(program)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some("does not exist"),
                Ok(file) if !file.is_file() || file.permissions().mode() & 0o111 == 0 => Some("is not executable"),
                _ => None,
            };
            missing.extend(wrong.map(|wrong| format!("service {name}: program {program} {wrong}")));
        }
        for (variable, value) in &service.env {
            if let EnvValue::From(EnvSource::File(path)) = value
                && !folder.join(path).exists()
            {
                missing.push(format!("service {name}: file {path} of {variable} does not exist"));
            }
        }
    }
    missing
}

/// The failure that an invalid topology is; its findings have been shown.
pub(crate) fn invalid(count: &str) -> Failure {
    Failure::new(exit::INVALID_TOPOLOGY, format!("the topology has {count}"))
}

fn read_into(path: &Path, files: &mut Vec<SourceFile>) -> Result<(), Failure> {
    if path == Path::new("-") {
        let text = read_text(io::stdin().lock(), "standard input")?;
        let here = std::env::current_dir().map_err(|error| Failure::file("there is no current folder", &error))?;
        files.push(SourceFile { name: "<stdin>".to_owned(), folder: here.to_string_lossy().into_owned(), text });
        return Ok(());
    }
    let shown = path.display();
    let unreadable = |error: io::Error| Failure::file(format_args!("cannot read {shown}"), &error);
    if path.is_dir() {
        let inside = topologies_in(path).map_err(unreadable)?;
        if inside.is_empty() {
            return Err(Failure::not_found(format!("there is no *.yaml or *.yml file in {shown}")));
        }
        return inside.iter().try_for_each(|path| read_into(path, files));
    }
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::not_found(format!("there is no file {shown}")).hint("`meshctl init` writes one to start from")
        }
        _ => unreadable(error),
    })?;
    let text = read_text(file, &shown.to_string())?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let folder = absolute.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    files.push(SourceFile { name: path.to_string_lossy().into_owned(), folder, text });
    Ok(())
}

fn topologies_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml" || end == "yml") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_text(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::file(format_args!("cannot read {name}"), &error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::new(exit::INVALID_TOPOLOGY, format!("{name} is larger than 1 MiB"))
            .hint("split it: several files and folders make one topology"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::new(exit::INVALID_TOPOLOGY, format!("{name} is not UTF-8 text: byte {at} is none"))
    })
}

/// The plan in `file`, if that is what it holds. A topology is YAML and never begins with this kind.
fn saved_plan(file: &SourceFile) -> Result<Option<Plan>, Failure> {
    let is_plan = file.text.trim_start().starts_with('{') && file.text.contains("\"kind\": \"Plan\"");
    if !is_plan {
        return Ok(None);
    }
    serde_json::from_str(&file.text).map(Some).map_err(|error| {
        Failure::new(exit::INVALID_TOPOLOGY, format!("{} is not a plan that can be read", file.name))
            .caused_by(&error)
            .hint("make it again with `meshctl plan FILE --out PLAN`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(files: &[&Path]) -> FileArgs {
        FileArgs { files: files.iter().map(|path| path.to_path_buf()).collect(), file: Vec::new() }
    }

    #[test]
    fn a_folder_is_its_topologies_in_order() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["b.yaml", "a.yml", "notes.txt"] {
            std::fs::write(dir.path().join(name), name).expect("written");
        }
        let sources = args(&[dir.path()]).topology().expect("read");
        let texts: Vec<&str> = sources.files.iter().map(|file| file.text.as_str()).collect();
        assert_eq!(texts, ["a.yml", "b.yaml"]);
        assert!(sources.files.iter().all(|file| Path::new(&file.folder) == dir.path()));
    }

    #[test]
    fn what_cannot_be_a_topology_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let large = dir.path().join("large.yaml");
        std::fs::write(&large, vec![b'#'; (LARGEST + 1) as usize]).expect("written");
        let binary = dir.path().join("binary.yaml");
        std::fs::write(&binary, [b'a', 0xff]).expect("written");
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).expect("made");
        for (path, exit) in [(large, 78), (binary, 78), (empty, 3), (dir.path().join("missing.yaml"), 3)] {
            assert_eq!(args(&[&path]).topology().map_err(|failure| failure.exit), Err(exit), "{}", path.display());
        }
    }
}

//! What the processes of an instance find in their environment.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use meshctl_model::delivery;
use meshctl_model::instance::{InstanceSpec, SpecEnv};

use super::folder::{FILES, Refusal};
use super::proc::{INSTANCE_LABEL, STATE_DIR_LABEL};

/// What every program may expect of its surroundings. Nothing else of the environment in which a daemon happens to have been
/// started reaches a service: it would differ from one start to the next, and it may hold what is nobody's business.
const INHERITED: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "JAVA_HOME",
    "MESHCTL_LOG",
    "RUST_BACKTRACE",
];

/// The whole environment of the processes of an instance. Files are read here and nowhere else: their
/// content goes into the process that needs it and into no file, argument, log or error.
///
/// # Errors
/// What could not be read, and why.
pub(in crate::runtime) fn environment(
    spec: &InstanceSpec,
    state_dir: &Path,
) -> Result<Vec<(OsString, OsString)>, Refusal> {
    let locale = |name: &OsString| name.to_str().is_some_and(|name| name.starts_with("LC_"));
    let mut environment: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(name, _)| locale(name) || INHERITED.iter().any(|known| name == known)).collect();
    environment.push(("HOST".into(), "127.0.0.1".into()));
    if let Some(port) = spec.port {
        environment.push(("PORT".into(), port.to_string().into()));
    }
    for (name, value) in &spec.env {
        let value = match value {
            SpecEnv::Text(text) => text.into(),
            SpecEnv::File(path) => {
                let mut bytes = fs::read(path).map_err(|error| {
                    Refusal::new(&error, format!("cannot read {path}, the value of {name}: {error}"))
                })?;
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                }
                if bytes.contains(&0) {
                    return Err(Refusal::Unstartable(format!(
                        "{path}, the value of {name}, holds a zero byte, which no environment can hold"
                    )));
                }
                OsString::from_vec(bytes)
            }
        };
        environment.push((name.into(), value));
    }
    // Last, so that nothing can take the labels away.
    environment.push(("MESHCTL_SERVICE".into(), spec.service.clone().into()));
    environment.push((INSTANCE_LABEL.into(), spec.id.clone().into()));
    if !spec.files.is_empty() {
        environment.push((delivery::FILES.into(), state_dir.join("instances").join(&spec.id).join(FILES).into()));
    }
    environment.push((STATE_DIR_LABEL.into(), state_dir.into()));
    Ok(environment)
}

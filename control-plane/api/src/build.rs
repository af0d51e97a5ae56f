//! Which build of meshctl this process runs. A command compares its own with the daemon's: of one version there can be
//! many builds, and a daemon keeps running the file that it was started from after that file has been replaced.

use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;

/// The version of this build's source.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

static BUILD: LazyLock<String> = LazyLock::new(|| match std::fs::metadata("/proc/self/exe") {
    // Size and time of the executable: known without reading it, and different for every build that differs.
    Ok(file) => {
        format!("{:x}-{:x}", file.len(), i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec()))
    }
    Err(_) => VERSION.to_owned(),
});

/// The build that this process runs: `Version.build`. It is read once; a long-lived process asks early.
pub fn build() -> &'static str {
    &BUILD
}

//! Tests that need what this machine does not have are skipped and counted, never silently passed.

use std::io::Write;
use std::path::Path;

/// Whether `program` can be found in `PATH`.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Records that the calling test is skipped. libtest knows no such outcome at run time, so `tests/run` names a file in
/// `MESHCTL_TESTS_SKIPPED` and counts its lines. Use it through [`crate::skip!`].
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a test"));
    eprint!("{line}");
    if let Some(file) = std::env::var_os("MESHCTL_TESTS_SKIPPED") {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(Path::new(&file))
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .expect("MESHCTL_TESTS_SKIPPED names a file that can be written");
    }
}

/// Leaves the test, counted as skipped for the given reason.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        $crate::skipped(&format!($($reason)*));
        return;
    }};
}

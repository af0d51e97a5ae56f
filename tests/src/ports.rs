//! Ports that no other test uses: a hundred for each system, held by a lock on a file for as long as the system lives, so
//! that tests of several checkouts can run on one machine.

use std::fs::{File, OpenOptions};

/// Below the kernel's ephemeral ports, and beside those that meshctl takes by default (20000 to 29999).
const FIRST: u16 = 30000;
const EACH: u16 = 100;
const RANGES: u16 = 27;
/// Of each range, those that the test itself hands out; the rest is meshctl's.
const FIXED: u16 = 20;

/// A range of ports.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    _held: File,
}

impl Ports {
    /// Takes a free range. Panics when all are in use, which a machine with that many tests at once does not reach.
    pub fn take() -> Self {
        let folder = std::env::temp_dir().join("meshctl-tests-ports");
        std::fs::create_dir_all(&folder).expect("a folder for locks");
        crate::wait_for("a free range of ports", || {
            (0..RANGES).find_map(|number| {
                let file = folder.join(number.to_string());
                let held = OpenOptions::new().create(true).append(true).open(file).expect("a file to lock");
                held.try_lock().is_ok().then(|| Self { first: FIRST + number * EACH, _held: held })
            })
        })
    }

    /// A fixed port for the test's own use, numbered from 0.
    pub fn fixed(&self, number: u16) -> u16 {
        assert!(number < FIXED, "a range has {FIXED} fixed ports");
        self.first + number
    }

    /// What meshctl may choose from: `30020-30099`.
    pub fn automatic(&self) -> String {
        format!("{}-{}", self.first + FIXED, self.first + EACH - 1)
    }
}

//! What `/proc` shows of a process as its arguments and environment. Both lie in the memory of the process, where they were
//! put at its exec; one that was forked shows those of its parent until it writes its own over them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// A variable that means nothing: room for the label of whoever is forked.
pub(super) const ROOM: &str = "MESHCTL_ROOM";

/// Where in our memory the two lie; a place is an address and a size.
pub(super) struct Title {
    arguments: (u64, usize),
    room: (u64, usize),
}

impl Title {
    /// `None` where the kernel does not tell.
    pub(super) fn find() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat[stat.rfind(')')? + 2..].split_ascii_whitespace().skip(48 - 3);
        let mut address = || fields.next()?.parse::<u64>().ok();
        let (arguments, arguments_end, environment) = (address()?, address()?, address()?);
        let variables = fs::read("/proc/self/environ").ok()?;
        let mut offset = 0;
        let room = variables.split(|byte| *byte == 0).find_map(|variable| {
            let begin = offset;
            offset += variable.len() + 1;
            variable.strip_prefix(ROOM.as_bytes())?.starts_with(b"=").then_some((begin, variable.len()))
        })?;
        // Without the zero byte at the end, like the room: it stays whatever is cut off.
        let size = usize::try_from(arguments_end.checked_sub(arguments)?.checked_sub(1)?).ok()?;
        Some(Self { arguments: (arguments, size), room: (environment + room.0 as u64, room.1) })
    }

    /// Writes `arguments`, each ended by a zero byte, and `label`, a whole variable, over what stands there. What does not
    /// fit is cut off.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub(super) fn write(&self, arguments: &[u8], label: &[u8]) -> io::Result<()> {
        let memory = File::options().write(true).open("/proc/self/mem")?;
        for ((address, size), bytes) in [(self.arguments, arguments), (self.room, label)] {
            let mut bytes = bytes.to_vec();
            bytes.resize(size, 0);
            // The zero byte behind it is not touched, so nobody who reads it as a string reads too far.
            memory.write_all_at(&bytes, address)?;
        }
        Ok(())
    }
}

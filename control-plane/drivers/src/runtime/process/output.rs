//! Keeps what a program prints: one line of the log per line of output, in the form of the container runtimes
//! (`2026-11-23T17:22:01.000000001Z stdout F text`; `P` instead of `F` when the line goes on in the next entry).
//!
//! The program is never held up by it: what the disk does not take is dropped and counted, and the count is written down as
//! soon as there is room again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::folder::LOG;
use crate::runtime::Stream;

/// A longer line is split.
const LONGEST: usize = 16 * 1024;

pub(super) struct Output {
    dir: PathBuf,
    max_size: u64,
    files: u32,
    file: Option<File>,
    size: u64,
    /// What is to be written, whole lines.
    batch: Vec<u8>,
    lines_in_batch: u64,
    /// Lines that have not ended yet.
    unfinished: [Vec<u8>; 2],
    dropped: u64,
}

impl Output {
    pub(super) fn new(dir: &Path, max_size: u64, files: u32) -> Self {
        Self {
            dir: dir.to_owned(),
            max_size,
            files: files.max(1),
            file: None,
            size: 0,
            batch: Vec::new(),
            lines_in_batch: 0,
            unfinished: [Vec::new(), Vec::new()],
            dropped: 0,
        }
    }

    /// Takes what the program printed.
    pub(super) fn take(&mut self, stream: Stream, mut bytes: &[u8], now: Timestamp) {
        let now = format!("{now:.9}");
        let mut line = std::mem::take(&mut self.unfinished[stream as usize]);
        while !bytes.is_empty() {
            let room = LONGEST - line.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.unwrap_or(room.min(bytes.len())));
            line.extend_from_slice(part);
            bytes = rest;
            if end.is_some() {
                bytes = &bytes[1..];
                self.entry(&now, stream, b'F', &line);
                line.clear();
            } else if line.len() == LONGEST {
                self.entry(&now, stream, b'P', &line);
                line.clear();
            }
        }
        self.unfinished[stream as usize] = line;
        self.write(&now);
    }

    /// The stream is over: what it left unfinished is its last line.
    pub(super) fn finish(&mut self, stream: Stream, now: Timestamp) {
        if !self.unfinished[stream as usize].is_empty() {
            self.take(stream, b"\n", now);
        }
    }

    /// A word of the shim itself, among the program's errors.
    pub(super) fn notice(&mut self, text: &str, now: Timestamp) {
        let now = format!("{now:.9}");
        self.entry(&now, Stream::Stderr, b'F', format!("meshctl: {text}").as_bytes());
        self.write(&now);
    }

    fn entry(&mut self, now: &str, stream: Stream, tag: u8, text: &[u8]) {
        let stream = match stream {
            Stream::Stdout => " stdout ",
            Stream::Stderr => " stderr ",
        };
        let length = now.len() + stream.len() + 2 + text.len() + 1;
        let size = self.size + self.batch.len() as u64;
        if size > 0 && size + length as u64 > self.max_size {
            self.write(now);
            self.rotate();
        }
        self.batch.extend_from_slice(now.as_bytes());
        self.batch.extend_from_slice(stream.as_bytes());
        self.batch.extend_from_slice(&[tag, b' ']);
        self.batch.extend_from_slice(text);
        self.batch.push(b'\n');
        self.lines_in_batch += 1;
    }

    fn write(&mut self, now: &str) {
        if self.batch.is_empty() {
            return;
        }
        if self.dropped > 0 {
            let mut notice = format!("{now} stderr F meshctl: {} lines of output were dropped: ", self.dropped);
            notice.push_str("the log could not be written\n");
            self.batch.splice(..0, notice.into_bytes());
        }
        match self.append() {
            Ok(()) => self.dropped = 0,
            Err(_) => {
                self.dropped += self.lines_in_batch;
                // Opened anew next time: whatever was wrong with it may be mended by then.
                self.file = None;
            }
        }
        self.batch.clear();
        self.lines_in_batch = 0;
    }

    fn append(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let path = self.dir.join(LOG);
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
                self.size = file.metadata()?.len();
                none.insert(file)
            }
        };
        let written = file.write_all(&self.batch);
        match written {
            Ok(()) => self.size += self.batch.len() as u64,
            // Half a line on a full disk: taken back, so that every line in the log is whole.
            Err(_) => file.set_len(self.size)?,
        }
        written
    }

    /// Moves every file one up; the last one falls off. Followers hold the old file open and read it to its end.
    fn rotate(&mut self) {
        let name = |number: u32| match number {
            0 => self.dir.join(LOG),
            _ => self.dir.join(format!("{LOG}.{number}")),
        };
        let last = self.files - 1;
        let moved = if last == 0 {
            fs::remove_file(name(0))
        } else {
            // Those that do not exist yet cannot be moved, which is as it should be.
            for number in (1..last).rev() {
                let _ = fs::rename(name(number), name(number + 1));
            }
            fs::rename(name(0), name(1))
        };
        // A log that cannot be moved is written on: bigger than wished is better than lost.
        if moved.is_ok() {
            self.file = None;
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path) -> String {
        fs::read_to_string(dir.join(LOG)).unwrap_or_default()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or_default()
    }

    #[test]
    fn lines_are_kept_whole_or_split_with_a_mark() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut output = Output::new(dir.path(), 1 << 20, 2);
        output.take(Stream::Stdout, b"one\ntw", at(1));
        output.take(Stream::Stderr, b"\n", at(2));
        output.take(Stream::Stdout, b"o\n\xff\nlast", at(3));
        output.take(Stream::Stdout, &[b'x'; LONGEST], at(4));
        output.finish(Stream::Stdout, at(5));
        let x = |count| "x".repeat(count);
        let bytes = fs::read(dir.path().join(LOG))?;
        let expected = format!(
            "1970-01-01T00:00:01.000000000Z stdout F one\n\
             1970-01-01T00:00:02.000000000Z stderr F \n\
             1970-01-01T00:00:03.000000000Z stdout F two\n\
             1970-01-01T00:00:03.000000000Z stdout F \u{fffd}\n\
             1970-01-01T00:00:04.000000000Z stdout P last{}\n\
             1970-01-01T00:00:05.000000000Z stdout F {}\n",
            x(LONGEST - 4),
            x(4)
        );
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
        Ok(())
    }

    #[test]
    fn no_file_grows_beyond_its_limit_and_no_more_are_kept() -> io::Result<()> {
        for files in 1..4 {
            let dir = tempfile::tempdir()?;
            let mut output = Output::new(dir.path(), 200, files);
            for number in 0..50 {
                output.take(Stream::Stdout, format!("{number}\n{number}\n").as_bytes(), at(number));
            }
            let mut names = Vec::new();
            for entry in fs::read_dir(dir.path())? {
                let entry = entry?;
                assert!(entry.metadata()?.len() <= 200, "{entry:?}");
                names.push(entry.file_name());
            }
            assert_eq!(names.len() as u32, files, "{names:?}");
            assert!(log(dir.path()).ends_with("stdout F 49\n"));
        }
        Ok(())
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        std::os::unix::fs::symlink("/dev/full", dir.path().join(LOG))?;
        let mut output = Output::new(dir.path(), 1 << 20, 2);
        output.take(Stream::Stdout, b"one\ntwo\n", at(1));
        output.take(Stream::Stderr, b"three\n", at(2));
        fs::remove_file(dir.path().join(LOG))?;
        output.take(Stream::Stdout, b"four\n", at(3));
        output.take(Stream::Stdout, b"five\n", at(4));
        let expected = "1970-01-01T00:00:03.000000000Z stderr F meshctl: 3 lines of output were dropped: the log could not be written\n\
                        1970-01-01T00:00:03.000000000Z stdout F four\n\
                        1970-01-01T00:00:04.000000000Z stdout F five\n";
        assert_eq!(log(dir.path()), expected);
        Ok(())
    }
}

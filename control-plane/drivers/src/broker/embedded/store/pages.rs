//! Reads messages from the pages of a file whose tree cannot be followed any more. Whatever looks like a row of `messages` and
//! agrees with its check sum is one; SQLite's file format is stable and documented (sqlite.org/fileformat2.html).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::rows::crc;
use crate::broker::embedded::codec::{LONGEST_FRAME, Raw};

/// A leaf of a table.
const LEAF: u8 = 0x0d;
/// No message is larger, as it came in one frame; a longer one is garbage.
const LONGEST: usize = LONGEST_FRAME + 1024;

struct Pages<'a> {
    file: &'a File,
    log: Option<&'a File>,
    /// Where in the log the newest copy of a page is.
    newest: HashMap<u64, u64>,
    size: usize,
    usable: usize,
}

/// Calls `each` with the place, time and content of every intact message, in the order of pages: those of the file, then
/// those of its log, as far as that was committed.
pub fn scan<E: From<io::Error>>(
    file: &File,
    log: Option<&File>,
    mut each: impl FnMut(i64, i64, Raw) -> Result<(), E>,
) -> Result<(), E> {
    let mut header = [0; 100];
    // What cannot be read of it stays zero, and the usual size is taken.
    let _ = file.read_exact_at(&mut header, 0);
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size if size.is_power_of_two() && size >= 512 => usize::from(size),
        _ => 4_096,
    };
    let usable = size - usize::from(header[20]).min(size - 480);
    let frames = log.map_or_else(Vec::new, |log| frames(log, size));
    let newest = frames.iter().copied().collect();
    let pages = Pages { file, log, newest, size, usable };
    let count = file.metadata()?.len().div_ceil(size as u64);
    let inside = (2..=count).map(|number| (file, (number - 1) * size as u64));
    let beside = log.into_iter().flat_map(|log| frames.iter().map(move |(_, at)| (log, *at)));
    for (from, at) in inside.chain(beside) {
        let Some(page) = pages.read_at(from, at) else { continue };
        if page.first() != Some(&LEAF) {
            continue;
        }
        let cells = u16_at(&page, 3).unwrap_or(0);
        for cell in 0..usize::from(cells).min(size / 2) {
            let row = u16_at(&page, 8 + 2 * cell).and_then(|at| pages.row(&page, usize::from(at)));
            if let Some((place, at, message)) = row {
                each(place, at, message)?;
            }
        }
    }
    Ok(())
}

/// Number and place of each page of a log, up to its last commit; frames of an earlier round have other salts.
fn frames(log: &File, size: usize) -> Vec<(u64, u64)> {
    let mut salts = [0; 8];
    let (mut frames, mut committed) = (Vec::new(), 0);
    if log.read_exact_at(&mut salts, 16).is_err() {
        return frames;
    }
    let (mut at, mut head) = (32, [0; 24]);
    while log.read_exact_at(&mut head, at).is_ok() && head[8..16] == salts {
        frames.push((u64::from(u32_at(&head, 0).unwrap_or(0)), at + 24));
        if head[4..8] != [0; 4] {
            committed = frames.len();
        }
        at += 24 + size as u64;
    }
    frames.truncate(committed);
    frames
}

impl Pages<'_> {
    /// Numbers begin with 1.
    fn read(&self, number: u64) -> Option<Vec<u8>> {
        match (self.log, self.newest.get(&number)) {
            (Some(log), Some(at)) => self.read_at(log, *at),
            _ => self.read_at(self.file, number.checked_sub(1)?.checked_mul(self.size as u64)?),
        }
    }

    /// The last page may be torn: what is missing is zero.
    fn read_at(&self, file: &File, at: u64) -> Option<Vec<u8>> {
        let mut page = vec![0; self.size];
        let mut filled = 0;
        while filled < page.len() {
            match file.read_at(page.get_mut(filled..)?, at + filled as u64) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        (filled > 0).then_some(page)
    }

    fn row(&self, page: &[u8], at: usize) -> Option<(i64, i64, Raw)> {
        let mut cell = page.get(at..self.usable)?;
        let length = usize::try_from(varint(&mut cell)?).ok().filter(|length| *length <= LONGEST)?;
        let place = varint(&mut cell)?.cast_signed();
        let record = self.payload(cell, length)?;
        let mut rest = record.as_slice();
        let header = usize::try_from(varint(&mut rest)?).ok()?;
        let mut types = record.get(record.len() - rest.len()..header)?;
        let mut values = record.get(header..)?;
        let mut next = || -> Option<(u64, &[u8])> {
            let kind = varint(&mut types)?;
            let length = match kind {
                0 | 8 | 9 => 0,
                1..=4 => usize::try_from(kind).ok()?,
                5 => 6,
                6 | 7 => 8,
                10 | 11 => return None,
                long => usize::try_from((long - 12) / 2).ok()?,
            };
            let (value, rest) = values.split_at_checked(length)?;
            values = rest;
            Some((kind, value))
        };
        // The place is the row's number and stands as NULL in the record.
        if next()?.0 != 0 {
            return None;
        }
        let (at, sum) = (integer(next()?)?, integer(next()?)?);
        let (_, id) = next()?;
        let (kind, key) = next()?;
        let key = (kind != 0).then_some(key);
        let ((_, headers), (_, payload)) = (next()?, next()?);
        if i64::from(crc(place, at, id, key, headers, payload)) != sum {
            return None;
        }
        let copy = Bytes::copy_from_slice;
        Some((place, at, Raw { id: copy(id), key: key.map(copy), headers: copy(headers), payload: copy(payload) }))
    }

    /// A record, the beginning of which is in the cell and the rest in a chain of pages of its own.
    fn payload(&self, cell: &[u8], length: usize) -> Option<Vec<u8>> {
        let most = self.usable - 35;
        if length <= most {
            return Some(cell.get(..length)?.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let fitting = least + (length - least) % (self.usable - 4);
        let local = if fitting <= most { fitting } else { least };
        let mut record = cell.get(..local)?.to_vec();
        let mut next = u32_at(cell, local)?;
        // Garbage can lead in a circle, and would fill memory with it.
        let mut seen = HashSet::new();
        while record.len() < length {
            if !seen.insert(next) {
                return None;
            }
            let page = self.read(u64::from(next))?;
            let part = (length - record.len()).min(self.usable - 4);
            record.extend_from_slice(page.get(4..4 + part)?);
            next = u32_at(&page, 0)?;
        }
        Some(record)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Seven bits of each of up to eight bytes, all eight of the ninth.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for count in 0..9 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if count == 8 {
            return Some(value << 8 | u64::from(*byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(value)
}

fn integer((kind, value): (u64, &[u8])) -> Option<i64> {
    match kind {
        8 => Some(0),
        9 => Some(1),
        1..=6 => {
            let negative = value.first()? & 0x80 != 0;
            let start = if negative { -1 } else { 0 };
            Some(value.iter().fold(start, |number, byte| number << 8 | i64::from(*byte)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{SCHEMA, place, rows, writer};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever was inserted is found, and exactly, with payloads from nothing to many pages.
        #[test]
        fn every_row_is_found(sizes in proptest::collection::vec(prop_oneof![0..200usize, 3_900..4_200usize, 0..40_000usize], 1..40)) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("pages.db");
            let database = writer(&path).expect("a database");
            database.execute_batch(SCHEMA).expect("a schema");
            let mut wanted = Vec::new();
            for (number, size) in sizes.iter().enumerate() {
                let message = Raw {
                    id: format!("id-{number}").into(),
                    key: (number % 2 == 0).then(|| Bytes::from(format!("key-{number}"))),
                    headers: vec![0, 0].into(),
                    payload: (0..*size).map(|at| (at * number) as u8).collect::<Vec<u8>>().into(),
                };
                let (place, at) = (place(1, 0, number as u64), 1_790_000_000_000_000 + number as i64);
                rows::insert(&database, place, at, &message).expect("a row");
                wanted.push((place, at, message));
            }
            database.close().expect("it closes");
            let mut found = Vec::new();
            let file = File::open(&path).expect("the file");
            scan(&file, None, |place, at, message| { found.push((place, at, message)); Ok::<_, io::Error>(()) }).expect("a scan");
            found.sort_by_key(|(place, ..)| *place);
            prop_assert_eq!(found, wanted);
        }
    }
}

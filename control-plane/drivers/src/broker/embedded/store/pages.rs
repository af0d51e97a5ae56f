//! Reads messages from the pages of a file whose tree cannot be followed any more. Whatever looks like a row of `messages` and
//! agrees with its check sum is one; SQLite's file format is stable and documented (sqlite.org/fileformat2.html).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::rows::crc;
use crate::broker::embedded::codec::Raw;

/// A leaf of a table.
const LEAF: u8 = 0x0d;
/// No message is larger; a longer one is garbage.
const LONGEST: usize = 1 << 30;

struct Pages<'a> {
    file: &'a File,
    size: usize,
    usable: usize,
}

/// Calls `each` with the place, time and content of every intact message, in the order of pages.
pub fn scan<E: From<io::Error>>(file: &File, mut each: impl FnMut(i64, i64, Raw) -> Result<(), E>) -> Result<(), E> {
    let mut header = [0; 100];
    // What cannot be read of it stays zero, and the usual size is taken.
    let _ = file.read_exact_at(&mut header, 0);
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size if size.is_power_of_two() && size >= 512 => usize::from(size),
        _ => 4_096,
    };
    let pages = Pages { file, size, usable: size - usize::from(header[20]).min(size - 480) };
    let count = file.metadata()?.len().div_ceil(size as u64);
    for number in 2..=count {
        let Some(page) = pages.read(number) else { continue };
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

impl Pages<'_> {
    /// Numbers begin with 1. The last page may be torn: what is missing is zero.
    fn read(&self, number: u64) -> Option<Vec<u8>> {
        let mut page = vec![0; self.size];
        let at = number.checked_sub(1)?.checked_mul(self.size as u64)?;
        let mut filled = 0;
        while filled < page.len() {
            match self.file.read_at(page.get_mut(filled..)?, at + filled as u64) {
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
        while record.len() < length {
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
            scan(&file, |place, at, message| { found.push((place, at, message)); Ok::<_, io::Error>(()) }).expect("a scan");
            found.sort_by_key(|(place, ..)| *place);
            prop_assert_eq!(found, wanted);
        }
    }
}

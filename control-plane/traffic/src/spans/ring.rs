//! What one thread remembers: the newest records, and which of them a reader has not taken yet.

use std::collections::VecDeque;

use super::{AT_ONCE, Record};

/// Words about failures: of so many records, each of no more than so many bytes.
const WORDS: usize = 4096;
const WORDS_BYTES: usize = 240;

#[derive(Debug)]
pub(crate) struct Ring {
    capacity: usize,
    records: Vec<Record>,
    /// Half of each record's trace id, close together: a recall looks at all of them.
    keys: Vec<u64>,
    /// How many ever were. The record number `n` is at `n % capacity`.
    pushed: u64,
    /// Everything before this has been taken.
    taken: u64,
    /// Recorded and not taken.
    waiting: usize,
    dropped: u64,
    /// By the number of their record, which only rises.
    words: VecDeque<(u64, Box<str>)>,
}

/// Where a record was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat(u64);

/// A record as it is read, with the words that there are for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Remembered {
    pub(crate) record: Record,
    pub(crate) words: Option<Box<str>>,
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            // Reserved and not touched: the machine gives the memory page by page, as it is filled.
            records: Vec::with_capacity(capacity),
            keys: Vec::with_capacity(capacity),
            pushed: 0,
            taken: 0,
            waiting: 0,
            dropped: 0,
            words: VecDeque::new(),
        }
    }

    /// Remembers it, and forgets the oldest.
    pub(crate) fn push(&mut self, record: Record, words: Option<&str>) -> Seat {
        let (number, key) = (self.pushed, record.trace as u64);
        if self.records.len() < self.capacity {
            self.records.push(record);
            self.keys.push(key);
        } else {
            let at = self.at(number);
            if self.records[at].recorded && number - self.capacity as u64 >= self.taken {
                self.dropped += 1;
                self.waiting -= 1;
            }
            self.records[at] = record;
            self.keys[at] = key;
        }
        self.pushed += 1;
        self.waiting += usize::from(record.recorded);
        if let Some(words) = words {
            if self.words.len() == WORDS {
                self.words.pop_front();
            }
            self.words.push_back((number, words[..words.floor_char_boundary(WORDS_BYTES)].into()));
        }
        Seat(number)
    }

    /// The record at `seat`, if it is still remembered.
    pub(crate) fn get(&self, seat: Seat) -> Option<Record> {
        (seat.0 >= self.oldest()).then(|| self.records[self.at(seat.0)])
    }

    /// How many recorded ones wait for a reader.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many were overwritten before a reader took them.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The oldest recorded ones that nobody has taken, at most [`AT_ONCE`].
    pub(crate) fn take(&mut self) -> Vec<Remembered> {
        let mut taken = Vec::with_capacity(self.waiting.min(AT_ONCE));
        let mut number = self.taken.max(self.oldest());
        while self.waiting > 0 && taken.len() < AT_ONCE {
            let record = self.records[self.at(number)];
            if record.recorded {
                taken.push(self.remembered(number, record));
                self.waiting -= 1;
            }
            number += 1;
        }
        self.taken = if self.waiting == 0 { self.pushed } else { number };
        taken
    }

    /// Everything of these traces, oldest first, at most [`AT_ONCE`].
    pub(crate) fn recall(&self, traces: &[u128]) -> Vec<Remembered> {
        // Nearly every record is of another trace: one look into a small map says so.
        let mut map = [0u64; 64];
        let place = |key: u64| ((key >> 6 & 63) as usize, 1u64 << (key & 63));
        for trace in traces {
            let (word, bit) = place(*trace as u64);
            map[word] |= bit;
        }
        let mut found = Vec::new();
        for number in self.oldest()..self.pushed {
            let (word, bit) = place(self.keys[self.at(number)]);
            if map[word] & bit == 0 {
                continue;
            }
            let record = self.records[self.at(number)];
            if !traces.contains(&record.trace) {
                continue;
            }
            if found.len() == AT_ONCE {
                break;
            }
            found.push(self.remembered(number, record));
        }
        found
    }

    fn remembered(&self, number: u64, record: Record) -> Remembered {
        let words = self.words.binary_search_by_key(&number, |(of, _)| *of);
        Remembered { record, words: words.ok().map(|at| self.words[at].1.clone()) }
    }

    fn oldest(&self) -> u64 {
        self.pushed - self.records.len() as u64
    }

    fn at(&self, number: u64) -> usize {
        (number % self.capacity as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spans::{Id, Label, What};

    fn record(trace: u128, span: u64, recorded: bool) -> Record {
        let what = What::Publish { channel: Label::default(), message: Id::NONE, why: None, duplicate: false };
        Record { trace, span, parent: 0, began: span, took: 1, flags: 0, recorded, failed: false, what }
    }

    fn spans(remembered: &[Remembered]) -> Vec<u64> {
        remembered.iter().map(|one| one.record.span).collect()
    }

    #[test]
    fn only_what_is_recorded_is_taken_and_only_once() {
        let mut ring = Ring::new(8);
        for span in 1..=4 {
            ring.push(record(1, span, span % 2 == 0), None);
        }
        assert_eq!((ring.waiting(), spans(&ring.take())), (2, vec![2, 4]));
        assert_eq!((ring.waiting(), ring.take().len()), (0, 0));
        ring.push(record(1, 5, true), None);
        assert_eq!((spans(&ring.take()), ring.dropped()), (vec![5], 0));
    }

    #[test]
    fn the_newest_overwrite_the_oldest_and_what_nobody_took_is_counted() {
        let mut ring = Ring::new(4);
        let first = ring.push(record(9, 1, true), Some("why"));
        assert_eq!(ring.get(first).map(|record| record.span), Some(1));
        for span in 2..=7 {
            ring.push(record(9, span, span != 3), None);
        }
        // 1, 2 and 3 are gone, of which 3 was not recorded.
        assert_eq!((ring.get(first), ring.dropped(), ring.waiting()), (None, 2, 4));
        assert_eq!(spans(&ring.take()), [4, 5, 6, 7]);
        for span in 8..=20 {
            ring.push(record(9, span, false), None);
        }
        assert_eq!(ring.dropped(), 2, "what was taken or never recorded is no loss");
    }

    #[test]
    fn a_recall_finds_all_of_a_trace_and_takes_nothing() {
        let mut ring = Ring::new(100);
        // These agree in the half that is looked at first.
        let (trace, twin) = (7 << 64 | 42, 8 << 64 | 42);
        ring.push(record(trace, 1, false), None);
        ring.push(record(twin, 2, true), None);
        ring.push(record(trace, 3, true), Some("refused"));
        ring.push(record(trace, 4, true), Some("broke"));
        let found = ring.recall(&[trace, 99]);
        assert_eq!(spans(&found), [1, 3, 4]);
        assert_eq!(
            found.iter().map(|one| one.words.as_deref()).collect::<Vec<_>>(),
            [None, Some("refused"), Some("broke")]
        );
        assert_eq!(spans(&ring.take()), [2, 3, 4]);
    }

    #[test]
    fn words_are_short_and_few() {
        let mut ring = Ring::new(10_000);
        for span in 0..=WORDS as u64 {
            ring.push(record(1, span, true), Some(&"ü".repeat(500)));
        }
        assert_eq!(ring.words.len(), WORDS);
        assert!(ring.words.iter().all(|(_, words)| words.len() <= WORDS_BYTES));
        let taken = ring.take();
        assert_eq!((taken.len(), ring.waiting()), (AT_ONCE, 1));
        assert!(taken[0].words.is_none() && taken[1].words.is_some());
        assert_eq!(ring.take().len(), 1);
    }

    proptest! {
        /// Whatever is recorded is taken once, or counted as dropped.
        #[test]
        fn nothing_is_lost_uncounted(capacity in 1usize..20, steps in prop::collection::vec(0u8..6, 0..200)) {
            let mut ring = Ring::new(capacity);
            let (mut recorded, mut taken) = (0u64, Vec::new());
            for (span, step) in steps.into_iter().enumerate() {
                match step {
                    0 => taken.extend(spans(&ring.take())),
                    step => {
                        recorded += u64::from(step > 2);
                        ring.push(record(1, span as u64, step > 2), None);
                    }
                }
                prop_assert_eq!(recorded, taken.len() as u64 + ring.dropped() + ring.waiting() as u64);
            }
            prop_assert!(taken.is_sorted());
        }
    }
}

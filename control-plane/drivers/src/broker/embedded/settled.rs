//! Which messages of a partition a group has settled: all below a floor, and ranges above it. Pure.
//!
//! Invariant: the ranges are disjoint, do not touch each other, and lie above the floor.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    floor: u64,
    /// Start to end, the end exclusive.
    above: BTreeMap<u64, u64>,
}

impl Settled {
    pub fn below(floor: u64) -> Self {
        Self { floor, above: BTreeMap::new() }
    }

    /// The first offset that is not settled.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Behind the last settled offset.
    pub fn end(&self) -> u64 {
        self.above.last_key_value().map_or(self.floor, |(_, end)| *end)
    }

    pub fn contains(&self, offset: u64) -> bool {
        offset < self.floor || self.above.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// The ranges above the floor, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.above.iter().map(|(start, end)| *start..*end)
    }

    /// The ranges before `to` that are not settled, in order.
    pub fn gaps(&self, to: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let starts = std::iter::once(self.floor).chain(self.above.values().copied());
        let ends = self.above.keys().copied().chain(std::iter::once(u64::MAX));
        starts.zip(ends).map(move |(start, end)| start..end.min(to)).take_while(|gap| gap.start < gap.end)
    }

    /// The first unsettled offset from `offset` on.
    pub fn next_unsettled(&self, offset: u64) -> u64 {
        let offset = offset.max(self.floor);
        match self.above.range(..=offset).next_back() {
            Some((_, end)) if offset < *end => *end,
            _ => offset,
        }
    }

    pub fn settle(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start.max(self.floor), range.end);
        if start >= end {
            return;
        }
        if let Some((&before, &until)) = self.above.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = self.above.range(start..=end).next() {
            self.above.remove(&next);
            end = end.max(until);
        }
        if start <= self.floor {
            self.floor = end;
        } else {
            self.above.insert(start, end);
        }
    }

    pub fn unsettle(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        if start >= end {
            return;
        }
        if start < self.floor {
            let floor = std::mem::replace(&mut self.floor, start);
            if end < floor {
                self.above.insert(end, floor);
            }
        }
        let touched: Vec<(u64, u64)> =
            self.above.range(..end).filter(|(_, until)| **until > start).map(|(from, until)| (*from, *until)).collect();
        for (from, until) in touched {
            self.above.remove(&from);
            if from < start {
                self.above.insert(from, start);
            }
            if until > end {
                self.above.insert(end, until);
            }
        }
    }

    /// The ranges as differences in LEB128, for the store; the floor is kept beside them.
    pub fn encode(&self) -> Vec<u8> {
        let (mut out, mut last) = (Vec::with_capacity(self.above.len() * 3), self.floor);
        for (&start, &end) in &self.above {
            for difference in [start - last, end - start] {
                let mut rest = difference;
                while rest >= 0x80 {
                    out.push((rest & 0x7f) as u8 | 0x80);
                    rest >>= 7;
                }
                out.push(rest as u8);
            }
            last = end;
        }
        out
    }

    /// What [`encode`](Self::encode) wrote; whatever cannot be understood of it counts as not settled.
    pub fn decode(floor: u64, bytes: &[u8]) -> Self {
        let mut settled = Self::below(floor);
        let (mut numbers, mut number, mut shift) = (Vec::new(), 0u64, 0);
        for byte in bytes {
            if shift > 56 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                numbers.push(std::mem::take(&mut number));
                shift = 0;
            }
        }
        let mut last = floor;
        for pair in numbers.as_chunks::<2>().0 {
            let Some(start) = last.checked_add(pair[0]) else { break };
            let Some(end) = start.checked_add(pair[1]) else { break };
            settled.settle(start..end);
            last = end;
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set of offsets.
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0..60u64, 0..12u64), 0..60), base in 0..10u64) {
            let mut settled = Settled::below(base);
            let mut model: BTreeSet<u64> = (0..base).collect();
            for (settle, start, length) in steps {
                let range = start..start + length;
                if settle {
                    model.extend(range.clone());
                    settled.settle(range);
                } else {
                    model.retain(|offset| !range.contains(offset));
                    settled.unsettle(range);
                }
                for offset in 0..80 {
                    prop_assert_eq!(settled.contains(offset), model.contains(&offset), "offset {} of {:?}", offset, settled);
                    let next = (offset..).find(|offset| !model.contains(offset));
                    prop_assert_eq!(Some(settled.next_unsettled(offset)), next);
                }
                let open: Vec<u64> = settled.gaps(80).flatten().collect();
                prop_assert_eq!(open, (0..80).filter(|offset| !model.contains(offset)).collect::<Vec<_>>());
                let mut last = settled.floor();
                for range in settled.ranges() {
                    prop_assert!(range.start > last && range.end > range.start, "{:?}", settled);
                    last = range.end;
                }
                prop_assert_eq!(&Settled::decode(settled.floor(), &settled.encode()), &settled);
            }
        }

        #[test]
        fn garbage_settles_nothing_below_the_floor(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(Settled::decode(7, &bytes).floor() >= 7);
        }
    }
}

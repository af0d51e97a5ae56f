//! Ports of meshctl's choice, remembered by what they are for, so that an address that a program was given stays true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Both ends included: `20000-29999`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl Default for PortRange {
    /// Below Linux's ephemeral ports, so that no outgoing connection takes one in between.
    fn default() -> Self {
        Self { first: 20_000, last: 29_999 }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let complaint = || format!("`{text}` is not a range of ports, such as 20000-29999");
        let (first, last) = text.split_once('-').ok_or_else(complaint)?;
        let parse = |part: &str| part.trim().parse::<u16>().map_err(|_| complaint());
        let (first, last) = (parse(first)?, parse(last)?);
        if first == 0 || last < first { Err(complaint()) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Who has which port. Owners are `edge/orders:inventory`, `metrics/1`, `instance/orders-3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    pub range: PortRange,
    /// Where the search begins, so that two systems on one machine rarely try the same port at the same moment.
    pub offset: u16,
    pub assigned: BTreeMap<String, u16>,
    /// Taken by anybody, as the kernel lists them.
    pub busy: BTreeSet<u16>,
    /// Fixed by the topology.
    pub reserved: BTreeSet<u16>,
}

impl Ports {
    /// The port of `owner`: the one it has, or the next that is free. `None` when the range is exhausted.
    pub fn assign(&mut self, owner: &str) -> Option<u16> {
        if let Some(port) = self.assigned.get(owner) {
            return Some(*port);
        }
        let port = self.next_free()?;
        self.assigned.insert(owner.to_owned(), port);
        // So that a long run of assignments does not walk over its own ports each time.
        self.offset = port.wrapping_sub(self.range.first).wrapping_add(1);
        Some(port)
    }

    pub fn release(&mut self, owner: &str) {
        self.assigned.remove(owner);
    }

    fn next_free(&self) -> Option<u16> {
        let size = u32::from(self.range.last - self.range.first) + 1;
        let taken: BTreeSet<u16> = self.assigned.values().copied().collect();
        (0..size)
            .map(|step| self.range.first + ((u32::from(self.offset) + step) % size) as u16)
            .find(|port| !taken.contains(port) && !self.busy.contains(port) && !self.reserved.contains(port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_ends_in_order() {
        assert_eq!("20000-29999".parse(), Ok(PortRange::default()));
        for range in ["", "1", "5-4", "0-9", "1-70000", "a-b"] {
            assert!(range.parse::<PortRange>().is_err(), "{range}");
        }
    }

    #[test]
    fn an_owner_keeps_its_port_and_nobody_gets_a_taken_one() {
        let mut ports = Ports { range: PortRange { first: 10, last: 13 }, offset: 3, ..Ports::default() };
        ports.busy.insert(10);
        ports.reserved.insert(11);
        assert_eq!(ports.assign("a"), Some(13));
        assert_eq!(ports.assign("a"), Some(13));
        assert_eq!(ports.assign("b"), Some(12));
        assert_eq!(ports.assign("c"), None);
        ports.release("a");
        assert_eq!(ports.assign("c"), Some(13));
    }
}

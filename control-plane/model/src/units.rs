//! Quantities as an operator writes them: `150ms`, `64KiB`, `20%`, `500/s`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time: `150ms`, `2s`, `1m30s`, `7d`. Whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(Duration);

impl Span {
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    pub const fn get(self) -> Duration {
        self.0
    }

    /// Milliseconds, saturating at `u64::MAX`.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The units of [`Span`], largest first, in milliseconds.
const SPAN_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let complaint =
            || format!("`{text}` is not a duration: write a number and a unit, such as 150ms, 2s, 5m, 1h or 7d");
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(complaint());
        }
        let mut total = 0f64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(complaint)?;
            let number: f64 = rest[..digits].parse().map_err(|_| complaint())?;
            let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
            let unit = &rest[digits..unit_end];
            let (_, scale) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(complaint)?;
            total += number * *scale as f64;
            rest = &rest[unit_end..];
        }
        // A hundred years: beyond it arithmetic on points in time overflows somewhere.
        if !total.is_finite() || total > 3.2e12 {
            return Err(format!("`{text}` is longer than a hundred years"));
        }
        Ok(Self::from_millis(total.round() as u64))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in SPAN_UNITS {
            let count = rest / scale;
            if count > 0 {
                write!(f, "{count}{unit}")?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

/// A number of bytes: `512`, `64KiB`, `1GiB` (powers of 1024), `10MB` (powers of 1000).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let complaint = || format!("`{text}` is not a size: write a number and a unit, such as 64KiB, 256MiB or 1GiB");
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let number: f64 = trimmed[..digits].parse().map_err(|_| complaint())?;
        let unit = trimmed[digits..].trim_start();
        let scale = match unit {
            "" => 1,
            _ => BYTE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(complaint)?.1,
        };
        let bytes = number * scale as f64;
        if bytes > 9e18 { Err(complaint()) } else { Ok(Self(bytes.round() as u64)) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, scale) in &BYTE_UNITS[..4] {
            if self.0 >= *scale && self.0.is_multiple_of(*scale) {
                return write!(f, "{}{unit}", self.0 / scale);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A share of a whole: `20%`, stored as 0.2.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Percent(pub f64);

impl Eq for Percent {}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let complaint = || format!("`{text}` is not a percentage between 0% and 100%, such as 20%");
        let number: f64 = text.trim().strip_suffix('%').and_then(|n| n.trim().parse().ok()).ok_or_else(complaint)?;
        if (0.0..=100.0).contains(&number) { Ok(Self(number / 100.0)) } else { Err(complaint()) }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", (self.0 * 1e6).round() / 1e4)
    }
}

/// How often: `500/s`, `30/m`, `1000/h`; stored per second.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Rate(pub f64);

impl Eq for Rate {}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let complaint = || format!("`{text}` is not a rate: write a number per unit of time, such as 500/s or 30/m");
        let (count, unit) = text.trim().split_once('/').ok_or_else(complaint)?;
        let count: f64 = count.trim().parse().map_err(|_| complaint())?;
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(complaint()),
        };
        if count > 0.0 && count.is_finite() { Ok(Self(count / seconds)) } else { Err(complaint()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// Text in YAML and JSON, a quantity in memory. `format` is what the structural pass looks at to parse the text where it
/// stands, so that a bad quantity is reported at its own line.
macro_rules! textual {
    ($type:ty, $format:literal, $pattern:literal, $example:literal, $about:literal) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "format": $format, "pattern": $pattern, "examples": [$example], "description": $about
                })
            }
        }
    };
}

textual!(Span, "duration-text", r"^([0-9.]+(ms|s|m|h|d))+$", "150ms", "A duration: 150ms, 2s, 5m, 1h, 7d.");
textual!(
    Bytes,
    "size",
    r"^[0-9.]+ ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?$",
    "64KiB",
    "A size in bytes: 64KiB, 256MiB, 1GiB."
);
textual!(Percent, "percent", r"^[0-9.]+ ?%$", "20%", "A percentage between 0% and 100%.");
textual!(Rate, "rate", r"^[0-9.]+ ?/ ?(s|m|h)$", "500/s", "A rate: 500/s, 30/m, 1000/h.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (text, ms) in
            [("150ms", 150), ("2s", 2_000), ("1m30s", 90_000), ("1.5s", 1_500), ("7d", 604_800_000), ("0s", 0)]
        {
            assert_eq!(text.parse::<Span>().map(Span::as_millis), Ok(ms), "{text}");
        }
        assert_eq!(Span::from_millis(90_000).to_string(), "1m30s");
        for bad in ["", "5", "s", "1x", "-1s", "99999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_percentages_and_rates_read_and_print() {
        assert_eq!("64KiB".parse(), Ok(Bytes(65_536)));
        assert_eq!(Bytes(268_435_456).to_string(), "256MiB");
        assert_eq!("20%".parse(), Ok(Percent(0.2)));
        assert_eq!(Percent(0.2).to_string(), "20%");
        assert_eq!("30/m".parse(), Ok(Rate(0.5)));
        for bad in ["101%", "20", "-1%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
    }
}

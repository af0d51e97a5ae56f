//! What stands behind options: `10k`, `500/s`, `Name: value`, objectives.

use meshctl_model::slo::{self, Objective};
use meshctl_model::units::Rate;

/// `64`, `10k`, `1.5M`.
fn number(text: &str) -> Option<f64> {
    let (digits, scale) = match text.trim() {
        text if text.ends_with(['k', 'K']) => (&text[..text.len() - 1], 1e3),
        text if text.ends_with('M') => (&text[..text.len() - 1], 1e6),
        text => (text, 1.0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    digits.parse::<f64>().ok().filter(|_| plain).map(|number| number * scale)
}

/// How many: at least one.
pub(super) fn count(text: &str) -> Result<u32, String> {
    match number(text) {
        Some(number) if (1.0..=1e6).contains(&number) && number.fract() == 0.0 => Ok(number as u32),
        _ => Err("write a whole number between 1 and 1M, such as 64 or 10k".into()),
    }
}

/// How often in a second: `500`, `10k/s`, `600/m`.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let (amount, per) = text.split_once('/').unwrap_or((text, "s"));
    let wrong = || "write a number for each second, such as 500, 10k/s or 600/m".to_owned();
    let amount = number(amount).ok_or_else(wrong)?;
    let rate: Rate = format!("{amount}/{per}").parse().map_err(|_| wrong())?;
    if rate.0 <= 1e7 { Ok(rate.0) } else { Err("nothing sends more than 10M/s".into()) }
}

/// `Name: value`, as curl has it.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `Name: value`")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("`{name}` is not the name of a header"));
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

pub(super) fn objectives(text: &str) -> Result<Vec<Objective>, String> {
    slo::parse(text).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_oha_writes_them() {
        for (text, expected) in [("1", 1), ("64", 64), ("10k", 10_000), ("1.5k", 1500), ("1M", 1_000_000)] {
            assert_eq!(count(text), Ok(expected), "{text}");
        }
        for wrong in ["0", "-1", "1.5", "k", "", "2M", "1e3", "ten", "inf"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
        for (text, expected) in [("500", 500.0), ("10k/s", 10_000.0), ("600/m", 10.0), ("0.5", 0.5), ("10k", 10_000.0)]
        {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for wrong in ["0", "fast", "5/y", "-1/s", "nan", "/s", "100M/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_read_as_curl_writes_them() {
        assert_eq!(header("X-Key:  a:b "), Ok(("X-Key".into(), "a:b".into())));
        assert!(header("X-Key").is_err() && header(": a").is_err() && header("a b: c").is_err());
    }
}

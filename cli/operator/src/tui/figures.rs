//! Numbers as the screen writes them: short, and of one length as far as it goes.

/// Per second, in as many digits as matter.
pub(super) fn rate(per_s: f64) -> String {
    match per_s {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate if rate < 10_000.0 => format!("{rate:.0}"),
        rate => format!("{:.1}k", rate / 1000.0),
    }
}

/// A share of a rate: `0.4%`.
pub(super) fn percent(part: f64, whole: f64) -> String {
    match share(part, whole) {
        0.0 => "0".to_owned(),
        share if share < 10.0 => format!("{share:.1}%"),
        share => format!("{share:.0}%"),
    }
}

pub(super) fn share(part: f64, whole: f64) -> f64 {
    if part <= 0.0 || whole <= 0.0 { 0.0 } else { (part / whole * 100.0).min(100.0) }
}

/// `1,234,567`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 0.25, 9.9, 120.4, 12_345.0].map(rate), ["0", "0.2", "9.9", "120", "12.3k"]);
        assert_eq!(
            [percent(0.0, 10.0), percent(0.1, 10.0), percent(9.0, 0.0), percent(5.0, 20.0)],
            ["0", "1.0%", "0", "25%"]
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

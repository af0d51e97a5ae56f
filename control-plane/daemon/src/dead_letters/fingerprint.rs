//! What failures have in common: the words of an error without the parts that differ from message to message.

use sha2::{Digest, Sha256};

/// The first 16 hexadecimal digits of SHA-256.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        // No part can end where the next begins.
        hash.update([0]);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The same for failures that look alike.
pub fn fingerprint(reason: &str, class: &str, status: Option<u16>, error: &str) -> String {
    let status = status.map(|status| status.to_string()).unwrap_or_default();
    digest([reason, class, &status, &alike(error)])
}

/// The error with `*` for everything in quotes, every number, and every word that is an id: hexadecimal digits (six or more,
/// a decimal one among them), in groups or not, as in a UUID.
fn alike(error: &str) -> String {
    let mut text = String::with_capacity(error.len());
    let mut rest = error;
    while let Some(first) = rest.chars().next() {
        let inside_word = text.ends_with(|c: char| c.is_alphanumeric());
        let quoted = matches!(first, '"' | '\'' | '`') && !inside_word;
        if let Some(end) = rest[first.len_utf8()..].find(first).filter(|_| quoted) {
            text.push('*');
            rest = &rest[end + 2 * first.len_utf8()..];
        } else if first.is_alphanumeric() {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '-')).unwrap_or(rest.len());
            word(&rest[..end], &mut text);
            rest = &rest[end..];
        } else {
            text.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    text
}

fn word(word: &str, text: &mut String) {
    let digits = word.chars().filter(char::is_ascii_hexdigit).count();
    let hexadecimal = word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if hexadecimal && digits >= 6 && word.contains(|c: char| c.is_ascii_digit()) {
        text.push('*');
        return;
    }
    let mut number = false;
    for c in word.chars() {
        if !c.is_ascii_digit() {
            text.push(c);
        } else if !number {
            text.push('*');
        }
        number = c.is_ascii_digit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_message_to_message_is_left_out() {
        let alike = |error| super::alike(error);
        assert_eq!(
            alike("POST /events/order-placed answered 422: no order 12 for customer \"Ann O'Hara\""),
            "POST /events/order-placed answered *: no order * for customer *"
        );
        assert_eq!(alike("no 0199f3c2-aaaa-7bcd-8123-0123456789ab here"), "no * here");
        assert_eq!(alike("commit deadbeef1 after 10ms in order-7781"), "commit * after *ms in order-*");
        assert_eq!(alike("can't find it, won't try"), "can't find it, won't try", "an apostrophe is no quote");
        assert_eq!(alike("decade of facade"), "decade of facade", "words of these letters are words");
        assert_eq!(alike("größe 12 – „x“ 'offen"), "größe * – „x“ 'offen");
    }

    #[test]
    fn failures_are_told_apart_by_reason_class_status_and_words() {
        let one = fingerprint("poison", "rejected", Some(422), "no order 12");
        assert_eq!(one, fingerprint("poison", "rejected", Some(422), "no order 13"));
        assert_ne!(one, fingerprint("poison", "rejected", Some(400), "no order 12"));
        assert_ne!(one, fingerprint("exhausted", "rejected", Some(422), "no order 12"));
        assert_ne!(one, fingerprint("poison", "rejected", Some(422), "no customer 12"));
    }
}

//! Ids of traces and spans as numbers, and as the text that the world writes: never zero, which OpenTelemetry calls invalid.

pub type TraceId = u128;
pub type SpanId = u64;

/// 32 hexadecimal digits of either case, and not zero.
pub fn trace(text: &str) -> Option<TraceId> {
    digits(text, 32).then(|| TraceId::from_str_radix(text, 16).ok()).flatten().filter(|id| *id != 0)
}

/// 16 hexadecimal digits of either case, and not zero.
pub fn span(text: &str) -> Option<SpanId> {
    digits(text, 16).then(|| SpanId::from_str_radix(text, 16).ok()).flatten().filter(|id| *id != 0)
}

fn digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub fn trace_text(id: TraceId) -> String {
    hexadecimal(&id.to_be_bytes())
}

pub fn span_text(id: SpanId) -> String {
    hexadecimal(&id.to_be_bytes())
}

/// Without the machinery of `format!`: two for every span that comes.
fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_and_print() {
        assert_eq!(
            trace("0af7651916cd43dd8448eb211c80319c").map(trace_text).as_deref(),
            Some("0af7651916cd43dd8448eb211c80319c")
        );
        assert_eq!(span("B7AD6B7169203331").map(span_text).as_deref(), Some("b7ad6b7169203331"));
        for none in [
            "",
            "0",
            "+af7651916cd43dd8448eb211c80319",
            "0af7651916cd43dd8448eb211c80319",
            "00000000000000000000000000000000",
        ] {
            assert_eq!(trace(none), None, "{none}");
        }
        assert_eq!(span("0000000000000000"), None);
    }
}

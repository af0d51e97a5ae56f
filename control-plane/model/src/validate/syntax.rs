//! The forms of names, addresses, paths, hosts, methods and headers.

use std::net::SocketAddr;

/// The name of a system: labels with dots and hyphens, 63 characters at most.
pub(super) fn is_name(text: &str) -> bool {
    framed(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit(), b"-.")
}

/// The name of a service: a DNS label.
pub(super) fn is_label(text: &str) -> bool {
    framed(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit(), b"-")
}

/// 1 to 63 bytes of `body`, or of `joints` but not at the ends.
fn framed(text: &str, body: fn(u8) -> bool, joints: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= 63 && body(*first) && body(*last) && bytes.iter().all(|b| body(*b) || joints.contains(b))
}

pub(super) fn is_env_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A token of HTTP (RFC 9110): a method or the name of a header.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The value of a header: visible characters, spaces and tabs, no space at the ends.
pub(super) fn is_header_value(text: &str) -> bool {
    text == text.trim() && !text.chars().any(|c| c.is_control() && c != '\t')
}

pub(super) fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

/// What is wrong with the path of a route.
pub(super) fn path_fault(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        Some("it does not begin with `/`")
    } else if path.contains(['?', '#']) {
        Some("a route looks at the path only, without `?` and `#`")
    } else if path.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Some("it contains a space or a control character")
    } else if path.split('/').any(|segment| segment.contains('*') && segment != "*") {
        Some("`*` stands for a whole segment")
    } else {
        None
    }
}

/// `shop.example.com`, `*.example.com`, `127.0.0.1`.
pub(super) fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let body = |b: u8| b.is_ascii_alphanumeric();
    name.len() <= 253 && name.split('.').all(|label| framed(label, body, b"-_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_hosts_and_ranges() {
        for path in ["/", "/*", "/a/*", "/users/*/cart", "/a-b/c.d", "/ä"] {
            assert_eq!(path_fault(path), None, "{path}");
        }
        for path in ["", "a", "/a*", "/a/b*", "/a?b", "/a b", "/**"] {
            assert!(path_fault(path).is_some(), "{path}");
        }
        for host in ["localhost", "a.b.c", "*.example.com", "127.0.0.1", "A.b"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "a:80", "*", "a.*.b", "http://a", "a..b", "-a"] {
            assert!(!is_host(host), "{host}");
        }
        assert!(is_label("a-1") && !is_label("A") && !is_label("a-") && !is_label("a.b") && is_name("a.b"));
    }
}

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

/// The name of a channel or a subscription: 100 characters at most that need no escaping in a path, and never `..`.
pub(super) fn is_channel(text: &str) -> bool {
    framed_to(100, text, |b| b.is_ascii_alphanumeric(), b".-_")
}

/// 1 to 63 bytes of `body`, or of `joints` but not at the ends.
fn framed(text: &str, body: fn(u8) -> bool, joints: &[u8]) -> bool {
    framed_to(63, text, body, joints)
}

fn framed_to(most: usize, text: &str, body: fn(u8) -> bool, joints: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    bytes.len() <= most && body(*first) && body(*last) && bytes.iter().all(|b| body(*b) || joints.contains(b))
}

/// What may follow an address in a URL: a path, with a query or without, and everything escaped that has to be.
pub(super) fn is_url_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"#<>\"\\^`{|}".contains(&b))
}

/// The way to a field of a JSON payload: `orderId`, `customer.id`.
pub(super) fn is_field_path(text: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"$/[]".contains(c);
    text.split('.').all(|part| !part.is_empty() && part.chars().all(plain))
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
        for path in ["/", "/events/order-placed", "/a?b=c", "/%C3%A4"] {
            assert!(is_url_path(path), "{path}");
        }
        for path in ["", "events", "http://a/b", "/a b", "/ä", "/a#b", "/{id}"] {
            assert!(!is_url_path(path), "{path}");
        }
        for path in ["orderId", "customer.id", "a-b.c_d"] {
            assert!(is_field_path(path), "{path}");
        }
        for path in ["", ".", "a..b", "$.a", "/a", "a[0]", "a b"] {
            assert!(!is_field_path(path), "{path}");
        }
        assert!(is_channel("order.placed") && is_channel("A_1-b") && !is_channel("..") && !is_channel("a/b"));
        assert!(is_channel(&"a".repeat(100)) && !is_channel(&"a".repeat(101)));
        assert!(is_label("a-1") && !is_label("A") && !is_label("a-") && !is_label("a.b") && is_name("a.b"));
    }
}

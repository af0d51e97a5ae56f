//! What a proxy owes both sides: hop-by-hop fields end here, and the callee learns for whom we ask.

use std::cell::RefCell;
use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, Entry, FORWARDED, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Tells a callee which of our services asks. Only we say that: what a client says of itself is replaced or removed.
pub(crate) const CALLER: HeaderName = HeaderName::from_static("meshctl-caller");

/// Removes what concerns one connection only (RFC 9110, 7.6.1), the fields that `Connection` names included.
/// `TE: trailers` may pass, because trailers do.
pub(crate) fn end_hop(headers: &mut HeaderMap) {
    // Most messages have none of these: one look over the names is cheaper than a search for each.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Fields that frame or route the message are never the sender's to drop.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TE)
        .collect();
    let te = headers.remove(TE);
    named.iter().chain(&HOP_BY_HOP).for_each(|name| drop(headers.remove(name)));
    if let Some(te) = te {
        let trailers = te.to_str().is_ok_and(|te| te.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")));
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// The protocol that a request asks to change to, if it does.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(UPGRADE)?;
    let asked = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    asked
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        .then(|| upgrade.clone())
}

/// The client of one connection, as forwarding fields name it. Most connections ask one host only, so the whole
/// `Forwarded` value is kept for the next request.
#[derive(Debug)]
pub(crate) struct Origin {
    address: HeaderValue,
    node: String,
    last: RefCell<Option<(Option<HeaderValue>, HeaderValue)>>,
}

impl Origin {
    pub(crate) fn new(client: IpAddr) -> Self {
        let client = client.to_canonical();
        let node = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
        let address = HeaderValue::from_maybe_shared(bytes::Bytes::from(client.to_string()));
        Self {
            address: address.unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            node,
            last: RefCell::default(),
        }
    }

    /// Appends this hop to `Forwarded` (RFC 7239) and to its customary forerunners. `outermost`: the client is not one
    /// of ours, and what it says of the hops before it is removed, because callees would believe it.
    pub(crate) fn tell(&self, headers: &mut HeaderMap, host: Option<&HeaderValue>, outermost: bool) {
        if outermost {
            [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO]
                .iter()
                .for_each(|name| drop(headers.remove(name)));
        }
        let element = self.element(host);
        append(headers, FORWARDED, &element);
        append(headers, X_FORWARDED_FOR, &self.address);
        if let (Some(host), Entry::Vacant(place)) = (host, headers.entry(X_FORWARDED_HOST)) {
            place.insert(host.clone());
        }
        if let Entry::Vacant(place) = headers.entry(X_FORWARDED_PROTO) {
            place.insert(HeaderValue::from_static("http"));
        }
    }

    fn element(&self, host: Option<&HeaderValue>) -> HeaderValue {
        if let Some((last, element)) = &*self.last.borrow()
            && last.as_ref() == host
        {
            return element.clone();
        }
        // A host that came through our checks holds nothing that would end a quoted string.
        let named = host.and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty());
        let named = named.map_or(String::new(), |host| format!(";host=\"{host}\""));
        let text = format!("for={}{named};proto=http", self.node);
        let element = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("for=unknown"));
        *self.last.borrow_mut() = Some((host.cloned(), element.clone()));
        element
    }
}

/// Adds to a list field; the usual case of no list yet shares the value instead of copying it.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(place) => {
            place.insert(value.clone());
        }
        Entry::Occupied(mut place) => {
            let all: Vec<&[u8]> = place.iter().chain([value]).map(HeaderValue::as_bytes).collect();
            let joined = HeaderValue::from_maybe_shared(bytes::Bytes::from(all.join(&b", "[..])));
            place.insert(joined.unwrap_or_else(|_| value.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hop_by_hop_fields_end() {
        let mut present = headers(&[
            ("connection", "close, X-Session"),
            ("connection", "keep-alive, host, content-length"),
            ("keep-alive", "timeout=5"),
            ("x-session", "7"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-connection", "keep-alive"),
            ("host", "shop"),
            ("content-length", "3"),
            ("x-kept", "1"),
        ]);
        end_hop(&mut present);
        assert_eq!(present, headers(&[("te", "trailers"), ("host", "shop"), ("content-length", "3"), ("x-kept", "1")]));
    }

    #[test]
    fn the_client_is_told() {
        let origin = Origin::new("::ffff:10.0.0.7".parse().expect("an address"));
        let host = HeaderValue::from_static("shop:8080");
        let mut fresh = HeaderMap::new();
        origin.tell(&mut fresh, Some(&host), false);
        assert_eq!(fresh[FORWARDED], "for=10.0.0.7;host=\"shop:8080\";proto=http");
        assert_eq!((&fresh[X_FORWARDED_FOR], &fresh[X_FORWARDED_HOST]), (&"10.0.0.7".parse().expect("value"), &host));
        let mut chained =
            headers(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("x-forwarded-proto", "https")]);
        Origin::new("::1".parse().expect("an address")).tell(&mut chained, None, false);
        assert_eq!(chained[X_FORWARDED_FOR], "1.1.1.1, 2.2.2.2, ::1");
        assert_eq!(chained[X_FORWARDED_PROTO], "https");
        assert_eq!(chained[FORWARDED], "for=\"[::1]\";proto=http");
    }

    #[test]
    fn what_an_outsider_says_of_itself_is_not_passed_on() {
        let mut claimed = headers(&[
            ("forwarded", "for=10.0.0.1;proto=https"),
            ("forwarded", "for=10.0.0.2"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "admin.internal"),
            ("x-forwarded-proto", "https"),
        ]);
        let host = HeaderValue::from_static("shop");
        Origin::new("192.0.2.7".parse().expect("an address")).tell(&mut claimed, Some(&host), true);
        let told = [
            ("forwarded", "for=192.0.2.7;host=\"shop\";proto=http"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "shop"),
            ("x-forwarded-proto", "http"),
        ];
        assert_eq!(claimed, headers(&told));
    }

    #[test]
    fn upgrade_needs_both_fields() {
        assert!(upgrade(&headers(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")])).is_some());
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&headers(&[("connection", "upgrade")])).is_none());
    }
}

//! The key of a message out of its JSON payload, without taking the payload apart: all but the way to the field is passed over.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The text, number or boolean at `path` (names separated by dots). `None` when there is none, or the payload is no JSON
/// object.
pub(crate) fn find(payload: &[u8], path: &str) -> Option<String> {
    let mut json = serde_json::Deserializer::from_slice(payload);
    let found = Field(Some(path)).deserialize(&mut json).ok()?;
    json.end().ok()?;
    found
}

/// What is left of the way; `None` where this is the value itself.
#[derive(Clone, Copy)]
struct Field<'a>(Option<&'a str>);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Self::Value, D::Error> {
        value.deserialize_any(self)
    }
}

impl Field<'_> {
    fn value(self, text: impl ToString) -> Option<String> {
        self.0.is_none().then(|| text.to_string())
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (name, rest) = match self.0.map(|path| path.split_once('.')) {
            Some(Some((name, rest))) => (Some(name), Some(rest)),
            Some(None) => (self.0, None),
            None => (None, None),
        };
        let mut found = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if Some(&*key) == name {
                found = map.next_value_seed(Field(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
        while all.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.value(text))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.value(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.value(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.value(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.value(value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_fields_of_fields() {
        let payload =
            br#"{"skip":[{"orderId":"no"}],"orderId":"o-1","customer":{"id":7,"name":null},"n":-2.5,"b":true}"#;
        let of = |path| find(payload, path);
        assert_eq!(of("orderId").as_deref(), Some("o-1"));
        assert_eq!(of("customer.id").as_deref(), Some("7"));
        assert_eq!(of("n").as_deref(), Some("-2.5"));
        assert_eq!(of("b").as_deref(), Some("true"));
        for nothing in ["customer", "customer.name", "customer.none", "orderId.x", "skip", "skip.orderId", ""] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        for no_object in [&b""[..], b"[1]", b"\"orderId\"", b"{\"orderId\":\"a\"", b"{\"orderId\":\"a\"} x", b"\xff"] {
            assert_eq!(find(no_object, "orderId"), None);
        }
    }
}

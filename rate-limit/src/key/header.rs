//! Keys from a header that the client sends.

use http::HeaderName;

use super::Key;

/// The value of a header, for example an API key. Missing if the header is absent, empty, or
/// appears more than once.
///
/// A client can send any value it likes, and so a new quota with each request. Only use headers
/// that are authenticated before this layer, or set by your own proxy.
///
/// # Panics
///
/// Panics if `name` is not a valid header name.
#[must_use]
pub fn header(name: &str) -> Key {
    let name: HeaderName = match name.parse() {
        Ok(name) => name,
        Err(_) => panic!("header {name:?}, expected a valid header name"),
    };
    Key::new(format!("header {name}"), move |head, seed| {
        let mut values = head.headers().get_all(&name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) if !value.is_empty() => Some(seed.hash_one(value.as_bytes())),
            _ => None,
        }
    })
}

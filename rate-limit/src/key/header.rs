//! Keys from a header that the client sends.

use http::HeaderName;

use super::Key;

/// The value of a header, for example an API key. Missing when the header is absent or appears
/// more than once.
///
/// A client can send any value it likes, and so a new quota with each request. Only use headers
/// that are authenticated before this layer, or set by your own proxy.
///
/// # Panics
///
/// Panics when `name` is not a valid lower-case header name.
#[must_use]
pub fn header(name: &'static str) -> Key {
    let name = HeaderName::from_static(name);
    Key::new(format!("header {name}"), move |head, seed| {
        let mut values = head.headers().get_all(&name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Some(seed.hash_one(value.as_bytes())),
            _ => None,
        }
    })
}

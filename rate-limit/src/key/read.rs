//! Keys that are read from one part of a request, or by a function.

use std::hash::{Hash, Hasher};

use super::{Key, KeyedBy, RequestHead};

/// The same quota for every request.
#[must_use]
pub fn global() -> Key {
    Key::new("global", |_, seed| Some(seed.hash_one(()))).with_keyed_by(KeyedBy::Nothing)
}

/// The path of the request, without its query. With axum, prefer the matched route through
/// [`from_fn`]: raw paths are as many as clients care to invent.
#[must_use]
pub fn path() -> Key {
    Key::new("path", |head, seed| Some(seed.hash_one(head.uri().path())))
}

/// A value that an earlier middleware left in the request's extensions: a user id, the claims of
/// a token.
///
/// ```
/// use rate_limit::key;
///
/// #[derive(Clone, Hash)]
/// struct UserId(u64);
///
/// let by_user = key::extension::<UserId>();
/// ```
#[must_use]
pub fn extension<T: Hash + Send + Sync + 'static>() -> Key {
    Key::new("extension", |head, seed| {
        Some(seed.hash_one(head.extensions().get::<T>()?))
    })
}

/// Whatever `find` returns; `None` when the request has no key.
///
/// ```
/// use rate_limit::key;
///
/// // One quota for each first segment of the path.
/// let by_area = key::from_fn(|request| request.uri().path().split('/').nth(1).map(str::to_owned));
/// ```
#[must_use]
pub fn from_fn<K: Hash>(
    find: impl Fn(&RequestHead<'_>) -> Option<K> + Send + Sync + 'static,
) -> Key {
    Key::new("function", move |head, seed| {
        Some(seed.hash_one(find(head)?))
    })
}

/// Whatever `write` feeds to the hasher, for keys that borrow from the request; `false` when the
/// request has no key.
///
/// ```
/// use std::hash::Hash;
/// use rate_limit::key;
///
/// let by_query = key::hashed(|request, mut hasher| match request.uri().query() {
///     Some(query) => {
///         query.hash(&mut hasher);
///         true
///     }
///     None => false,
/// });
/// ```
#[must_use]
pub fn hashed(
    write: impl Fn(&RequestHead<'_>, &mut dyn Hasher) -> bool + Send + Sync + 'static,
) -> Key {
    Key::new("function", move |head, seed| {
        seed.hash_written(|hasher| write(head, hasher))
    })
}

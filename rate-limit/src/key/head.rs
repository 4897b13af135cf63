//! A request without its body.

use http::{
    Extensions, HeaderMap, Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};

/// A request without its body: what keys, predicates and hooks get to see.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// The head of `request`.
    #[inline]
    #[must_use]
    pub fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The target.
    #[must_use]
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The HTTP version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The headers.
    #[inline]
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The length that the client declared for the body, if it declared a valid one. To charge by
    /// the length use [`body_length`](Self::body_length), which a chunked body cannot evade.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.headers
            .get(CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// How long the body is, if that is known: as declared, or none at all for HTTP/1 requests that
    /// announce no body and for methods that have none. `None` for a body of undeclared length
    /// (chunked, or HTTP/2 without `content-length`).
    #[must_use]
    pub fn body_length(&self) -> Option<u64> {
        let headers = self.headers;
        if headers.contains_key(TRANSFER_ENCODING) {
            return None;
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return self.content_length();
        }
        let announces = self.version <= Version::HTTP_11;
        let has_none = [
            &Method::GET,
            &Method::HEAD,
            &Method::OPTIONS,
            &Method::DELETE,
        ];
        (announces || has_none.contains(&self.method)).then_some(0)
    }

    /// The extensions, where servers leave the peer address and middleware its findings.
    #[inline]
    #[must_use]
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

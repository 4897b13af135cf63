use std::{
    fmt,
    sync::{Arc, Mutex},
};

use http::{
    HeaderMap, HeaderName, Method, Version,
    header::{CONNECTION, UPGRADE},
};

use super::slot::Slot;
use crate::{Outcome, sync::lock};

/// The permit of a request that asks for an upgrade, for the task that serves the upgraded
/// connection.
///
/// A WebSocket's response body ends when the handshake does, and the permit with it. The layer
/// therefore puts this guard into the extensions of every request that asks for an upgrade; as long
/// as one clone of it lives, the permit is out. A handler that ignores it returns the permit with
/// the handshake.
///
/// A request asks for an upgrade if its method is `CONNECT`, over any version of HTTP (RFC 8441 and
/// RFC 9220 for WebSockets), or if its `Connection` header names `upgrade` and its `Upgrade` header
/// names `websocket` or one of the
/// [`upgrade_protocols`](crate::CapacityLayer::upgrade_protocols) of the layer. Any other `Upgrade`,
/// such as `h2c`, may be ignored by a server (RFC 9110 §7.8), and such a request is like any other.
///
/// It is the permit of the request, unless upgraded connections have a limiter of their own: see
/// [`CapacityLayer::upgrades`](crate::CapacityLayer::upgrades). Behind several layers it holds the
/// permits of all of them; of a request that bypassed the layer it holds nothing.
///
/// ```
/// use axum::{Extension, extract::ws::WebSocketUpgrade, response::Response};
/// use tower_capacity::UpgradePermit;
///
/// async fn socket(upgrade: WebSocketUpgrade, Extension(permit): Extension<UpgradePermit>) -> Response {
///     upgrade.on_upgrade(move |mut socket| async move {
///         let _permit = permit;
///         while let Some(Ok(message)) = socket.recv().await {
///             if socket.send(message).await.is_err() {
///                 break;
///             }
///         }
///     })
/// }
/// # let _router: axum::Router = axum::Router::new().route("/", axum::routing::any(socket));
/// ```
#[derive(Clone)]
pub struct UpgradePermit {
    slot: Arc<Mutex<Slot>>,
    /// That of the layers further out.
    outer: Option<Arc<Self>>,
}

impl UpgradePermit {
    pub(super) fn new(slot: Arc<Mutex<Slot>>) -> Self {
        Self { slot, outer: None }
    }

    /// Holds the permits of the layers further out too.
    pub(super) fn within(mut self, outer: Option<Self>) -> Self {
        self.outer = outer.map(Arc::new);
        self
    }

    pub(super) fn complete(&self, outcome: Outcome) {
        lock(&self.slot).complete(outcome);
    }
}

impl fmt::Debug for UpgradePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradePermit").finish_non_exhaustive()
    }
}

/// Which protocols of an `Upgrade` header make a connection that lasts.
pub(super) type Protocols = Arc<[Box<str>]>;

/// Whether the caller wants to go on with another protocol on this connection or stream.
#[inline]
pub(super) fn asks_for_upgrade(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    protocols: Option<&Protocols>,
) -> bool {
    *method == Method::CONNECT
        || headers.contains_key(UPGRADE) && names_protocol(version, headers, protocols)
}

/// Whether `Upgrade` names one of the protocols, and `Connection` names `Upgrade` (RFC 9110 §7.8:
/// other versions than 1.1 have no such header).
#[cold]
fn names_protocol(version: Version, headers: &HeaderMap, protocols: Option<&Protocols>) -> bool {
    let is_counted = |offered: &str| {
        let (name, _version) = offered.split_once('/').unwrap_or((offered, ""));
        match protocols {
            Some(protocols) => protocols.iter().any(|p| p.eq_ignore_ascii_case(name)),
            None => name.eq_ignore_ascii_case("websocket"),
        }
    };
    version == Version::HTTP_11
        && list(headers, CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"))
        && list(headers, UPGRADE).any(is_counted)
}

/// The members of a list that may be spread over several fields.
fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asks(request: http::request::Builder, protocols: Option<&Protocols>) -> bool {
        let request = request.body(()).unwrap();
        let (method, headers) = (request.method(), request.headers());
        asks_for_upgrade(method, request.version(), headers, protocols)
    }

    fn upgrade(connection: &str, protocol: &str) -> http::request::Builder {
        Request::builder()
            .header("connection", connection)
            .header("upgrade", protocol)
    }

    #[test]
    fn a_websocket_asks_for_an_upgrade_where_connection_names_it() {
        assert!(asks(upgrade("Upgrade", "websocket"), None));
        assert!(asks(upgrade("keep-alive, upgrade", "WebSocket"), None));
        assert!(asks(upgrade("upgrade", "h2c, websocket"), None));
        assert!(!asks(upgrade("close", "websocket"), None));
        assert!(!asks(
            upgrade("upgrade", "websocket").version(Version::HTTP_10),
            None
        ));
        let without = Request::builder().header("upgrade", "websocket");
        assert!(!asks(without, None));
    }

    #[test]
    fn h2c_and_unknown_protocols_ask_for_nothing() {
        assert!(!asks(upgrade("Upgrade, HTTP2-Settings", "h2c"), None));
        assert!(!asks(upgrade("upgrade", "foo"), None));
    }

    #[test]
    fn named_protocols_replace_the_default() {
        let protocols: Protocols = Arc::new(["SPDY".into()]);
        assert!(asks(upgrade("upgrade", "spdy/3.1"), Some(&protocols)));
        assert!(!asks(upgrade("upgrade", "websocket"), Some(&protocols)));
    }

    #[test]
    fn connect_asks_for_an_upgrade_in_every_version() {
        for version in [Version::HTTP_11, Version::HTTP_2, Version::HTTP_3] {
            let connect = Request::connect("example.com:443").version(version);
            assert!(asks(connect, None), "{version:?}");
        }
    }
}

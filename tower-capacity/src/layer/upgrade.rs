use std::{
    fmt,
    sync::{Arc, Mutex},
};

use http::{
    HeaderMap, Method, Request, Version,
    header::{CONNECTION, UPGRADE},
};

use crate::{Admission, Outcome, sync::lock};

/// The permit of a request that asks for an upgrade, for the task that serves the upgraded
/// connection.
///
/// A WebSocket's response body ends when the handshake does, and the permit with it. The layer
/// therefore puts this guard into the extensions of every request that asks for an upgrade (an
/// `Upgrade` header, or an extended `CONNECT`); as long as one clone of it lives, the permit is
/// out. A handler that ignores it returns the permit with the handshake.
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
    admission: Arc<Mutex<Admission>>,
}

impl fmt::Debug for UpgradePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradePermit").finish_non_exhaustive()
    }
}

/// The admission of a request on its way through the layer.
#[derive(Debug)]
pub(super) enum Held {
    Alone(Admission),
    Shared(UpgradePermit),
}

impl Held {
    /// Shares the permit with the handler if the request asks for an upgrade.
    pub(super) fn new<B>(admission: Admission, request: &mut Request<B>) -> Self {
        if !asks_for_upgrade(request.method(), request.version(), request.headers()) {
            return Self::Alone(admission);
        }
        let permit = UpgradePermit {
            admission: Arc::new(Mutex::new(admission)),
        };
        request.extensions_mut().insert(permit.clone());
        Self::Shared(permit)
    }

    pub(super) fn complete(&mut self, outcome: Outcome) {
        match self {
            Self::Alone(admission) => admission.complete(outcome),
            Self::Shared(permit) => lock(&permit.admission).complete(outcome),
        }
    }
}

fn asks_for_upgrade(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    match version {
        // RFC 9110 section 7.8: the header counts only if `Connection` names it.
        Version::HTTP_11 | Version::HTTP_10 => {
            headers.contains_key(UPGRADE) && headers.contains_key(CONNECTION)
        }
        // RFC 8441 and RFC 9220: WebSockets over HTTP/2 and HTTP/3.
        _ => method == Method::CONNECT,
    }
}

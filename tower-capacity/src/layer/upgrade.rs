use std::{
    fmt,
    sync::{Arc, Mutex},
};

use http::{
    Method, Request, StatusCode, Version,
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
/// It is the permit of the request, unless upgraded connections have a limiter of their own: see
/// [`CapacityLayer::upgrades`](crate::CapacityLayer::upgrades).
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

/// What a request holds on its way through the layer.
#[derive(Debug)]
pub(super) enum Held {
    Alone(Admission),
    /// The permit of the request is the handler's too, should the connection be upgraded.
    Shared(UpgradePermit),
    /// Upgraded connections have a limiter of their own.
    Apart(Box<Apart>),
}

/// The handler shares the permit of the upgraded connection; that of the request returns when the
/// connection is upgraded.
#[derive(Debug)]
pub(super) struct Apart {
    request: Option<Admission>,
    upgrade: UpgradePermit,
    is_connect: bool,
}

impl Held {
    /// Shares a permit with the handler if the request asks for an upgrade: its own, or that of
    /// the limiter of upgraded connections.
    pub(super) fn new<B>(
        admission: Admission,
        upgrade: Option<UpgradePermit>,
        request: &mut Request<B>,
    ) -> Self {
        if let Some(upgrade) = upgrade {
            request.extensions_mut().insert(upgrade.clone());
            return Self::Apart(Box::new(Apart {
                request: Some(admission),
                upgrade,
                is_connect: request.method() == Method::CONNECT,
            }));
        }
        if asks_for_upgrade(request) {
            let permit = UpgradePermit::new(admission);
            request.extensions_mut().insert(permit.clone());
            return Self::Shared(permit);
        }
        Self::Alone(admission)
    }

    pub(super) fn complete(&mut self, outcome: Outcome) {
        match self {
            Self::Alone(admission) => admission.complete(outcome),
            Self::Shared(permit) => permit.complete(outcome),
            Self::Apart(apart) => {
                if let Some(request) = &mut apart.request {
                    request.complete(outcome);
                }
                apart.upgrade.complete(outcome);
            }
        }
    }

    /// Returns the permit of a request whose answer has `status`, if that upgrades the connection
    /// and the connection is counted apart.
    pub(super) fn answered(&mut self, status: StatusCode) {
        if let Self::Apart(apart) = self {
            let upgrades = status == StatusCode::SWITCHING_PROTOCOLS
                || apart.is_connect && status.is_success();
            if upgrades {
                apart.request = None;
            }
        }
    }
}

impl UpgradePermit {
    pub(super) fn new(admission: Admission) -> Self {
        Self {
            admission: Arc::new(Mutex::new(admission)),
        }
    }

    fn complete(&self, outcome: Outcome) {
        lock(&self.admission).complete(outcome);
    }
}

/// Whether the caller wants to go on with another protocol on this connection or stream.
pub(super) fn asks_for_upgrade<B>(request: &Request<B>) -> bool {
    match request.version() {
        // RFC 9110 section 7.8: the header counts only if `Connection` names it.
        Version::HTTP_11 | Version::HTTP_10 => {
            let headers = request.headers();
            headers.contains_key(UPGRADE) && headers.contains_key(CONNECTION)
        }
        // RFC 8441 and RFC 9220: WebSockets over HTTP/2 and HTTP/3.
        _ => request.method() == Method::CONNECT,
    }
}

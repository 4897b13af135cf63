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

/// What a request holds on its way through the layer. Two words, since it moves with each response.
#[derive(Debug)]
pub(super) enum Held {
    /// The permit of a request that asks for no upgrade.
    Alone(Admission),
    /// Nothing, or what a request holds that asks for an upgrade.
    Other(Option<Box<Upgrade>>),
}

#[derive(Debug)]
pub(super) struct Upgrade {
    /// That of the request, unless its handler shares it.
    admission: Option<Admission>,
    /// The permit that the handler shares: that of the request, or that of the connection if such
    /// have a limiter of their own.
    permit: UpgradePermit,
    is_connect: bool,
}

impl Held {
    /// What a request holds that bypassed the limiter.
    pub(super) const NOTHING: Self = Self::Other(None);

    /// Shares a permit with the handler of a request that asks for an upgrade: its own, or that of
    /// the limiter of upgraded connections.
    pub(super) fn shared<B>(
        admission: Admission,
        apart: Option<UpgradePermit>,
        request: &mut Request<B>,
    ) -> Self {
        let (admission, permit) = match apart {
            Some(permit) => (Some(admission), permit),
            None => (None, UpgradePermit::new(admission)),
        };
        request.extensions_mut().insert(permit.clone());
        Self::Other(Some(Box::new(Upgrade {
            admission,
            permit,
            is_connect: request.method() == Method::CONNECT,
        })))
    }

    pub(super) const fn is_nothing(&self) -> bool {
        matches!(self, Self::Other(None))
    }

    #[inline]
    pub(super) fn complete(&mut self, outcome: Outcome) {
        match self {
            Self::Alone(admission) => admission.complete(outcome),
            Self::Other(None) => {}
            Self::Other(Some(upgrade)) => {
                if let Some(admission) = &mut upgrade.admission {
                    admission.complete(outcome);
                }
                upgrade.permit.complete(outcome);
            }
        }
    }

    /// Returns the permit of a request whose answer has `status`, if that upgrades the connection
    /// and the connection is counted apart.
    #[inline]
    pub(super) fn answered(&mut self, status: StatusCode) {
        if let Self::Other(Some(upgrade)) = self
            && (status == StatusCode::SWITCHING_PROTOCOLS
                || upgrade.is_connect && status.is_success())
        {
            upgrade.admission = None;
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

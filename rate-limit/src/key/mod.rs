//! The caller that a request is charged to.
//!
//! A [`Key`] reads a request's head and hashes what it finds with a secret of the limiter's, so
//! no client can choose keys that collide. Nothing is allocated and only the hash is kept.
//!
//! ```
//! use rate_limit::key;
//!
//! let by_address = key::peer();
//! let by_token = key::header("x-api-key");
//! let by_tenant_and_route = key::header("x-tenant").and(key::path());
//! let by_token_or_address = key::header("x-api-key").or(key::peer());
//! let by_client_behind_proxies = key::forwarded(key::Trust::networks(["10.0.0.0/8"])?);
//! # Ok::<(), key::NetworkError>(())
//! ```

mod address;
mod forwarded;
mod head;
mod header;
#[expect(
    clippy::module_inception,
    reason = "the type that gives the module its name"
)]
mod key;
mod list;
mod missing;
mod network;
mod peer;
mod read;
mod resolve;
mod seed;

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use self::peer::connect_info;
pub use self::{
    forwarded::{ForwardedHeader, ForwardedKey, Trust, forwarded},
    head::RequestHead,
    header::header,
    key::Key,
    list::{AccessList, AccessLists},
    missing::MissingKey,
    network::{Network, NetworkError},
    peer::{PeerAddr, PeerKey, peer, peer_from},
    read::{extension, from_fn, global, hashed, path},
    resolve::{Resolve, ResolveFuture, ResolveLayer},
};
pub(crate) use self::{key::KeyedBy, list::Lists, seed::Seed};

//! What a connection pool has to offer to be tuned.
//!
//! Adapters for deadpool, bb8 and sqlx are in modules of those names, behind features of the same
//! names: `sqlx` is the newest, `sqlx-0_8` and `sqlx-0_9` are one version each. Any other pool needs an
//! [`Adapter`], about sixty lines.
//!
//! # Writing one
//!
//! The pool is built once at its hard maximum and never resized: the gate in front decides how
//! many connections are out, so the pool itself never makes a checkout wait. What is asked of it:
//!
//! - [`checkout`](Adapter::checkout) reuses an idle connection if there is one, else opens one.
//!   It must not open one while it has an idle one, and must open it in its own future, not in a
//!   task that goes on when the checkout is cancelled: this is what keeps the number of connections
//!   under the limit.
//! - [`put_back`](Adapter::put_back) makes a connection idle again. The permit is handed on right
//!   after, and its next owner should find it idle. If dropping a connection is enough, there is
//!   nothing to write.
//! - [`close_idle`](Adapter::close_idle) closes idle connections, and nothing else is ever asked
//!   to shrink the pool. A connection in use when the limit falls comes back first and is closed
//!   from there.

#[expect(
    clippy::module_inception,
    reason = "the trait that gives the module its name"
)]
mod adapter;
#[cfg(feature = "bb8")]
pub mod bb8;
#[cfg(feature = "deadpool")]
pub mod deadpool;
#[cfg(feature = "sqlx-0_8")]
pub mod sqlx_0_8;
#[cfg(feature = "sqlx-0_9")]
pub mod sqlx_0_9;

pub use self::adapter::{Adapter, Checked, PutBack};
#[cfg(feature = "sqlx")]
#[doc(no_inline)]
pub use self::sqlx_0_9 as sqlx;

//! Guides, for what has to be decided and not only called.

#[doc = include_str!("load_test.md")]
pub mod load_test {}

#[doc = include_str!("migrate.md")]
pub mod migrate {}

#[doc = include_str!("roll_out.md")]
pub mod roll_out {}

#[doc = include_str!("streams.md")]
pub mod streams {}

#[doc = include_str!("why_refused.md")]
pub mod why_refused {}

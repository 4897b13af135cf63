//! Guides, for what has to be decided and not only called.

#[doc = include_str!("behind_a_proxy.md")]
pub mod behind_a_proxy {}

#[doc = include_str!("choose_a_quota.md")]
pub mod choose_a_quota {}

#[doc = include_str!("migrate.md")]
pub mod migrate {}

#[doc = include_str!("roll_out.md")]
pub mod roll_out {}

#[doc = include_str!("several_processes.md")]
pub mod several_processes {}

#[doc = include_str!("why_refused.md")]
pub mod why_refused {}

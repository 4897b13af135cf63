//! Guides, for what has to be decided and not only called.

#[doc = include_str!("migrate.md")]
pub mod migrate {}

#[doc = include_str!("roll_out.md")]
pub mod roll_out {}

#[doc = include_str!("several_processes.md")]
pub mod several_processes {}

#[doc = include_str!("size_max_size.md")]
pub mod size_max_size {}

#[doc = include_str!("why_refused.md")]
pub mod why_refused {}

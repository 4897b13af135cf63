//! One pod: an axum service as a process of its own.

mod cache;
mod db;
mod outbound;
#[expect(
    clippy::module_inception,
    reason = "the type that gives the module its name"
)]
mod pod;
mod protection;
mod spec;
pub(crate) mod stats;

pub(crate) use self::{
    pod::serve,
    spec::{ROWS, SUPERUSERS, Spec, USER, Way},
};

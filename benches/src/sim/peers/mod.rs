//! Other projects' published laws, for comparison.
//!
//! Written from their descriptions and documented defaults, none of their code is here. Each sees
//! every request that ends, as in its own project, and moves the limit of the shipped gate; none
//! has a waiting room unless its project has one.

mod bbr;
mod envoy;
mod failsafe;
mod little;
mod netflix;
mod peer;
mod prototype;
mod quantile;

pub use self::{
    bbr::Bbr,
    envoy::Envoy,
    failsafe::Failsafe,
    little::Little,
    netflix::{Aimd, Gradient2, Vegas},
    peer::{Ended, Peer},
    prototype::Prototype,
};

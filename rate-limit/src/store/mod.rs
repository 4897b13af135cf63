//! Where the debts are kept: a fixed table that a flood of keys can neither grow nor reset.
//!
//! An entry is a seeded 64-bit fingerprint of the key and one TAT per policy: 16 bytes for one
//! policy. Entries live in sets of eight. A key can only be in the set its fingerprint names, so
//! a lookup reads at most eight fingerprints, two cache lines. The first TAT is right behind its
//! fingerprint, so that with one policy nothing else is fetched from memory.
//!
//! A policy whose quota is not always the same (plans, quotas of a request's own, a reload) needs
//! more: an account for each quota, see [`accounts`]. The room for them, 40 bytes for each entry
//! and policy, is taken when a second quota comes up, and never again.
//!
//! When a new key finds its set full, it takes the entry of a key without debt (forgetting such a
//! key changes nothing). If every key in the set owes something, under whichever policy and quota,
//! [`OnFull`] decides; by default the *least* indebted key is forgotten, which gives at most its
//! debt back to that one key. Exhausted keys are the last to go, and of them the one charged last,
//! so a flood of new keys replaces its own and does not free others, as it would with
//! least-recently-used eviction.
//!
//! Finding a key and charging one policy takes no lock while there is one quota. Inserting takes
//! the lock of the set's stripe, and so does charging several policies, which must happen all or
//! not at all, and charging one of several quotas.

mod accounts;
mod governor;
mod scales;
mod table;

pub use self::table::OnFull;
pub(crate) use self::{
    governor::{Probe, Store, Tick, ToldClock},
    scales::Scale,
    table::{Slot, Table},
};

//! A pool in memory, and managers that count every connection they open and close.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses a part of it"
)]

mod census;
mod dice;
mod memory;
mod sqlite;

pub(crate) use self::census::{Census, Counted, Counting};
pub(crate) use self::dice::Dice;
pub(crate) use self::memory::{Memory, MemoryConnection};
pub(crate) use self::sqlite::SqliteManager;

//! What the random sequences of the gate have in common.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use proptest::prelude::*;
use tower_capacity::gate::{Acquire, Priority};

/// Mostly of one class, so that order within a class is seen too.
pub(crate) fn class() -> impl Strategy<Value = Priority> {
    prop_oneof![
        4 => Just(Priority::Default),
        1 => prop::sample::select(Priority::ALL.to_vec()),
    ]
}

/// Permits that a class may fill, from its published share.
pub(crate) fn room(class: Priority, limit: usize) -> usize {
    limit - limit * ((1.0 - class.share()) * 20.0).round() as usize / 20
}

pub(crate) fn poll(acquire: &mut Pin<Box<Acquire>>) -> Poll<<Acquire as Future>::Output> {
    let waker = futures_util::task::noop_waker();
    acquire.as_mut().poll(&mut Context::from_waker(&waker))
}

/// Some 100,000 operations; `PROPTEST_CASES=200000` for ten million.
pub(crate) fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|cases| cases.parse().ok()).unwrap_or(2_000);
    ProptestConfig {
        cases,
        ..ProptestConfig::default()
    }
}

//! When a line is overloaded.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Observes a wait each 10 ms; returns the judgement after each.
fn judge(waits: &[u32]) -> Vec<bool> {
    let start = Instant::now();
    let mut judgement = Judgement::default();
    let observe = |(at, wait): (usize, &u32)| {
        judgement.observe(&Codel::REQUESTS, start + 10 * MS * at as u32, *wait * MS)
    };
    waits.iter().enumerate().map(observe).collect()
}

#[test]
fn a_burst_that_drains_within_the_interval_is_healthy() {
    let waits: Vec<_> = (0..30)
        .map(|i| 40_u32.saturating_sub(5 * (i % 10)))
        .collect();
    assert!(judge(&waits).iter().all(|overloaded| !overloaded));
}

#[test]
fn a_line_that_never_gets_short_is_overloaded_after_an_interval() {
    let judged = judge(&[20; 30]);
    assert!(judged[..10].iter().all(|overloaded| !overloaded));
    assert!(judged[10..].iter().all(|&overloaded| overloaded));
}

#[test]
fn overload_lasts_until_an_interval_without_a_shed_waiter() {
    let codel = Codel::REQUESTS;
    let start = Instant::now();
    let mut judgement = Judgement::default();
    let at = |tenths: u32| start + 10 * MS * tenths;
    for tenths in 0..=10 {
        judgement.observe(&codel, at(tenths), 20 * MS);
    }
    // Short waits while the newest is served first say nothing.
    for tenths in 11..15 {
        assert!(judgement.observe(&codel, at(tenths), MS));
    }
    judgement.shed(&codel, at(15));
    assert!(judgement.observe(&codel, at(24), MS));
    assert!(!judgement.observe(&codel, at(25), MS));
}

#[test]
fn bounds_without_end_never_overflow() {
    let codel = Codel::new(Duration::MAX, Duration::MAX);
    let mut judgement = Judgement::default();
    assert!(!judgement.observe(&codel, Instant::now(), Duration::MAX));
    judgement.shed(&codel, Instant::now());
    assert!(judgement.observe(&codel, Instant::now(), Duration::ZERO));
}

#[test]
fn an_empty_queue_is_forgotten() {
    let start = Instant::now();
    let mut judgement = Judgement::default();
    assert!(!judgement.observe(&Codel::REQUESTS, start, 20 * MS));
    let later = start + Duration::from_secs(60);
    assert!(!judgement.observe(&Codel::REQUESTS, later, 20 * MS));
}

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{DAY, SECOND};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn gcra(quota: Quota) -> Gcra {
    Gcra::new(&quota).unwrap()
}

/// Takes one cell at a time at `now` until refused.
fn drain(gcra: &Gcra, tat: &mut u64, now: u64) -> u64 {
    let mut taken = 0;
    while let Ok(next) = gcra.charge(*tat, now, 1) {
        *tat = next;
        taken += 1;
    }
    taken
}

#[test]
fn a_fresh_key_gets_exactly_its_burst_at_once_at_any_rate() {
    for count in [1, 3, 7, 30, 999, 123_457, 7_000_000, 300_000_000] {
        let gcra = gcra(Quota::count(count).per(SECOND).burst(1_000));
        assert_eq!(
            drain(&gcra, &mut 0, 5 * DAY.as_nanos() as u64),
            1_000,
            "{count} a second"
        );
    }
}

#[test]
fn three_hundred_million_a_second_is_kept_to_a_ten_thousandth() {
    let gcra = gcra(Quota::count(300_000_000).per(SECOND).burst(1_000_000));
    let (mut tat, mut cells) = (0, 0u64);
    for now in (0..100_000_000u64).step_by(1_000) {
        for batch in [100, 10, 1] {
            while let Ok(next) = gcra.charge(tat, now, batch) {
                tat = next;
                cells += batch;
            }
        }
    }
    let bound = 1_000_000 + 30_000_000;
    assert!(cells <= bound, "{cells} over {bound}");
    assert!(cells as f64 >= 0.9999 * bound as f64, "{cells} of {bound}");
}

#[test]
fn one_a_year_comes_back_after_a_year_and_no_sooner() {
    let gcra = gcra(Quota::count(1).per(YEAR));
    let year = YEAR.as_nanos() as u64;
    let tat = gcra.charge(0, 1, 1).unwrap();
    assert_eq!(gcra.charge(tat, year, 1), Err(Excess::Wait(1)));
    assert!(gcra.charge(tat, year + 1, 1).is_ok());
}

#[test]
fn a_wrapped_clock_reads_an_old_debt_as_paid() {
    let gcra = gcra(Quota::count(300_000_000).per(SECOND));
    let mut tat = 0;
    assert!(drain(&gcra, &mut tat, 0) > 0);
    for days in [1, 10, 20, 30, 100] {
        let later = days * DAY.as_nanos() as u64;
        assert_eq!(gcra.remaining(tat, later), 300_000_000, "after {days} days");
    }
}

#[test]
fn more_than_the_burst_never_conforms() {
    let gcra = gcra(Quota::count(10).per(SECOND).burst(3));
    assert_eq!(gcra.charge(0, 0, 4), Err(Excess::Never));
}

#[test]
fn a_refund_never_credits_beyond_a_full_burst() {
    let gcra = gcra(Quota::count(10).per(SECOND).burst(3));
    let tat = gcra.charge(0, 50, 2).unwrap();
    assert_eq!(gcra.remaining(gcra.refund(tat, 50, 100), 50), 3);
}

#[test]
fn a_debt_is_carried_to_another_quota_in_cells() {
    let (now, second) = (DAY.as_nanos() as u64, SECOND.as_nanos() as u64);
    let slow = gcra(Quota::count(10).per(SECOND));
    let fast = gcra(Quota::count(300_000_000).per(SECOND));
    let small = gcra(Quota::count(1).per(DAY).burst(3));
    let tat = slow.charge(0, now, 7).unwrap();
    assert_eq!(slow.remaining(tat, now), 3);
    assert_eq!(
        fast.remaining(fast.carry(&slow, tat, now), now),
        300_000_000 - 7
    );
    let converted = small.carry(&slow, tat, now);
    assert_eq!(small.remaining(converted, now), 0);
    assert_eq!(
        small.wait_for(converted, now, 1),
        86_400 * second,
        "a burst, not seven days"
    );
    assert_eq!(small.remaining(small.carry(&slow, 0, now), now), 3);
}

#[test]
fn what_costs_nothing_conforms_even_in_debt() {
    let gcra = gcra(Quota::count(1).per(SECOND));
    let tat = gcra.charge_anyway(0, 5, 2);
    assert_eq!(gcra.charge(tat, 5, 0), Ok(tat));
}

#[test]
fn a_forced_charge_stops_at_two_bursts_of_debt() {
    let gcra = gcra(Quota::count(1).per(SECOND).burst(5));
    let tat = gcra.charge_anyway(0, 0, u64::MAX);
    assert_eq!(gcra.debt_nanos(tat, 0), 10 * SECOND.as_nanos() as u64);
}

proptest! {
    /// B + R·t, whatever the quota, the arrivals and the batch sizes.
    #[test]
    fn admitted_never_exceeds_burst_plus_rate_times_time(
        count in 1u64..1_000_000_000,
        period_ms in 1_000u64..100_000,
        burst in 1u64..10_000,
        steps in proptest::collection::vec((0u64..50_000_000, 1u64..50), 1..200),
    ) {
        let quota = Quota::count(count).per(Duration::from_millis(period_ms)).burst(burst);
        let gcra = gcra(quota);
        let (mut tat, mut now, mut admitted) = (0, 0u64, 0u128);
        for (gap, cells) in steps {
            now += gap;
            if let Ok(next) = gcra.charge(tat, now, cells) {
                tat = next;
                admitted += u128::from(cells);
            }
            let period = u128::from(period_ms) * 1_000_000;
            let refilled = u128::from(count) * u128::from(now) / period;
            prop_assert!(admitted <= u128::from(burst) + refilled);
        }
    }

    /// A refused caller that waits as long as the refusal says is admitted, and not a tick later.
    #[test]
    fn the_wait_it_names_is_exact(
        count in 1u64..1_000_000,
        burst in 1u64..100,
        cells in 1u64..100,
        debt in 0u64..300,
    ) {
        let gcra = gcra(Quota::count(count).per(SECOND).burst(burst));
        let tat = gcra.charge_anyway(0, 7, debt);
        if let Err(Excess::Wait(wait)) = gcra.charge(tat, 7, cells) {
            prop_assert!(wait > 0);
            prop_assert!(gcra.charge(tat, 7 + wait, cells).is_ok());
            prop_assert!(gcra.charge(tat, 7 + wait - 1, cells).is_err());
        }
    }
}

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{DAY, MINUTE, SECOND};

fn level(quota: Quota) -> Level {
    Level::new(&quota).unwrap()
}

#[test]
fn rates_that_are_not_whole_microseconds_are_exact() {
    let fast = level(Quota::count(300_000).per(SECOND));
    assert_eq!((fast.price, fast.drain), (10, 3));
    let odd = level(Quota::count(7).per(SECOND).burst(1));
    assert_eq!(
        (odd.price, odd.drain, odd.capacity),
        (1_000_000, 7, 1_000_000)
    );
    let daily = level(Quota::count(1_000_000).per(DAY).burst(100_000));
    assert_eq!((daily.price, daily.drain), (86_400, 1));
}

#[test]
fn what_redis_cannot_count_exactly_is_refused_and_the_largest_burst_is_named() {
    let month = 30 * DAY;
    assert!(Level::new(&Quota::count(1).per(month).burst(1_700)).is_ok());
    let error = Level::new(&Quota::count(1).per(month).burst(1_779)).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("expected a burst of at most 1737 at this rate"),
        "{error}"
    );
}

#[test]
fn it_names_the_wait_to_the_nanosecond() {
    let level = level(Quota::count(60).per(MINUTE).burst(2));
    assert_eq!(level.excess(0, 2), None);
    assert_eq!(level.excess(1, 2), Some(Excess::Wait(1_000)));
    assert_eq!(level.excess(0, 3), Some(Excess::Never));
    assert_eq!(level.remaining(1), 1);
}

proptest! {
    /// Both forms of the algorithm agree on what conforms, up to the rounding of the TAT.
    #[test]
    fn it_agrees_with_the_tat_form(
        count in 1u64..1_000_000,
        period_us in 1_000u64..100_000_000,
        burst in 1u64..1_000,
        steps in proptest::collection::vec((0u64..5_000_000, 1u64..20), 1..100),
    ) {
        // Whole nanoseconds a cell, so that the TAT is exact too.
        let quota = Quota::count(count).per(Duration::from_micros(period_us)).burst(burst);
        let whole = (period_us * 1_000).is_multiple_of(count);
        let (Ok(level), Ok(gcra)) = (Level::new(&quota), Gcra::new(&quota)) else {
            return Ok(());
        };
        if !whole { return Ok(()); }
        let (mut owed, mut tat, mut now) = (0, 0, 0);
        for (gap_us, cells) in steps {
            now += gap_us * 1_000;
            owed = level.after(owed, gap_us * 1_000);
            let conforms = level.excess(owed, cells);
            match gcra.charge(tat, now, cells) {
                Ok(next) => {
                    prop_assert_eq!(conforms, None);
                    tat = next;
                    owed += cells * level.price;
                }
                Err(excess) => prop_assert_eq!(conforms, Some(excess)),
            }
        }
    }
}

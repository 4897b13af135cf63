//! What a retry budget pays for.

use proptest::prelude::*;

use super::*;

fn balance(ratio: f64, min_retries: usize) -> Balance {
    Balance {
        counts: Counts::new(Duration::from_secs(10)),
        ratio,
        min_retries: min_retries as f64,
    }
}

#[test]
fn ten_requests_pay_for_one_retry() {
    let (mut balance, now) = (balance(0.1, 0), Instant::now());
    for _ in 0..9 {
        balance.deposit(now);
    }
    assert!(!balance.withdraw(now));
    balance.deposit(now);
    assert!(balance.withdraw(now));
    assert!(!balance.withdraw(now));
}

#[test]
fn the_minimum_comes_back_with_the_window() {
    let (mut balance, now) = (balance(0.1, 3), Instant::now());
    for allowed in [true, true, true, false] {
        assert_eq!(balance.withdraw(now), allowed);
    }
    assert_eq!(balance.left(now + Duration::from_secs(10)), 3);
}

proptest! {
    #[test]
    fn retries_never_exceed_what_requests_pay_for(
        ratio in 0.0..2.0_f64,
        min_retries in 0..20_usize,
        steps in proptest::collection::vec((0..3_000_u64, any::<bool>()), 1..400),
    ) {
        let mut balance = balance(ratio, min_retries);
        let mut now = Instant::now();
        let mut happened: Vec<(Instant, bool)> = Vec::new();
        for (millis, is_request) in steps {
            now += Duration::from_millis(millis);
            let left = balance.left(now);
            if is_request {
                balance.deposit(now);
                happened.push((now, true));
            } else {
                prop_assert_eq!(balance.withdraw(now), left > 0);
                if left > 0 {
                    happened.push((now, false));
                }
            }
            // The last of the retries of nine seconds was paid by requests that were at most
            // ten seconds older, like all the others of the nine.
            let within = |window: u64, what: bool| {
                let window = Duration::from_secs(window);
                happened.iter().filter(|&&(at, is)| is == what && now - at <= window).count()
            };
            let paid = ratio * within(20, true) as f64 + min_retries as f64;
            prop_assert!(within(9, false) as f64 <= paid + 1e-6);
        }
    }
}

#[test]
fn what_cannot_work_is_refused_with_its_value() {
    let says = |config| RetryBudget::new(config).unwrap_err().to_string();
    assert_eq!(
        says(RetryBudgetConfig::new().ratio(-0.1)),
        "ratio -0.1 is out of range: expected a finite number of at least 0"
    );
    assert_eq!(
        says(RetryBudgetConfig::new().window(Duration::from_millis(10))),
        "window 10ms is out of range: expected one second to one hour"
    );
}

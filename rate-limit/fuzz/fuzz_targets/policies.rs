//! Whatever policies are configured and reloaded, a limiter that builds keeps its quotas.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use rate_limit::{Limiter, ManualClock, Policy, Quota};

#[derive(Arbitrary, Debug)]
struct Input {
    policies: Vec<(String, u64, u64, u64)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Advance(u64),
    Set(u64),
    Check(u64),
    Refund(u64),
    Penalize(u64),
    Reload(u64, u64, u64),
}

fuzz_target!(|input: Input| {
    let clock = ManualClock::new();
    let mut builder = Limiter::builder().clock(clock.clone()).max_keys(8);
    for (name, count, period, burst) in input.policies.iter().take(10) {
        let quota = Quota::count(*count).per(Duration::from_nanos(*period)).burst(*burst);
        builder = builder.policy(Policy::new(name.as_str(), quota));
    }
    let Ok(limiter) = builder.build() else {
        return;
    };
    for step in input.steps.iter().take(64) {
        let most = limiter.policies().iter().map(|p| p.quota().burst_size()).min().unwrap();
        match *step {
            Step::Advance(nanos) => clock.advance(Duration::from_nanos(nanos)),
            Step::Set(nanos) => clock.set(Duration::from_nanos(nanos)),
            Step::Check(cells) => {
                let before = limiter.peek("key");
                let outcome = limiter.check_n("key", cells);
                assert_eq!(outcome.is_ok(), cells <= before, "{cells} of {before}");
            }
            Step::Refund(cells) => limiter.refund("key", cells),
            Step::Penalize(cells) => limiter.penalize("key", cells),
            Step::Reload(count, period, burst) => {
                let quota = Quota::count(count).per(Duration::from_nanos(period)).burst(burst);
                let mut policies = limiter.policies();
                policies[0] = Policy::new(policies[0].name(), quota);
                let _ = limiter.set_policies(policies);
                continue;
            }
        }
        assert!(limiter.peek("key") <= most);
    }
});

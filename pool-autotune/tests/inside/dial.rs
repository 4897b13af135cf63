//! How fast connections are opened.

use super::*;

/// Lets every permitted dial finish `dial` after it began, and returns when each one did.
fn dial_all(target: usize, queued: usize, dial: Duration) -> Vec<Duration> {
    let start = Instant::now();
    let step = Duration::from_millis(1);
    let mut budget = DialBudget::new(DialConfig::default(), start);
    let (mut limit, mut size) = (0, 0);
    let mut under_way: Vec<Instant> = Vec::new();
    let mut done = Vec::new();
    for tick in 0..20_000 {
        let now = start + step * tick;
        let before = under_way.len();
        under_way.retain(|&ends| ends > now);
        for _ in under_way.len()..before {
            size += 1;
            done.push(now - start);
        }
        let waiting = queued.saturating_sub(limit);
        let next = budget.limit(now, DialState::new(limit, target, size, waiting));
        for _ in limit..next {
            under_way.push(now + dial);
        }
        assert!(under_way.len() <= 2, "at most two dials at once");
        limit = next;
    }
    done
}

#[test]
fn four_dials_at_once_then_fifty_a_second_two_at_a_time() {
    let done = dial_all(40, 100, Duration::from_millis(10));
    assert_eq!(done.len(), 40);
    assert!(
        done[3] <= Duration::from_millis(25),
        "burst of four, in pairs: {:?}",
        done[3]
    );
    let seconds = (done[39] - done[3]).as_secs_f64();
    assert!(
        (0.68..0.76).contains(&seconds),
        "36 dials at 50/s took {seconds} s"
    );
}

#[test]
fn slow_dials_are_bounded_by_how_many_run_at_once() {
    let done = dial_all(10, 100, Duration::from_secs(1));
    assert_eq!(done[9].as_secs(), 5, "ten dials of a second, two at a time");
}

#[test]
fn nothing_is_dialled_for_nobody() {
    let now = Instant::now();
    let mut budget = DialBudget::new(DialConfig::default(), now);
    assert_eq!(budget.limit(now, DialState::new(5, 40, 5, 0)), 5);
    assert_eq!(budget.limit(now, DialState::new(5, 40, 5, 1)), 6);
}

#[test]
fn the_limit_follows_a_lower_target_and_lost_connections_at_once() {
    let now = Instant::now();
    let mut budget = DialBudget::new(DialConfig::default(), now);
    assert_eq!(budget.limit(now, DialState::new(20, 8, 20, 0)), 8);
    // The server went away with all connections: twenty clients must not dial it at once.
    assert_eq!(budget.limit(now, DialState::new(20, 20, 0, 50)), 2);
}

#[test]
fn after_a_failed_dial_the_pool_lives_on_what_it_has() {
    let second = Duration::from_secs(1);
    let start = Instant::now();
    let mut budget = DialBudget::new(DialConfig::default(), start);
    let mut limit = |after: Duration, size, failed| {
        if failed {
            budget.failed(start + after);
        }
        budget.limit(start + after, DialState::new(5, 40, size, 9))
    };
    assert_eq!(limit(Duration::ZERO, 5, true), 5);
    assert_eq!(limit(second / 2, 5, false), 5);
    assert_eq!(limit(second, 5, false), 7);
    assert_eq!(limit(2 * second, 5, true), 5, "for two seconds now");
    assert_eq!(limit(3 * second, 5, false), 5);
    assert_eq!(limit(3 * second, 0, false), 1, "one has to try");
    assert_eq!(limit(4 * second, 5, false), 7);
}

#[test]
fn an_empty_budget_says_when_it_can_dial_again() {
    let now = Instant::now();
    let mut budget = DialBudget::new(DialConfig::default(), now);
    let state = |limit, size| DialState::new(limit, 40, size, 50);
    assert_eq!(budget.limit(now, state(0, 0)), 2);
    assert_eq!(budget.next_token(), None);
    assert_eq!(budget.limit(now, state(2, 2)), 4);
    let next = budget.next_token().expect("the burst is spent");
    assert_eq!(next - now, Duration::from_millis(21));
    assert_eq!(budget.limit(next, state(4, 4)), 5);
}

//! The default law alone, in windows that once made it lock a service out, or let it go.
#![cfg(not(loom))]

use std::time::Duration;

use tokio::time::Instant;
use tower_capacity::limit::{Knee, Limit, Window};

/// Drives the law alone.
struct Driver {
    law: Knee,
    now: Instant,
    limit: usize,
}

impl Driver {
    fn new(limit: usize, base: Duration) -> Self {
        Self {
            law: Knee::new().warm_start(limit, Some(base)),
            now: Instant::now(),
            limit,
        }
    }

    /// A window at the limit: so many done and given up, at a service time.
    fn window(&mut self, millis: u64, done: u64, died: u64, service_time: Option<f64>) {
        let mut window = Window::new(Duration::from_millis(millis), self.limit);
        (window.completions, window.samples) = (done, done);
        (window.cancelled, window.died) = (died, died);
        window.mean_inflight = self.limit as f64;
        window.service_time = service_time;
        window.service_time_error = 0.05;
        window.longest_gap = Duration::from_millis(5);
        (window.max_limit, window.limited) = (16_384, true);
        self.now += window.duration;
        self.limit = self.law.on_window(self.now, &window);
    }
}

#[test]
fn a_collapse_in_which_nothing_is_done_in_time_lowers_the_limit() {
    let mut driver = Driver::new(67, Duration::from_millis(60));
    for _ in 0..8 {
        driver.window(200, 140, 0, Some(0.090));
    }
    driver.window(250, 60, 0, Some(0.15));
    let before = driver.limit;
    for _ in 0..4 {
        driver.window(1400, 0, 900, None);
    }
    assert!(driver.limit <= before / 4, "{before} -> {}", driver.limit);
}

#[test]
fn requests_that_die_inside_are_no_light_load() {
    let mut driver = Driver::new(60, Duration::from_millis(20));
    for _ in 0..4 {
        driver.window(1000, 8, 100, Some(0.39));
    }
    assert!(driver.limit <= 8, "{}", driver.limit);
}

#[test]
fn deaths_that_no_limit_prevents_are_tolerated() {
    let mut driver = Driver::new(64, Duration::from_millis(20));
    let mut least = 64;
    for _ in 0..40 {
        driver.window(200, 60, 40, Some(0.02));
        least = least.min(driver.limit);
    }
    assert!(
        least <= 8 && driver.limit >= 32,
        "{least}, {}",
        driver.limit
    );
}

#[test]
fn a_slower_dependency_is_told_from_a_queue_and_followed() {
    let mut driver = Driver::new(40, Duration::from_millis(10));
    let throughput = |limit: usize, service_time: f64| limit as f64 / service_time;
    for _ in 0..60 {
        // Five times as slow whatever the limit is.
        let done = (0.2 * throughput(driver.limit, 0.05)) as u64;
        driver.window(200, done, 0, Some(0.05));
    }
    assert!(driver.limit > 200, "{}", driver.limit);
}

#[test]
fn a_limit_of_two_with_a_base_far_too_low_recovers() {
    let mut driver = Driver::new(2, Duration::from_millis(3));
    for _ in 0..40 {
        let done = (0.5 * driver.limit as f64 / 0.05) as u64;
        driver.window(500, done, 0, Some(0.05));
    }
    assert!(driver.limit > 20, "{}", driver.limit);
}

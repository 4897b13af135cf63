//! What operators read: an event for each admitted request at `trace`, and one for refusals once a
//! second.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::{
    refusal::retry_after,
    rules::{Ruleset, Ruling},
};

/// Samples one refusal a second, with the number of those left out.
#[derive(Debug)]
pub(crate) struct Sampler {
    epoch: Instant,
    /// The second in which the last event was let through, plus one.
    last: AtomicU64,
    silent: AtomicU64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            last: AtomicU64::new(0),
            silent: AtomicU64::new(0),
        }
    }
}

impl Sampler {
    pub(crate) fn decided(&self, rules: &Ruleset, ruling: &Ruling, shadow: bool) {
        if ruling.admits() && ruling.shadowed.is_empty() {
            tracing::trace!(target: TARGET, admitted = true);
            return;
        }
        let Some(silent) = self.take_turn() else {
            return;
        };
        for (index, rule) in rules.rules().iter().enumerate() {
            let violated = ruling.violated.contains(index);
            if violated || ruling.shadowed.contains(index) {
                tracing::debug!(
                    target: TARGET,
                    policy = rule.policy.name(),
                    key_hash = format_args!("{:016x}", ruling.key),
                    shadow = shadow || !violated,
                    retry_after = ?retry_after(ruling.excess),
                    silent,
                    "over quota",
                );
            }
        }
    }

    /// The number of events held back since the last turn, if it is time for another.
    fn take_turn(&self) -> Option<u64> {
        let second = self.epoch.elapsed().as_secs() + 1;
        let last = self.last.load(Ordering::Relaxed);
        let mine = |last| {
            self.last
                .compare_exchange(last, second, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        if last < second && mine(last) {
            return Some(self.silent.swap(0, Ordering::Relaxed));
        }
        self.silent.fetch_add(1, Ordering::Relaxed);
        None
    }
}

const TARGET: &str = "rate_limit";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_event_a_second_and_the_count_of_the_others() {
        let sampler = Sampler::default();
        assert_eq!(sampler.take_turn(), Some(0));
        assert_eq!(sampler.take_turn(), None);
        assert_eq!(sampler.take_turn(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sampler.take_turn(), Some(2));
        assert_eq!(sampler.take_turn(), None);
    }
}

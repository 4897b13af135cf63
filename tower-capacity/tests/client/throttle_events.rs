//! What a throttle says through `tracing`.
#![cfg(feature = "tracing")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::advance;
use tower_capacity::throttle::{Answer, RetryAdvice, ThrottleConfig, Throttler};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

/// Looks at the throttler whenever it says something, as a subscriber may that attaches its state.
struct Looks {
    throttler: Throttler,
    seen: Arc<Mutex<Vec<usize>>>,
}

impl<S: Subscriber> Layer<S> for Looks {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            let kinds = self.throttler.snapshot().withholding_kinds();
            self.seen.lock().unwrap().push(kinds);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_may_look_at_the_throttler_when_throttling_starts_and_ends() {
    let throttler = Throttler::new(ThrottleConfig::new().share(0.0)).unwrap();
    let seen = Arc::default();
    let looks = Looks {
        throttler: throttler.clone(),
        seen: Arc::clone(&seen),
    };
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(looks));
    for _ in 0..200 {
        if let Ok(attempt) = throttler.admit(None) {
            attempt.answered(Answer::Rejected(RetryAdvice::Untold));
        }
        advance(Duration::from_millis(100)).await;
    }
    advance(Duration::from_secs(1)).await;
    throttler.admit(None).unwrap().answered(Answer::Accepted);
    assert_eq!(*seen.lock().unwrap(), [1, 0]);
}

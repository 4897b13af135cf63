//! What a throttle and a budget publish.
#![cfg(feature = "metrics")]

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower_capacity::{
    metrics as names,
    throttle::{Answer, RetryAdvice, RetryBudget, RetryBudgetConfig, ThrottleConfig, Throttler},
};

#[tokio::test(start_paused = true)]
async fn decisions_answers_and_retries_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let throttler = Throttler::new(ThrottleConfig::new().name("billing")).unwrap();
        let admit = || throttler.admit(None).unwrap();
        admit().answered(Answer::Accepted);
        drop(admit());
        admit().answered(Answer::Rejected(RetryAdvice::Untold));
        admit().answered(Answer::Limited(RetryAdvice::Untold));
        let config = RetryBudgetConfig::new().min_retries(1).name("billing");
        let budget = RetryBudget::new(config).unwrap();
        assert!(budget.withdraw() && !budget.withdraw());
    });
    let seen: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _unit, _text, value)| {
            let labels: Vec<_> = key.key().labels().map(|label| label.value()).collect();
            (key.key().name().to_owned(), labels.join(" "), value)
        })
        .collect();
    let count = |name: &str, labels: &str, expected| {
        let found = seen
            .iter()
            .find(|(n, l, _)| (n.as_str(), l.as_str()) == (name, labels));
        let found = found.map(|(.., value)| value);
        assert_eq!(
            found,
            Some(&DebugValue::Counter(expected)),
            "{name} {labels}"
        );
    };
    count(names::THROTTLE_REQUESTS, "billing sent", 4);
    count(names::THROTTLE_REQUESTS, "billing shed", 0);
    for answer in ["accepted", "rejected", "limited", "none"] {
        count(names::THROTTLE_ANSWERS, &format!("billing {answer}"), 1);
    }
    count(names::THROTTLE_RETRIES, "billing allowed", 1);
    count(names::THROTTLE_RETRIES, "billing denied", 1);
}

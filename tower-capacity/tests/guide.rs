//! The guides say what every word means that an operator may see.

use tower_capacity::gate::RefusedReason;

#[test]
fn every_reason_of_a_refusal_is_explained() {
    let guide = include_str!("../src/guide/why_refused.md");
    for reason in RefusedReason::ALL {
        let row = format!("| `{}` |", reason.as_str());
        assert!(guide.contains(&row), "{row}");
    }
}

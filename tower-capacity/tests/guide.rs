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

#[test]
fn every_word_of_the_default_law_is_explained() {
    let guide = include_str!("../src/guide/why_refused.md");
    let law = include_str!("../src/limit/knee/law.rs");
    // A decision is a word and a limit.
    let decisions = law
        .split("(\"")
        .skip(1)
        .filter_map(|rest| rest.split_once("\", "));
    let words: Vec<_> = decisions.map(|(word, _)| word).collect();
    assert!(
        words.contains(&"slow start") && words.contains(&"probe"),
        "{words:?}"
    );
    for word in words {
        assert!(
            guide.contains(&format!("`{word}`")),
            "{word} is not in the guide"
        );
    }
}

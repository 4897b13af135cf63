//! Quotas: what can be kept, and what is read from text.

use std::time::Duration;

use rate_limit::{DAY, HOUR, Limiter, MINUTE, Mode, Policy, Quota, SECOND, Unit};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn refusal(quota: Quota) -> String {
    quota.validate().unwrap_err().to_string()
}

#[test]
fn zero_anything_is_refused_with_the_expectation() {
    assert_eq!(
        refusal(Quota::count(0).per(SECOND).burst(1)),
        "quota \"0 requests per 1s, burst 1\" cannot be enforced: \
         expected a count of at least 1"
    );
    assert!(refusal(Quota::count(1).per(Duration::ZERO)).contains("longer than zero"));
    assert!(refusal(Quota::count(1).per(SECOND).burst(0)).contains("burst of at least 1"));
}

#[test]
fn a_cell_faster_than_a_nanosecond_is_refused() {
    assert!(Quota::count(1_000_000_000).per(SECOND).validate().is_ok());
    assert!(refusal(Quota::count(1_000_000_001).per(SECOND)).contains("one cell per nanosec"));
}

#[test]
fn a_burst_that_would_overflow_is_refused_and_the_largest_is_named() {
    let month = 30 * DAY;
    // governor 0.10.4 admits 364 here instead of 100 000: its product wraps.
    let error = refusal(Quota::count(1).per(month).burst(100_000));
    assert!(
        error.ends_with("expected a burst of at most 1779 at this rate"),
        "{error}"
    );
    assert!(Quota::count(1).per(month).burst(1_779).validate().is_ok());
    assert!(refusal(Quota::count(1).per(Duration::MAX)).contains("146 years"));
}

#[test]
fn extreme_but_meaningful_quotas_are_accepted() {
    Quota::count(300_000_000).per(SECOND).validate().unwrap();
    Quota::count(1).per(YEAR).validate().unwrap();
    Quota::count(1_000_000)
        .per(DAY)
        .burst(100_000)
        .validate()
        .unwrap();
}

#[test]
fn quotas_are_read_as_they_are_written() {
    let read = |text: &str| text.parse::<Quota>().unwrap();
    assert_eq!(read("100 per minute"), Quota::count(100).per(MINUTE));
    assert_eq!(read("5/s"), Quota::count(5).per(SECOND));
    assert_eq!(
        read(" 1_000 / hour burst 50"),
        Quota::count(1_000).per(HOUR).burst(50)
    );
    assert_eq!(
        read("5 requests per 15 minutes"),
        Quota::count(5).per(15 * MINUTE)
    );
    assert_eq!(read("3 per 1.5 days"), Quota::count(3).per(36 * HOUR));
    assert_eq!(
        read("1048576 content-bytes per 1s, burst 2097152"),
        Quota::count(1 << 20)
            .per(SECOND)
            .burst(1 << 21)
            .unit(Unit::ContentBytes)
    );
    let tokens = Quota::count(10_000)
        .per(MINUTE)
        .unit(Unit::Custom("tokens"));
    assert_eq!(read("10_000 'tokens' per minute"), tokens);
    for quota in [
        tokens,
        Quota::count(7).per(DAY),
        Quota::count(7).per(Duration::from_millis(1_500)).burst(3),
    ] {
        assert_eq!(read(&quota.to_string()), quota);
    }
}

#[test]
fn text_that_is_no_quota_is_refused_with_the_value_and_the_expectation() {
    for text in [
        "",
        "many per minute",
        "-5 per s",
        "5",
        "5 per",
        "5 per fortnight",
        "5 cows per day",
        "5 '' per day",
        "5 per day burst",
        "5 per day burst x",
        "5 per day burst 3 more",
        "5 day",
        "99999999999999999999 per s",
        "5 per 1e400 s",
    ] {
        let error = text.parse::<Quota>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("quota {text:?}, expected ")),
            "{error}"
        );
    }
}

#[test]
fn a_cell_stands_for_a_request_unless_the_quota_says_otherwise() {
    assert_eq!(Quota::count(5).per(SECOND).cell_unit(), Unit::Requests);
    let quota: Quota = "10_000 'tokens' per minute".parse().unwrap();
    assert_eq!(quota.cell_unit().as_str(), "tokens");
}

#[test]
fn handles_of_one_limiter_are_the_same_whatever_their_plan() {
    let quota = || Policy::new("api", Quota::count(5).per(SECOND));
    let limiter = || Limiter::builder().policy(quota()).plan("paid", [quota()]);
    let (one, other) = (limiter().build().unwrap(), limiter().build().unwrap());
    assert!(one.same_as(&one.clone()) && one.same_as(&one.plan("paid").unwrap()));
    assert!(!one.same_as(&other));
}

#[test]
fn modes_are_read_from_their_names() {
    for mode in [Mode::Enforce, Mode::Shadow, Mode::Off] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    let error = "Shadow".parse::<Mode>().unwrap_err().to_string();
    assert_eq!(error, "mode \"Shadow\", expected enforce, shadow or off");
}

#[cfg(feature = "serde")]
#[test]
fn policies_are_read_from_configuration_and_mistakes_are_named() {
    let read = serde_json::from_str::<Vec<Policy>>;
    let policies = read(
        "[{\"name\":\"api\",\"quota\":\"100 per minute\"},\
         {\"name\":\"trial\",\"quota\":\"5/s\",\"shadow\":true}]",
    )
    .unwrap();
    assert_eq!(policies[0].quota(), Quota::count(100).per(MINUTE));
    assert!(policies[1].is_shadow());
    let error = |text| read(text).unwrap_err().to_string();
    assert!(error("[{\"name\":\"api\",\"quota\":\"0 per day\"}]").contains("count of at least 1"));
    assert!(error("[{\"name\":\"api\",\"quota\":\"soon\"}]").contains("quota \"soon\""));
    assert!(error("[{\"name\":\"a\\\"b\",\"quota\":\"1/s\"}]").contains("printable ASCII"));
    assert_eq!(
        serde_json::to_string(&Quota::count(5).per(SECOND)).unwrap(),
        "\"5 requests per 1s, burst 5\""
    );
    let mode = serde_json::from_str::<Mode>("\"off\"").unwrap();
    assert_eq!(serde_json::to_string(&mode).unwrap(), "\"off\"");
}

//! Headers that tell callers where they stand, read back by a parser of structured fields.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, Request, Response, StatusCode};
use proptest::prelude::*;
use rate_limit::{
    HOUR, Limiter, MINUTE, ManualClock, Policy, Quota, RateLimitLayer, SECOND, Unit,
    answer::{Draft, QuotaHeaders, Reset},
    key,
};
use sfv::{BareItem, List, ListEntry, Parser};
use tokio::time::advance;
use tower::{Layer, Service, service_fn};

/// One member of a `ratelimit` or `ratelimit-policy` list.
#[derive(Debug, PartialEq)]
struct Member {
    name: String,
    parameters: Vec<(String, String)>,
}

impl Member {
    fn get(&self, key: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, key: &str) -> i64 {
        self.get(key).unwrap().parse().unwrap()
    }
}

/// Parses a field as a list of strings with parameters. Several lines are one list.
fn parse(headers: &HeaderMap, field: &str) -> Vec<Member> {
    let lines = headers
        .get_all(field)
        .iter()
        .map(|line| line.to_str().unwrap());
    let joined = lines.collect::<Vec<_>>().join(", ");
    let list: List = Parser::new(&joined)
        .parse()
        .unwrap_or_else(|e| panic!("{joined}: {e}"));
    let member = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else {
            panic!("{field} must be a list of items: {joined}");
        };
        let BareItem::String(name) = &item.bare_item else {
            panic!("items must be strings: {joined}");
        };
        let parameter = |(key, value): (&sfv::Key, &BareItem)| {
            let value = match value {
                BareItem::Integer(number) => i64::from(*number).to_string(),
                BareItem::String(text) => text.as_str().to_owned(),
                BareItem::ByteSequence(bytes) => format!("{bytes:?}"),
                other => panic!("{key:?} is {other:?}"),
            };
            (key.as_str().to_owned(), value)
        };
        let parameters = item.params.iter().map(parameter).collect();
        Member {
            name: name.as_str().to_owned(),
            parameters,
        }
    };
    list.iter().map(member).collect()
}

fn names(members: &[Member]) -> Vec<&str> {
    members.iter().map(|member| member.name.as_str()).collect()
}

async fn call(layer: &RateLimitLayer, status: StatusCode, preset: &'static str) -> Response<()> {
    let mut service = layer.layer(service_fn(async |_: Request<()>| {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if !preset.is_empty() {
            response
                .headers_mut()
                .insert("ratelimit", preset.parse().unwrap());
        }
        Ok::<_, Infallible>(response)
    }));
    service.call(Request::new(())).await.unwrap().map(|_| ())
}

async fn get(layer: &RateLimitLayer) -> Response<()> {
    call(layer, StatusCode::OK, "").await
}

fn layer(quota: Quota, headers: QuotaHeaders) -> RateLimitLayer {
    RateLimitLayer::new(quota)
        .unwrap()
        .key(key::global())
        .headers(headers)
}

#[tokio::test(start_paused = true)]
async fn the_policy_field_states_the_burst_and_the_time_it_takes_to_come_back() {
    let layer = layer(
        Quota::count(100).per(MINUTE).burst(20),
        QuotaHeaders::draft(Draft::V11),
    );
    let response = get(&layer).await;
    let [policy] = &parse(response.headers(), "ratelimit-policy")[..] else {
        panic!("one policy, one member");
    };
    assert_eq!(policy.name, "default");
    assert_eq!((policy.number("q"), policy.number("w")), (20, 12));
    assert_eq!(policy.get("qu"), None, "requests go without saying");
    assert_eq!(policy.get("pk"), None, "only on request");
}

#[tokio::test(start_paused = true)]
async fn draft_11_says_how_long_what_is_left_must_last() {
    let layer = layer(
        Quota::count(10).per(MINUTE),
        QuotaHeaders::draft(Draft::V11),
    );
    let response = get(&layer).await;
    let state = &parse(response.headers(), "ratelimit")[0];
    assert_eq!((state.number("r"), state.number("t")), (9, 54));
    for _ in 0..9 {
        get(&layer).await;
    }
    let refused = get(&layer).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let state = &parse(refused.headers(), "ratelimit")[0];
    assert_eq!((state.number("r"), state.number("t")), (0, 6));
    assert_eq!(refused.headers()["retry-after"], "6");
}

#[tokio::test(start_paused = true)]
async fn draft_10_says_when_the_next_cell_comes() {
    let layer = layer(
        Quota::count(10).per(MINUTE),
        QuotaHeaders::draft(Draft::V10),
    );
    get(&layer).await;
    advance(Duration::from_millis(2_500)).await;
    let response = get(&layer).await;
    let state = &parse(response.headers(), "ratelimit")[0];
    // 12 s of debt less 2.5 s: two cells used, the next is back in 3.5 s.
    assert_eq!((state.number("r"), state.number("t")), (8, 4));
}

#[tokio::test(start_paused = true)]
async fn several_policies_are_listed_the_most_constrained_first() {
    let limiter = Limiter::builder()
        .policy(Policy::new("wide", Quota::count(1_000).per(HOUR)))
        .policy(
            Policy::new(
                "bytes",
                Quota::count(100).per(SECOND).unit(Unit::ContentBytes),
            )
            .cost(|_| 90),
        )
        .build()
        .unwrap();
    let layer = RateLimitLayer::from_limiter(limiter)
        .key(key::global())
        .headers(QuotaHeaders::draft(Draft::V11));
    let response = get(&layer).await;
    let policies = parse(response.headers(), "ratelimit-policy");
    assert_eq!(names(&policies), ["wide", "bytes"], "stable");
    assert_eq!(policies[1].get("qu"), Some("content-bytes"));
    let states = parse(response.headers(), "ratelimit");
    assert_eq!(names(&states), ["bytes", "wide"]);
    assert_eq!((states[0].number("r"), states[0].number("t")), (10, 1));
    assert_eq!(states[1].number("r"), 999);
}

#[tokio::test(start_paused = true)]
async fn what_is_there_already_stays() {
    let layer = layer(
        Quota::count(10).per(MINUTE),
        QuotaHeaders::draft(Draft::V11),
    );
    let response = call(&layer, StatusCode::OK, "\"inner\";r=1;t=1").await;
    assert_eq!(
        names(&parse(response.headers(), "ratelimit")),
        ["inner", "default"]
    );
}

#[tokio::test(start_paused = true)]
async fn redirects_and_grpc_are_left_alone() {
    let headers = QuotaHeaders::draft(Draft::V11).legacy(Reset::Delta);
    let plain = layer(Quota::count(10).per(MINUTE), headers.clone());
    let redirect = call(&plain, StatusCode::FOUND, "").await;
    assert!(redirect.headers().is_empty());
    let eager = layer(Quota::count(10).per(MINUTE), headers.on_redirects(true));
    let redirect = call(&eager, StatusCode::FOUND, "").await;
    assert!(redirect.headers().contains_key("ratelimit"));

    let mut service = plain.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(()))
    }));
    for _ in 0..12 {
        let grpc = Request::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let response = service.call(grpc).await.unwrap();
        assert!(!response.headers().contains_key("ratelimit"));
        assert!(!response.headers().contains_key("x-ratelimit-limit"));
    }
}

#[tokio::test(start_paused = true)]
async fn legacy_headers_count_in_seconds_or_name_a_time() {
    let delta = layer(
        Quota::count(10).per(MINUTE),
        QuotaHeaders::legacy_only(Reset::Delta),
    );
    let response = get(&delta).await;
    let headers = response.headers();
    assert_eq!(headers["x-ratelimit-limit"], "10");
    assert_eq!(headers["x-ratelimit-remaining"], "9");
    assert_eq!(headers["x-ratelimit-reset"], "6");
    assert!(!headers.contains_key("ratelimit"));

    let epoch = layer(
        Quota::count(10).per(MINUTE),
        QuotaHeaders::legacy_only(Reset::Epoch),
    );
    let response = get(&epoch).await;
    let reset: u64 = response.headers()["x-ratelimit-reset"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!((now..=now + 6).contains(&reset), "{reset} at {now}");
}

#[tokio::test(start_paused = true)]
async fn the_partition_key_is_bytes_and_tells_keys_apart() {
    let layer = layer(
        Quota::count(10).per(MINUTE),
        QuotaHeaders::draft(Draft::V11).partition_key(true),
    )
    .key(key::header("x-api-key"));
    let mut service = layer.layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(()))
    }));
    let mut partition = async |key: &str| {
        let request = Request::builder()
            .header("x-api-key", key)
            .body(())
            .unwrap();
        let response = service.call(request).await.unwrap();
        let state = parse(response.headers(), "ratelimit");
        let policy = parse(response.headers(), "ratelimit-policy");
        assert_eq!(state[0].get("pk"), policy[0].get("pk"));
        state[0].get("pk").unwrap().to_owned()
    };
    let alice = partition("alice").await;
    assert_eq!(alice, partition("alice").await);
    assert_ne!(alice, partition("bob").await);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the quota and the name, the fields parse, `w` and `q` are in range, what is told
    /// never exceeds the rate of the policy, and `retry-after` is never before the window's end.
    #[test]
    fn the_fields_always_parse_and_never_promise_too_much(
        name in "[ !#-\\[\\]-~]{1,64}",
        count in 1u64..1_000_000,
        seconds in 1u64..1_000_000,
        burst in 1u64..1_000,
        used in 0u64..20,
        ten in prop::bool::ANY,
    ) {
        let clock = ManualClock::new();
        clock.set(Duration::from_millis(1_234_567));
        let quota = Quota::count(count).per(Duration::from_secs(seconds)).burst(burst);
        prop_assume!(quota.validate().is_ok());
        let limiter =
            Limiter::builder().policy(Policy::new(name.clone(), quota)).clock(clock).build().unwrap();
        let draft = if ten { Draft::V10 } else { Draft::V11 };
        let layer = RateLimitLayer::from_limiter(limiter)
            .key(key::global())
            .headers(QuotaHeaders::draft(draft));
        let mut service = layer.layer(service_fn(async |_: Request<()>| {
            Ok::<_, Infallible>(Response::new(()))
        }));
        for _ in 0..=used {
            let response =
                tokio_test::block_on(service.call(Request::new(()))).unwrap();
            let policy = &parse(response.headers(), "ratelimit-policy")[0];
            let state = &parse(response.headers(), "ratelimit")[0];
            prop_assert_eq!(&policy.name, &name);
            prop_assert_eq!(&state.name, &name);
            let (q, w) = (policy.number("q"), policy.number("w"));
            let (r, t) = (state.number("r"), state.number("t"));
            prop_assert_eq!(q, burst as i64);
            prop_assert!(w > 0 && (0..=q).contains(&r) && t >= 0);
            if r < q && !ten {
                prop_assert!(t > 0);
            }
            if let Some(wait) = response.headers().get("retry-after") {
                prop_assert_eq!(r, 0);
                let wait: i64 = wait.to_str().unwrap().parse().unwrap();
                prop_assert!(wait >= t && wait >= 1);
            }
        }
    }
}

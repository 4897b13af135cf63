//! Headers that state what is left of a quota, before a caller is refused.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Rendered;
use super::grpc::base64;
use crate::{
    Unit,
    key::Seed,
    rules::{Charge, Rule, Ruleset, Ruling},
};

/// Which headers to add to responses, admitted or refused.
///
/// They emit the syntax of *drafts* of the IETF httpapi working group, which may change; nothing
/// here claims to implement a standard.
///
/// ```
/// use rate_limit::{MINUTE, Quota, RateLimitLayer, answer::{Draft, QuotaHeaders, Reset}};
///
/// let layer = RateLimitLayer::new(Quota::count(100).per(MINUTE).burst(20))?
///     .headers(QuotaHeaders::draft(Draft::V11).legacy(Reset::Delta));
/// # Ok::<(), rate_limit::BuildError>(())
/// ```
///
/// The values are appended: what an inner limiter or a handler has set stays. Redirects are left
/// alone unless [`on_redirects`](Self::on_redirects) is set, and so is gRPC, which has pushback
/// instead.
#[derive(Clone, Debug)]
pub struct QuotaHeaders {
    draft: Option<Draft>,
    legacy: Option<Reset>,
    partition_key: bool,
    on_redirects: bool,
}

/// A revision of draft-ietf-httpapi-ratelimit-headers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Draft {
    /// Revision 10: `t` is the time until the next cell.
    V10,
    /// Revision 11: `t` is the time in which the caller can use no more than `r`.
    V11,
}

/// What `x-ratelimit-reset` holds. There is no standard; clients expect one or the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reset {
    /// Seconds from now until the whole burst is back.
    Delta,
    /// The time at which it is, in seconds since 1970.
    Epoch,
}

impl QuotaHeaders {
    /// `ratelimit-policy` and `ratelimit`, in the syntax of `draft`.
    #[must_use]
    pub fn draft(draft: Draft) -> Self {
        Self {
            draft: Some(draft),
            legacy: None,
            partition_key: false,
            on_redirects: false,
        }
    }

    /// Only `x-ratelimit-limit`, `-remaining` and `-reset`.
    #[must_use]
    pub fn legacy_only(reset: Reset) -> Self {
        Self {
            draft: None,
            legacy: Some(reset),
            partition_key: false,
            on_redirects: false,
        }
    }

    /// Adds `x-ratelimit-limit`, `-remaining` and `-reset` for the most constrained policy.
    ///
    /// Defaults to none.
    #[must_use]
    pub fn legacy(mut self, reset: Reset) -> Self {
        self.legacy = Some(reset);
        self
    }

    /// Adds `pk`, by which a caller recognizes the quota that it is using: a hash of the key with a
    /// secret of this process.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn partition_key(mut self, partition_key: bool) -> Self {
        self.partition_key = partition_key;
        self
    }

    /// Adds the headers to redirects (3xx, except 304) too. The draft (§8.5 of -11) advises against
    /// it: a client that follows the redirect is charged again, perhaps elsewhere.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn on_redirects(mut self, on_redirects: bool) -> Self {
        self.on_redirects = on_redirects;
        self
    }

    pub(crate) fn also_on_redirects(&self) -> bool {
        self.on_redirects
    }

    /// The headers for a request that `rules` have decided, and the seconds that a refusal must
    /// name at least, so that `retry-after` is no earlier than the effective window.
    pub(crate) fn render(
        &self,
        seed: &Seed,
        (rules, rendered): (&Ruleset, &Rendered),
        ruling: &Ruling,
        charge: &Charge,
    ) -> Stamp {
        let states = states(rules, ruling, charge);
        let mut headers = HeaderMap::new();
        if let Some(draft) = self.draft {
            // The fingerprint names the key's place in the table, so it is hashed once more.
            let key = self
                .partition_key
                .then(|| seed.hash_one(("pk", ruling.key)));
            let policy = match (key, charge.own(0)) {
                (None, None) => rendered.policy_field.clone(),
                _ => policy_field(rules.rules(), charge, key),
            };
            headers.append(RATELIMIT_POLICY, policy);
            append(
                &mut headers,
                RATELIMIT,
                ratelimit_field(draft, &states, key),
            );
        }
        if let (Some(reset), Some(state)) = (self.legacy, states.first()) {
            append_legacy(&mut headers, reset, state);
        }

        let violated = states
            .iter()
            .filter(|state| ruling.violated.contains(state.index));
        let windows = violated.map(|state| match self.draft {
            Some(Draft::V10) => state.next,
            Some(Draft::V11) => state.window,
            None => 0,
        });
        Stamp {
            headers,
            retry_after: windows.max().unwrap_or(0),
        }
    }
}

/// Headers for a response.
#[derive(Debug, Default)]
pub(crate) struct Stamp {
    pub(crate) headers: HeaderMap,
    /// The least that `retry-after` may say, in seconds.
    pub(crate) retry_after: u64,
}

struct State<'a> {
    index: usize,
    rule: &'a Rule,
    remaining: u64,
    burst: u64,
    /// Seconds until one more cell.
    next: u64,
    /// Seconds in which no more than `remaining` can be used.
    window: u64,
    /// Seconds until the whole burst is back.
    full: u64,
}

/// What the headers say of each policy, the most constrained first.
fn states<'a>(rules: &'a Ruleset, ruling: &Ruling, charge: &Charge) -> Vec<State<'a>> {
    let now = ruling.now();
    let states = rules.rules().iter().enumerate().map(|(index, rule)| {
        let (gcra, tat) = (charge.gcra(index, rule), ruling.tats[index]);
        let remaining = gcra.remaining(tat, now);
        let next = if remaining < gcra.burst() {
            seconds_up(gcra.wait_for(tat, now, remaining + 1))
        } else {
            0
        };
        let window = match remaining {
            0 => next,
            _ => seconds_up(gcra.nanos_for(remaining)).max(1),
        };
        let full = seconds_up(gcra.debt_nanos(tat, now));
        State {
            index,
            rule,
            remaining,
            burst: gcra.burst(),
            next,
            window,
            full,
        }
    });
    let mut states: Vec<_> = states.collect();
    // The most constrained first: the smallest part of a burst left.
    states.sort_by(|a, b| {
        let left = u128::from(a.remaining) * u128::from(b.burst);
        left.cmp(&(u128::from(b.remaining) * u128::from(a.burst)))
    });
    states
}

/// The value of `ratelimit`.
fn ratelimit_field(draft: Draft, states: &[State<'_>], key: Option<u64>) -> String {
    let mut field = String::with_capacity(64);
    for state in states {
        let t = if draft == Draft::V10 {
            state.next
        } else {
            state.window
        };
        let separator = if field.is_empty() { "" } else { ", " };
        let (name, r, t) = (state.rule.policy.name(), sf(state.remaining), sf(t));
        // Writing to a string does not fail.
        let _ = write!(field, "{separator}\"{name}\";r={r};t={t}");
        push_key(&mut field, key);
    }
    field
}

/// Adds `x-ratelimit-limit`, `-remaining` and `-reset`.
fn append_legacy(headers: &mut HeaderMap, reset: Reset, state: &State<'_>) {
    let seconds = match reset {
        Reset::Delta => state.full,
        Reset::Epoch => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            now.as_secs() + state.full
        }
    };
    append(headers, X_RATELIMIT_LIMIT, state.burst.to_string());
    append(headers, X_RATELIMIT_REMAINING, state.remaining.to_string());
    append(headers, X_RATELIMIT_RESET, seconds.to_string());
}

/// The `ratelimit-policy` field: the same for all requests without a quota of their own.
pub(super) fn policy_field(rules: &[Rule], charge: &Charge, key: Option<u64>) -> HeaderValue {
    let mut field = String::new();
    for (index, rule) in rules.iter().enumerate() {
        let separator = if field.is_empty() { "" } else { ", " };
        let (name, gcra) = (rule.policy.name(), charge.gcra(index, rule));
        let unit = charge.quota(index, rule).cell_unit();
        let q = sf(gcra.burst());
        let w = sf(seconds_up(gcra.nanos_for(gcra.burst())).max(1));
        // Writing to a string does not fail.
        let _ = write!(field, "{separator}\"{name}\";q={q};w={w}");
        if unit != Unit::Requests {
            let _ = write!(field, ";qu=\"{unit}\"");
        }
        push_key(&mut field, key);
    }
    // Names are printable ASCII, see `policy::check_name`.
    HeaderValue::try_from(field).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn push_key(field: &mut String, key: Option<u64>) {
    if let Some(key) = key {
        let text = base64(&key.to_be_bytes());
        // Structured fields want the padding (RFC 8941 §3.3.5): 8 bytes are 11 digits and one `=`.
        let _ = write!(field, ";pk=:{}=:", String::from_utf8_lossy(&text));
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(name, value);
    }
}

fn seconds_up(nanos: u64) -> u64 {
    nanos.div_ceil(1_000_000_000)
}

/// The largest integer that a structured field can hold has 15 digits (RFC 8941 §3.3.1).
fn sf(number: u64) -> u64 {
    number.min(999_999_999_999_999)
}

const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

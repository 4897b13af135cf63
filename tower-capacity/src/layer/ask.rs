//! What a request asks of the limiter: whether to be counted, how much it matters, what it costs,
//! how long it has.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, request};

use crate::{
    Limiter, Priority,
    gate::{Ask, Partition},
    grpc::is_grpc,
};

/// How a layer reads requests; a copy costs nothing by default.
#[derive(Clone, Default)]
pub(super) struct RequestConfig {
    pub(super) bypass: Option<Read<bool>>,
    pub(super) priority: Option<Read<Priority>>,
    pub(super) cost: Option<Read<u32>>,
    pub(super) time_left: Option<Read<Option<Duration>>>,
    pub(super) partition: Option<ReadKey>,
}

type Read<T> = Arc<dyn Fn(&request::Parts) -> T + Send + Sync>;
type Borrow = dyn for<'a> Fn(&'a request::Parts) -> Option<&'a str> + Send + Sync;

/// Reads the key of a partition.
#[derive(Clone)]
pub(super) enum ReadKey {
    Borrowed(Arc<Borrow>),
    Computed(Read<Option<String>>),
}

impl ReadKey {
    fn partition(&self, request: &request::Parts, limiter: &Limiter) -> Option<Partition> {
        match self {
            Self::Borrowed(read) => Some(limiter.partition(read(request)?)),
            Self::Computed(read) => Some(limiter.partition(&read(request)?)),
        }
    }
}

impl RequestConfig {
    /// Whether there is anything to read; without, requests are not taken apart.
    pub(super) const fn reads(&self) -> bool {
        self.bypass.is_some()
            || self.priority.is_some()
            || self.cost.is_some()
            || self.time_left.is_some()
            || self.partition.is_some()
    }

    pub(super) fn bypasses(&self, request: &request::Parts) -> bool {
        self.bypass.as_ref().is_some_and(|bypass| bypass(request))
    }

    pub(super) fn ask(&self, request: &request::Parts, limiter: &Limiter) -> Ask {
        let mut ask = Ask::new();
        let key = self.partition.as_ref();
        if let Some(partition) = key.and_then(|key| key.partition(request, limiter)) {
            ask = ask.partition(partition);
        }
        if let Some(priority) = &self.priority {
            ask = ask.priority(priority(request));
        }
        if let Some(cost) = &self.cost {
            ask = ask.cost(cost(request));
        }
        match self
            .time_left
            .as_ref()
            .and_then(|time_left| time_left(request))
        {
            Some(left) => ask.time_left(left),
            None => ask,
        }
    }

    /// Adds what gRPC says of the deadline, for a request that has to wait; unless the layer was
    /// told where to read it.
    pub(super) fn with_grpc_timeout(&self, ask: Ask, headers: &HeaderMap) -> Ask {
        if self.time_left.is_some() || !is_grpc(headers) {
            return ask;
        }
        match grpc_timeout(headers) {
            Some(left) => ask.time_left(left),
            None => ask,
        }
    }
}

impl fmt::Debug for RequestConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestConfig")
            .field("bypass", &self.bypass.is_some())
            .field("priority", &self.priority.is_some())
            .field("cost", &self.cost.is_some())
            .field("time_left", &self.time_left.is_some())
            .field("partition", &self.partition.is_some())
            .finish()
    }
}

/// Reads the class of a request from a header, for
/// [`CapacityLayer::priority`](crate::CapacityLayer::priority).
///
/// The header holds `critical`, `default`, `sheddable` or `background`, in any case; a request
/// without it, or with anything else in it, is of [`Priority::Default`]. Read it only where clients
/// are trusted: a caller that may write the header chooses its own importance.
///
/// ```
/// use http::HeaderName;
/// use tower_capacity::{CapacityLayer, priority_header};
///
/// let name = HeaderName::from_static("x-priority");
/// let layer = CapacityLayer::adaptive().priority(priority_header(name));
/// ```
pub fn priority_header(name: HeaderName) -> impl Fn(&request::Parts) -> Priority + Clone {
    move |request| {
        let value = request
            .headers
            .get(&name)
            .and_then(|value| value.to_str().ok());
        value.and_then(Priority::parse).unwrap_or_default()
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Requests").
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(3600 * amount),
        "M" => Duration::from_secs(60 * amount),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn timeout(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_str(value).unwrap());
        grpc_timeout(&headers)
    }

    #[test]
    fn grpc_timeouts_are_read_in_every_unit() {
        for (value, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("1S", Duration::from_secs(1)),
            ("250m", Duration::from_millis(250)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(timeout(value), Some(expected), "{value}");
        }
    }

    #[test]
    fn what_is_no_grpc_timeout_is_no_deadline() {
        for value in ["", "S", "12", "123456789m", "-1S", "1.5S", "1 S", "1s"] {
            assert_eq!(timeout(value), None, "{value}");
        }
    }

    #[test]
    fn a_priority_is_read_from_its_header_and_anything_else_is_the_default() {
        let classify = priority_header(HeaderName::from_static("x-priority"));
        let class = |value: &str| {
            let request = Request::builder()
                .header("x-priority", value)
                .body(())
                .unwrap();
            classify(&request.into_parts().0)
        };
        assert_eq!(class("Critical"), Priority::Critical);
        assert_eq!(class("background"), Priority::Background);
        assert_eq!(class("urgent"), Priority::Default);
        let without = Request::new(()).into_parts().0;
        assert_eq!(classify(&without), Priority::Default);
    }
}

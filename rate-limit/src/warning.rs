//! Mistakes in the setup that show only in traffic.

use std::{
    cell::Cell,
    collections::HashMap,
    fmt,
    panic::Location,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use http::header::FORWARDED;
use tokio::time::Instant;

use crate::{
    key::{Key, KeyedBy, RequestHead},
    sync::lock,
};

/// A mistake in the setup that showed in traffic. Each is raised once per limiter, see
/// [`Limiter::warnings`](crate::Limiter::warnings).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// Requests are keyed by peer address, come from a private address and carry a forwarding
    /// header: there is a proxy in front, and all its clients share one quota. Use
    /// [`key::forwarded`](crate::key::forwarded).
    UntrustedForwardedHeader,
    /// Requests are keyed by an address, alone or among other things, and no address was found, so
    /// that they share one quota: axum needs `into_make_service_with_connect_info` and this crate's
    /// `axum` feature, a unix socket needs
    /// [`ForwardedKey::unix_socket`](crate::key::ForwardedKey::unix_socket), or the server is not one that [`key::peer`](crate::key::peer) knows.
    NoPeerAddress,
    /// More than nine in ten requests have the same key: they may all come through one proxy, or
    /// the key may be constant.
    OneKey,
    /// More than a hundred limiters were built at one place in the code within a minute. A limiter
    /// that is built for each request or connection limits nothing: build one and clone it.
    BuiltRepeatedly,
    /// The Redis of a fleet evicts keys that have not expired when its memory is full
    /// (`maxmemory-policy allkeys-*`): evicted keys owe nothing. Use `noeviction` or `volatile-ttl`.
    EvictingRedis,
    /// The tokio runtime that a fleet's limiter was built in has ended, so Redis is no longer asked.
    /// Build one for each runtime.
    RuntimeEnded,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UntrustedForwardedHeader => {
                "requests come through a proxy that is not trusted, so all its clients share one \
                 quota; use key::forwarded"
            }
            Self::NoPeerAddress => {
                "requests have no peer address, so all clients share one quota; axum needs \
                 into_make_service_with_connect_info and the feature \"axum\" of rate-limit"
            }
            Self::OneKey => "more than 90 % of the requests have the same key",
            Self::BuiltRepeatedly => {
                "more than 100 limiters a minute were built at one place; build one and clone it"
            }
            Self::EvictingRedis => {
                "redis evicts keys without asking for their age (maxmemory-policy allkeys-*), and \
                 evicted keys owe nothing; use noeviction or volatile-ttl"
            }
            Self::RuntimeEnded => {
                "the runtime that the limiter was built in has ended, redis is no longer asked"
            }
        })
    }
}

pub(crate) type WarningHook = Arc<dyn Fn(Warning) + Send + Sync>;

/// Watches a limiter's traffic.
pub(crate) struct Watch {
    raised: AtomicU8,
    hook: Option<WarningHook>,
    sample: Mutex<Sample>,
}

/// How often the first key of a sample occurs in it. A key that has 90 % of the traffic is that
/// first key nine times out of ten.
#[derive(Default)]
struct Sample {
    candidate: u64,
    hits: u32,
    size: u32,
}

impl Watch {
    pub(crate) fn new(hook: Option<WarningHook>) -> Self {
        Self {
            raised: AtomicU8::new(0),
            hook,
            sample: Mutex::default(),
        }
    }

    pub(crate) fn raised(&self) -> Vec<Warning> {
        let raised = self.raised.load(Ordering::Relaxed);
        ALL.into_iter()
            .filter(|&warning| raised & bit(warning) != 0)
            .collect()
    }

    pub(crate) fn raise(&self, warning: Warning) {
        if self.raised.fetch_or(bit(warning), Ordering::Relaxed) & bit(warning) != 0 {
            return;
        }
        #[cfg(feature = "tracing")]
        let is_logged = {
            tracing::warn!(target: "rate_limit", ?warning, "{warning}");
            tracing::dispatcher::has_been_set()
        };
        #[cfg(not(feature = "tracing"))]
        let is_logged = false;
        match &self.hook {
            Some(hook) => hook(warning),
            // A mistake that limits the wrong callers has to show somewhere.
            None if !is_logged => eprintln!("rate-limit: {warning}"),
            None => {}
        }
    }

    /// Looks at one in 64 requests of each thread, the first among them.
    #[inline]
    pub(crate) fn request(&self, key: &Key, head: &RequestHead<'_>, fingerprint: u64) {
        thread_local!(static TURN: Cell<u8> = const { Cell::new(0) });
        let turn = TURN.get();
        TURN.set(turn.wrapping_add(1));
        if turn.is_multiple_of(SAMPLED_OF) {
            self.look(key, head, fingerprint);
        }
    }

    fn look(&self, key: &Key, head: &RequestHead<'_>, fingerprint: u64) {
        let headers = head.headers();
        let forwarded =
            || headers.contains_key("x-forwarded-for") || headers.contains_key(FORWARDED);
        let by_peer = key.keyed_by() == KeyedBy::Peer;
        match key.client_ip(head) {
            None if key.is_made_of_ip() && fingerprint == 0 => self.raise(Warning::NoPeerAddress),
            Some(ip) if by_peer && is_private(ip) && forwarded() => {
                self.raise(Warning::UntrustedForwardedHeader);
            }
            _ => {}
        }
        if key.keyed_by() != KeyedBy::Nothing
            && let Ok(mut sample) = self.sample.try_lock()
            && sample.add(fingerprint)
        {
            drop(sample);
            self.raise(Warning::OneKey);
        }
    }
}

impl Sample {
    /// Adds a key; true when the sample is complete and mostly one key.
    fn add(&mut self, fingerprint: u64) -> bool {
        if self.size == 0 {
            self.candidate = fingerprint;
        }
        self.size += 1;
        self.hits += u32::from(self.candidate == fingerprint);
        if self.size < SAMPLE {
            return false;
        }
        let mostly = self.hits * 10 > SAMPLE * 9;
        *self = Self::default();
        mostly
    }
}

/// Counts a limiter built at `place`; true when there are too many.
pub(crate) fn built_too_often_at(place: &'static Location<'static>) -> bool {
    type Places = HashMap<&'static Location<'static>, (u32, Instant)>;
    static PLACES: Mutex<Option<Places>> = Mutex::new(None);
    let mut places = lock(&PLACES);
    let now = Instant::now();
    let (count, since) = places
        .get_or_insert_with(HashMap::new)
        .entry(place)
        .or_insert((0, now));
    if now.saturating_duration_since(*since) > Duration::from_secs(60) {
        (*count, *since) = (0, now);
    }
    *count = count.saturating_add(1);
    *count > MAX_BUILT
}

fn is_private(ip: std::net::IpAddr) -> bool {
    match ip.to_canonical() {
        std::net::IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        std::net::IpAddr::V6(ip) => {
            ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local()
        }
    }
}

fn bit(warning: Warning) -> u8 {
    1 << warning as u8
}

const ALL: [Warning; 6] = [
    Warning::UntrustedForwardedHeader,
    Warning::NoPeerAddress,
    Warning::OneKey,
    Warning::BuiltRepeatedly,
    Warning::EvictingRedis,
    Warning::RuntimeEnded,
];

const SAMPLED_OF: u8 = 64;
const SAMPLE: u32 = 256;
const MAX_BUILT: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_tells_one_key_from_many() {
        let verdict = |every_nth_differs: u32| {
            let mut sample = Sample::default();
            let keys = (1..=SAMPLE).map(|n| u64::from(n.is_multiple_of(every_nth_differs)));
            keys.fold(false, |_, key| sample.add(key))
        };
        assert!(verdict(SAMPLE + 1), "all the same");
        assert!(verdict(20), "95 %");
        assert!(!verdict(5), "80 %");
    }
}

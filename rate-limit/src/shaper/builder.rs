//! Puts a shaper together.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Shaper,
    line::{Inner, Kept, Line},
};
use crate::{Quota, QuotaError, Unit, gcra::Gcra};

/// Builds a [`Shaper`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ShaperBuilder {
    quotas: Vec<Quota>,
    concurrency: Option<usize>,
    max_queue: usize,
    max_wait: Duration,
    max_pause: Duration,
}

impl ShaperBuilder {
    pub(super) fn new() -> Self {
        Self {
            quotas: Vec::new(),
            concurrency: None,
            max_queue: DEFAULT_MAX_QUEUE,
            max_wait: DEFAULT_MAX_WAIT,
            max_pause: DEFAULT_MAX_PAUSE,
        }
    }

    /// Adds a quota that upstream grants. All of them are kept.
    ///
    /// With quotas of several [units](Quota::unit), those of requests are charged one cell for each
    /// request, and the others what the request costs: 50 requests and 10 000 tokens a minute.
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quotas.push(quota);
        self
    }

    /// Sets how many requests may be under way at once, from when they are sent until the
    /// response body ends or is dropped.
    ///
    /// Defaults to no limit.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = Some(requests);
        self
    }

    /// Sets how many requests may wait.
    ///
    /// Defaults to 1 000.
    pub fn max_queue(mut self, requests: usize) -> Self {
        self.max_queue = requests;
        self
    }

    /// Sets how long a request may wait; with zero, one that cannot be sent at once is refused.
    ///
    /// Defaults to 30 seconds.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets how long upstream can make the shaper pause at once, whatever it asks for.
    ///
    /// Defaults to 10 minutes.
    pub fn max_pause(mut self, pause: Duration) -> Self {
        self.max_pause = pause;
        self
    }

    /// Builds the shaper.
    ///
    /// # Errors
    ///
    /// Fails if a quota means nothing or cannot be kept, if concurrency is zero, or if there is
    /// nothing to keep: neither a quota nor a concurrency.
    pub fn build(self) -> Result<Shaper, ShaperError> {
        let Self {
            quotas,
            concurrency,
            max_queue,
            max_wait,
            max_pause,
        } = self;
        if concurrency == Some(0) {
            return Err(ShaperError::ZeroConcurrency);
        }
        if quotas.is_empty() && concurrency.is_none() {
            return Err(ShaperError::Unlimited);
        }
        let is_mixed = quotas
            .iter()
            .any(|quota| quota.cell_unit() != Unit::Requests);
        let keep = |quota: &Quota| {
            Ok(Kept {
                gcra: Gcra::new(quota)?,
                counts_requests: is_mixed && quota.cell_unit() == Unit::Requests,
            })
        };
        let quotas = quotas.iter().map(keep);
        let quotas = quotas.collect::<Result<Box<[_]>, QuotaError>>()?;
        let line = Line {
            tats: vec![0; quotas.len()],
            ..Line::default()
        };
        Ok(Shaper {
            inner: Arc::new(Inner {
                epoch: Instant::now(),
                quotas,
                concurrency: concurrency.unwrap_or(usize::MAX),
                max_queue,
                max_wait: max_wait.min(LONGEST),
                max_pause: max_pause.min(LONGEST),
                line: Mutex::new(line),
            }),
        })
    }
}

/// A shaper that makes no sense.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ShaperError {
    /// A quota means nothing or cannot be kept.
    Quota(QuotaError),
    /// No request at all could be under way.
    ZeroConcurrency,
    /// There is neither a quota nor a concurrency to keep.
    Unlimited,
}

impl From<QuotaError> for ShaperError {
    fn from(error: QuotaError) -> Self {
        Self::Quota(error)
    }
}

impl fmt::Display for ShaperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quota(_) => "invalid quota of a shaper",
            Self::ZeroConcurrency => "concurrency of 0, expected at least 1",
            Self::Unlimited => "nothing to keep, expected a quota or a concurrency",
        })
    }
}

impl std::error::Error for ShaperError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quota(error) => Some(error),
            _ => None,
        }
    }
}

const DEFAULT_MAX_QUEUE: usize = 1_000;
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(30);
const DEFAULT_MAX_PAUSE: Duration = Duration::from_secs(600);

/// Longer than any request waits, and no timer overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

//! Instruments that read a handle, for as long as there is one. This file is the same in `tower-capacity`,
//! `rate-limit` and `pool-autotune`.

use opentelemetry::{KeyValue, metrics::AsyncInstrumentBuilder};

use crate::metrics::{COUNTERS, GAUGES};

/// A value, and its attributes beside those of every instrument.
pub(super) type Reading<V> = (V, Vec<KeyValue>);

/// What instruments read.
pub(super) struct Observed<F> {
    /// Returns the handle; `None` once it is gone.
    pub(super) handle: F,
    /// The attributes of every instrument.
    pub(super) attributes: Vec<KeyValue>,
}

impl<H, F: Fn() -> Option<H> + Clone + Send + Sync + 'static> Observed<F> {
    /// Completes an instrument: what it shows, in which unit, and how it is read.
    pub(super) fn by<'a, I, V: 'static>(
        &self,
        instrument: AsyncInstrumentBuilder<'a, I, V>,
        unit: &'static str,
        read: impl Fn(&H) -> Vec<Reading<V>> + Send + Sync + 'static,
    ) -> AsyncInstrumentBuilder<'a, I, V> {
        let (handle, common) = (self.handle.clone(), self.attributes.clone());
        let description = description(&instrument.name);
        let instrument = instrument.with_unit(unit).with_description(description);
        instrument.with_callback(move |observer| {
            for (value, own) in handle().iter().flat_map(&read) {
                let attributes: Vec<_> = common.iter().cloned().chain(own).collect();
                observer.observe(value, &attributes);
            }
        })
    }
}

fn description(name: &str) -> &'static str {
    let mut all = GAUGES.iter().chain(COUNTERS);
    let found = all.find(|(described, _)| *described == name);
    found.map_or("", |(_, description)| description)
}

//! Nodes of a fleet on a server of the test's own.

use std::time::Duration;

use private_servers::Redis;
use rate_limit::{
    LimiterBuilder,
    fleet::{FleetBackend, FleetLimiter},
};

/// A deadline that a busy machine keeps.
pub(crate) const PATIENT: Duration = Duration::from_secs(5);

pub(crate) fn backend(redis: &Redis) -> FleetBackend {
    FleetBackend::new(redis.url(), "test")
        .unwrap()
        .deadline(PATIENT)
}

pub(crate) fn on(redis: &Redis, builder: LimiterBuilder) -> FleetLimiter {
    builder.build_on(backend(redis)).unwrap()
}

//! Why calls to Redis fail.

use redis::{RedisError, ServerErrorKind};

/// Why a call failed, if a call for any other key would have failed too.
pub(super) fn server_failure(error: &RedisError) -> Option<&'static str> {
    let why = reason(error);
    (why != OTHER || matches!(error.code(), Some("MISCONF" | "NOREPLICAS" | "NOAUTH")))
        .then_some(why)
}

/// Why a call failed, for the event that reports it.
pub(super) fn reason(error: &RedisError) -> &'static str {
    use redis::ErrorKind::Server;
    match error.kind() {
        Server(ServerErrorKind::BusyLoading) => "it is loading its data",
        Server(ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown) => "the cluster is down",
        Server(ServerErrorKind::ReadOnly) => "it is a replica",
        Server(ServerErrorKind::NoPerm) => "it does not allow the scripts",
        _ if error.code() == Some("OOM") => "it is out of memory",
        _ if error.is_timeout() => LATE,
        _ if error.is_io_error() || error.is_connection_dropped() => LOST,
        _ => OTHER,
    }
}

pub(super) const LATE: &str = "it does not reply in time";
pub(super) const LOST: &str = "the connection was lost";
const OTHER: &str = "it replies with errors";

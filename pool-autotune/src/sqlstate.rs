//! What the error codes of Postgres say about the server behind a pool.

use std::error::Error as StdError;

/// What a SQLSTATE means for a pool.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Meaning {
    /// The server under the connections is not what it was.
    ServerChanged,
    /// One connection was lost: an operator ended it, or the server that had all of them.
    ConnectionLost,
    /// The server has no room for more connections.
    TooManyConnections,
}

/// Appendix A of the Postgres documentation, "PostgreSQL Error Codes".
///
/// 08P01 (protocol violation) says nothing of the server: `PgBouncer` sends it when it is full or a
/// query waited too long, and Postgres for a bind message that does not fit its statement. 08004
/// refuses one login.
pub(crate) fn meaning(code: &str) -> Option<Meaning> {
    match code {
        // read_only_sql_transaction; crash_shutdown, cannot_connect_now.
        "25006" | "57P02" | "57P03" => Some(Meaning::ServerChanged),
        // admin_shutdown; connection_exception, unable to connect, does not exist, failure,
        // transaction resolution unknown.
        "57P01" | "08000" | "08001" | "08003" | "08006" | "08007" => Some(Meaning::ConnectionLost),
        "53300" => Some(Meaning::TooManyConnections),
        _ => None,
    }
}

/// The SQLSTATE in an error or in what caused it.
pub(crate) fn of(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        #[cfg(feature = "postgres")]
        if let Some(code) = error
            .downcast_ref::<tokio_postgres::Error>()
            .and_then(tokio_postgres::Error::code)
        {
            return Some(code.code().to_owned());
        }
        #[cfg(feature = "sqlx-0_8")]
        if let Some(code) = error
            .downcast_ref::<sqlx_0_8::Error>()
            .and_then(|error| error.as_database_error()?.code())
        {
            return Some(code.into_owned());
        }
        #[cfg(feature = "sqlx-0_9")]
        if let Some(code) = error
            .downcast_ref::<sqlx_0_9::Error>()
            .and_then(|error| error.as_database_error()?.code())
        {
            return Some(code.into_owned());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_about_the_server_or_its_connections_mean_something() {
        for code in ["25006", "57P02", "57P03"] {
            assert_eq!(meaning(code), Some(Meaning::ServerChanged), "{code}");
        }
        for code in ["57P01", "08006", "08001"] {
            assert_eq!(meaning(code), Some(Meaning::ConnectionLost), "{code}");
        }
        assert_eq!(meaning("53300"), Some(Meaning::TooManyConnections));
        for code in [
            "40001", "23505", "57014", "08", "", "080065", "08P01", "08004",
        ] {
            assert_eq!(meaning(code), None, "{code}");
        }
    }
}

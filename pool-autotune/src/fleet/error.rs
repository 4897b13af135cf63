use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use tokio_postgres::error::SqlState;

/// Why a budget gives no rights, or could not be started.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BudgetError {
    /// A setting is out of range; the message names it.
    Setting(String),
    /// It was started outside a tokio runtime, and its beats run in a task.
    NoRuntime,
    /// The server did not reply in time, or could not be connected to.
    Unreachable(Arc<str>),
    /// The server has no schema `pool_autotune`: run [`MIGRATION`](super::MIGRATION), or let the first
    /// process create it with [`Config::create`](super::Config::create).
    NotInstalled(Arc<str>),
    /// The role may not use the schema `pool_autotune`, or not create it: run
    /// [`grants`](super::grants) for it.
    MissingRights(Arc<str>),
    /// The table is of another version.
    WrongVersion(Arc<str>),
    /// The server is read-only: a standby, or one that was set so.
    ReadOnly(Arc<str>),
    /// A pooler stands between this process and Postgres, so that what the server shows is the pooler's:
    /// give the budget the URL of Postgres itself.
    Pooler(Arc<str>),
    /// The server shows none of the connections that the pools of this process have open: they are not
    /// tagged ([`Budget::tag`](super::Budget::tag)), are of another role, or go through a pooler.
    Untagged {
        /// Connections that the pools have open.
        open: usize,
    },
    /// The floors of all processes exceed the total: have fewer processes, raise the total, or put a pooler
    /// in between.
    TooSmall {
        /// Processes that beat.
        members: usize,
        /// What their floors add up to.
        floors: usize,
        /// What there is to share.
        total: usize,
    },
    /// The server refused a beat for another reason.
    Refused(Arc<str>),
}

impl BudgetError {
    pub(crate) fn unreachable(reason: impl fmt::Display) -> Self {
        Self::Unreachable(reason.to_string().into())
    }

    /// What an error of the store means.
    pub(crate) fn from_postgres(error: &tokio_postgres::Error) -> Self {
        let text: Arc<str> = match (error.as_db_error(), error.source()) {
            (Some(db), _) => db.message().into(),
            (None, Some(source)) => format!("{error}: {source}").into(),
            (None, None) => error.to_string().into(),
        };
        let Some(code) = error.code() else {
            return Self::Unreachable(text);
        };
        match code.code() {
            "PA001" => return Self::WrongVersion(text),
            "PA002" => return Self::Pooler(text),
            // What PgBouncer says to a session setting that it does not forward.
            "08P01" if text.contains("startup parameter") => return Self::Pooler(text),
            _ => {}
        }
        if [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::INVALID_SCHEMA_NAME,
        ]
        .contains(code)
        {
            return Self::NotInstalled(text);
        }
        if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            return Self::MissingRights(text);
        }
        if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
            return Self::ReadOnly(text);
        }
        // Connection exceptions, and a server that starts, ends or is full.
        if ["08", "53", "57"].contains(&&code.code()[..2]) {
            return Self::Unreachable(text);
        }
        Self::Refused(text)
    }

    /// One word for metrics and events.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Setting(_) | Self::NoRuntime => "setting",
            Self::Unreachable(_) => "unreachable",
            Self::NotInstalled(_) => "not_installed",
            Self::MissingRights(_) => "missing_rights",
            Self::WrongVersion(_) => "wrong_version",
            Self::ReadOnly(_) => "read_only",
            Self::Pooler(_) => "pooler",
            Self::Untagged { .. } => "untagged",
            Self::TooSmall { .. } => "too_small",
            Self::Refused(_) => "refused",
        }
    }
}

impl fmt::Display for BudgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(message) => f.write_str(message),
            Self::NoRuntime => f.write_str("a budget has to be started within a tokio runtime"),
            Self::Unreachable(reason) => write!(f, "the budget's server does not reply: {reason}"),
            Self::NotInstalled(reason) => write!(
                f,
                "the server has no budget: {reason}; run `fleet::MIGRATION`, or set `create(true)`"
            ),
            Self::MissingRights(reason) => {
                write!(
                    f,
                    "no right to use the budget: {reason}; run `fleet::grants`"
                )
            }
            Self::WrongVersion(reason) => {
                write!(
                    f,
                    "the budget on the server is of another version: {reason}"
                )
            }
            Self::ReadOnly(reason) => write!(f, "the budget's server is read-only: {reason}"),
            Self::Pooler(reason) => write!(
                f,
                "a pooler stands between the budget and Postgres: {reason}; give the budget the \
                 address of Postgres itself"
            ),
            Self::Untagged { open } => write!(
                f,
                "the server shows none of {open} connections of this process: tag them with \
                 `Budget::tag`, and connect as the budget's role, without a pooler"
            ),
            Self::TooSmall {
                members,
                floors,
                total,
            } => write!(
                f,
                "{members} processes need {floors} connections at least, and there are {total}: have \
                 fewer, raise the total, or put a pooler in between"
            ),
            Self::Refused(reason) => write!(f, "the budget's server refused: {reason}"),
        }
    }
}

impl StdError for BudgetError {}

//! What a budget is kept in.

use std::future::Future;
use std::sync::Arc;

use super::BudgetError;
use super::budget::{Demand, Inner};
use super::knee::{Knee, REPORTED, Sums};
use super::pod::{Beat, Terms};

/// What grants connections.
pub(super) trait Store: Send + Sync + 'static {
    /// A connection to it.
    type Session: Send;

    /// Whether that connection is one of those that are divided.
    const IS_DIVIDED: bool;

    fn open(
        &self,
        budget: &Arc<Inner>,
    ) -> impl Future<Output = Result<Self::Session, BudgetError>> + Send;

    fn is_closed(session: &Self::Session) -> bool;

    /// What has to be done before a beat is numbered.
    fn prepare(
        &self,
        _session: &mut Self::Session,
        _budget: &Arc<Inner>,
        _knows_total: bool,
    ) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Sends a beat, and returns the reply.
    fn beat(
        &self,
        session: &mut Self::Session,
        ask: &Ask<'_>,
    ) -> impl Future<Output = Result<Reply, BudgetError>> + Send;

    /// Creates what is missing in the store.
    fn install(
        &self,
        _session: &mut Self::Session,
    ) -> impl Future<Output = Result<(), BudgetError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// What is sent to a store.
pub(super) struct Ask<'a> {
    pub(super) budget: &'a Arc<Inner>,
    pub(super) settings: &'a Settings,
    pub(super) beat: Beat,
    pub(super) demand: Demand,
    pub(super) terms: Terms,
    /// Whether the server's count of this process' sessions makes a difference.
    pub(super) asks: bool,
    /// What the process did: see [`Sums`].
    pub(super) report: [i64; REPORTED],
    /// What is to become of the knee, if anything is.
    pub(super) knee: Option<Knee>,
}

/// What a store replied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) grant: u32,
    /// Sessions of this process that the server shows, if it was asked.
    pub(super) seen: Option<u32>,
    pub(super) is_late: bool,
    pub(super) is_settling: bool,
    pub(super) total: usize,
    pub(super) reserve: usize,
    pub(super) members: usize,
    pub(super) floors: usize,
    pub(super) counted: usize,
    /// When it was made, in ms of the store's clock.
    pub(super) now: i64,
    pub(super) knee: Knee,
    /// What all report, where this beat made the shares.
    pub(super) sums: Option<Sums>,
}

/// What every beat says.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) label: String,
    pub(super) weight: f64,
    pub(super) total: Option<usize>,
    pub(super) reserve: Option<usize>,
    pub(super) create: bool,
    /// Whether the fleet looks for the knee.
    pub(super) knee: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            label: String::new(),
            weight: 1.0,
            total: None,
            reserve: None,
            create: false,
            knee: true,
        }
    }
}

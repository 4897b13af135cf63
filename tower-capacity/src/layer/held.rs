//! What a request holds on its way through a layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::StatusCode;

use super::{slot::Slot, upgrade::UpgradePermit};
use crate::{
    Admission, Admit, Limiter, Outcome,
    gate::{Ask, Refused, RefusedReason},
    sync::lock,
};

/// Two words, since it moves with each response.
#[derive(Debug)]
pub(super) enum Held {
    /// The admission of a request, and nothing else.
    Alone(Admission),
    /// Nothing, or what is less usual.
    Other(Option<Box<Unusual>>),
}

/// What is held by a request that asks for an upgrade, or that a [`Mode`](crate::Mode) other than
/// `Enforce` serves.
pub(super) struct Unusual {
    /// Also held by the handler, if the handler was given a permit of this request.
    slot: Arc<Mutex<Slot>>,
    /// Of a limiter of upgraded connections.
    apart: Option<UpgradePermit>,
    /// In shadow mode: the place in the waiting room of a request that is served meanwhile.
    place: Option<Pin<Box<Admit>>>,
    limiter: Limiter,
    is_connect: bool,
}

impl Held {
    /// What a request holds that bypassed the limiter.
    pub(super) const NOTHING: Self = Self::Other(None);

    /// Admits a request while its limiter is switched off: uncounted, unless the limiter drains.
    pub(super) fn uncounted(limiter: &Limiter) -> Result<Self, Refused> {
        match limiter.enter_uncounted() {
            Ok(permit) => Ok(Self::unusual(limiter, permit.into(), None)),
            Err(refused) if refused.reason() == RefusedReason::Closed => {
                limiter.note_refusal(&refused);
                Err(refused)
            }
            // More than a gate can count.
            Err(_) => Ok(Self::NOTHING),
        }
    }

    /// Admits a request in shadow mode, and counts what would have been decided.
    pub(super) fn shadow(limiter: &Limiter, ask: Ask) -> Result<Self, Refused> {
        if let Some(admission) = limiter.try_enter(ask.claim()) {
            return Ok(Self::Alone(admission));
        }
        match limiter.turn_away(ask.claim()) {
            Some(refused) if refused.reason() == RefusedReason::Closed => Err(refused),
            Some(_) => Self::uncounted(limiter),
            None => {
                let place = Box::pin(limiter.admit_with(ask));
                Ok(Self::unusual(limiter, Slot::default(), Some(place)))
            }
        }
    }

    fn unusual(limiter: &Limiter, slot: Slot, place: Option<Pin<Box<Admit>>>) -> Self {
        Self::Other(Some(Box::new(Unusual {
            slot: Arc::new(Mutex::new(slot)),
            apart: None,
            place,
            limiter: limiter.clone(),
            is_connect: false,
        })))
    }

    /// Splits off what the handler of a request that asks for an upgrade can keep: the permit of
    /// the request, or `apart`, that of the limiter of upgraded connections.
    pub(super) fn shared(
        self,
        apart: Option<UpgradePermit>,
        is_connect: bool,
        outer: Option<UpgradePermit>,
    ) -> (Self, UpgradePermit) {
        let mut unusual = match self {
            Self::Alone(admission) => {
                let limiter = admission.limiter().clone();
                Box::new(Unusual {
                    slot: Arc::new(Mutex::new(admission.into())),
                    apart: None,
                    place: None,
                    limiter,
                    is_connect,
                })
            }
            Self::Other(Some(unusual)) => unusual,
            Self::Other(None) => {
                let permit = apart.unwrap_or_else(|| UpgradePermit::new(Arc::default()));
                return (Self::NOTHING, permit.within(outer));
            }
        };
        unusual.is_connect = is_connect;
        let permit = match &apart {
            Some(apart) => apart.clone(),
            None => UpgradePermit::new(Arc::clone(&unusual.slot)),
        };
        unusual.apart = apart;
        (Self::Other(Some(unusual)), permit.within(outer))
    }

    /// Notes what became of the place in the waiting room, in shadow mode.
    #[inline]
    pub(super) fn poll_place(&mut self, cx: &mut Context<'_>) {
        if let Self::Other(Some(unusual)) = self {
            unusual.poll_place(cx);
        }
    }

    pub(super) const fn is_nothing(&self) -> bool {
        matches!(self, Self::Other(None))
    }

    /// Which limiter counts the request; zero for none.
    #[inline]
    pub(super) fn counted_by(&self) -> usize {
        match self {
            Self::Alone(admission) => admission.limiter().id(),
            Self::Other(Some(unusual)) => unusual.limiter.id(),
            Self::Other(None) => 0,
        }
    }

    #[inline]
    pub(super) fn complete(&mut self, outcome: Outcome) {
        match self {
            Self::Alone(admission) => admission.complete(outcome),
            Self::Other(None) => {}
            Self::Other(Some(unusual)) => unusual.complete(outcome),
        }
    }

    /// Returns the permit of a request with a response of `status`, if that upgrades the
    /// connection and the connection is counted apart.
    #[inline]
    pub(super) fn answered(&mut self, status: StatusCode) {
        if let Self::Other(Some(unusual)) = self {
            unusual.answered(status);
        }
    }
}

impl Unusual {
    fn poll_place(&mut self, cx: &mut Context<'_>) {
        let Some(place) = &mut self.place else {
            return;
        };
        let slot = match place.as_mut().poll(cx) {
            Poll::Pending => return,
            Poll::Ready(Ok(admission)) => admission.into(),
            Poll::Ready(Err(_)) => self.without_place(),
        };
        self.place = None;
        *lock(&self.slot) = slot;
    }

    fn without_place(&self) -> Slot {
        self.limiter
            .enter_uncounted()
            .map_or_else(|_| Slot::default(), Slot::from)
    }

    #[cold]
    fn complete(&mut self, outcome: Outcome) {
        if self.place.take().is_some() {
            // It would still wait. From here on it is only to be waited for by a drain.
            *lock(&self.slot) = self.without_place();
        }
        lock(&self.slot).complete(outcome);
        if let Some(apart) = &self.apart {
            apart.complete(outcome);
        }
    }

    #[cold]
    fn answered(&mut self, status: StatusCode) {
        let is_upgrade =
            status == StatusCode::SWITCHING_PROTOCOLS || self.is_connect && status.is_success();
        if self.apart.is_some() && is_upgrade {
            let returned = std::mem::take(&mut *lock(&self.slot));
            drop(returned);
        }
    }
}

impl fmt::Debug for Unusual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unusual")
            .field("slot", &self.slot)
            .field("waits", &self.place.is_some())
            .finish_non_exhaustive()
    }
}

use crate::{Admission, Outcome, gate::Permit};

/// What counts one request or connection.
#[derive(Debug, Default)]
pub(super) struct Slot {
    admission: Option<Admission>,
    /// Served, but not counted by the limiter; a drain waits for it all the same.
    _uncounted: Option<Permit>,
}

impl Slot {
    pub(super) fn complete(&mut self, outcome: Outcome) {
        if let Some(admission) = &mut self.admission {
            admission.complete(outcome);
        }
    }
}

impl From<Admission> for Slot {
    fn from(admission: Admission) -> Self {
        Self {
            admission: Some(admission),
            _uncounted: None,
        }
    }
}

impl From<Permit> for Slot {
    fn from(permit: Permit) -> Self {
        Self {
            admission: None,
            _uncounted: Some(permit),
        }
    }
}

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{Decision, PoolWindow, Tuner};
use crate::Bounds;

/// What a [`Tuner`] was given in the last minutes, and the tuner as it was before.
///
/// A tuner decides from nothing else, so [`replay`](Self::replay) makes the same decisions again:
/// to look into one after the fact, or to see what other constants would have done.
#[derive(Clone, Debug)]
pub struct Recording {
    before: Tuner,
    inputs: VecDeque<(Instant, Input)>,
}

#[derive(Clone, Debug)]
enum Input {
    Window(Box<PoolWindow>),
    Bounds(Bounds),
    Failover,
}

impl Recording {
    /// Inputs kept: ten minutes of windows of 250 ms.
    const KEPT: usize = 2_400;

    /// Starts with this tuner.
    #[must_use]
    pub fn new(tuner: Tuner) -> Self {
        Self {
            before: tuner,
            inputs: VecDeque::new(),
        }
    }

    /// The tuner was given a window.
    pub fn window(&mut self, now: Instant, window: PoolWindow) {
        self.push(now, Input::Window(Box::new(window)));
    }

    /// The tuner was given bounds.
    pub fn bounds(&mut self, now: Instant, bounds: Bounds) {
        self.push(now, Input::Bounds(bounds));
    }

    /// The tuner was told of a failover.
    pub fn failover(&mut self, now: Instant) {
        self.push(now, Input::Failover);
    }

    /// Makes the decisions again, every one of them, also those that changed nothing.
    #[must_use]
    pub fn replay(&self) -> Vec<Decision> {
        let mut tuner = self.before.clone();
        self.inputs
            .iter()
            .map(|(now, input)| apply(&mut tuner, *now, input))
            .collect()
    }

    fn push(&mut self, now: Instant, input: Input) {
        if self.inputs.len() == Self::KEPT
            && let Some((at, oldest)) = self.inputs.pop_front()
        {
            apply(&mut self.before, at, &oldest);
        }
        self.inputs.push_back((now, input));
    }
}

fn apply(tuner: &mut Tuner, now: Instant, input: &Input) -> Decision {
    match input {
        Input::Window(window) => tuner.on_window(now, window),
        Input::Bounds(bounds) => tuner.set_bounds(now, *bounds),
        Input::Failover => tuner.failover(now),
    }
}

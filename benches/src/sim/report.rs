//! What a run measured.

/// The requests of a class in a phase.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClassReport {
    /// Requests that arrived, retries included.
    pub offered: u64,
    /// Served within the objective.
    pub good: u64,
}

/// One phase of a run. Requests belong to the phase they arrived in.
#[derive(Clone, Debug, Default)]
pub struct PhaseReport {
    /// Seconds.
    pub lasts: f64,
    /// Requests that arrived, retries included.
    pub offered: u64,
    /// Served within the objective.
    pub good: u64,
    /// Answered later.
    pub late: u64,
    /// Refused.
    pub refused: u64,
    /// Given up by the client.
    pub abandoned: u64,
    /// Sojourn times of the served, in seconds.
    pub sojourn: Vec<f32>,
    /// By class of request, in the order of the scenario.
    pub classes: Vec<ClassReport>,
    /// Limit in force, of all instances together, sampled ten times a second.
    pub limits: Vec<usize>,
}

impl PhaseReport {
    /// Good responses a second.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.good as f64 / self.lasts
    }

    /// The share of what arrived that was served within the objective.
    #[must_use]
    pub fn good_share(&self) -> f64 {
        self.good as f64 / self.offered.max(1) as f64
    }

    /// The share of what arrived that was refused.
    #[must_use]
    pub fn refused_share(&self) -> f64 {
        self.refused as f64 / self.offered.max(1) as f64
    }

    /// The sojourn time that a share of the answered requests stays below, in seconds.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        if self.sojourn.is_empty() {
            return 0.0;
        }
        let mut times = self.sojourn.clone();
        let index = ((times.len() as f64 * share) as usize).min(times.len() - 1);
        f64::from(*times.select_nth_unstable_by(index, f32::total_cmp).1)
    }

    /// Mean limit over the last half of the phase.
    #[must_use]
    pub fn settled_limit(&self) -> f64 {
        let half = &self.limits[self.limits.len() / 2..];
        half.iter().sum::<usize>() as f64 / half.len().max(1) as f64
    }
}

/// One moment of a run.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Seconds since the start.
    pub at: f64,
    /// Limit in force.
    pub limit: usize,
    /// Requests inside.
    pub inflight: usize,
    /// Requests that wait.
    pub queued: usize,
}

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By phase.
    pub phases: Vec<PhaseReport>,
    /// Ten a second.
    pub samples: Vec<Sample>,
    /// Good responses in each tenth of a second, by the time of the response.
    pub good_by_tenth: Vec<u32>,
    /// Every explained change of the limit that is still in the limiter's history.
    pub changes: Vec<String>,
    /// Permits that were still out after every request was gone.
    pub leaked: usize,
}

impl Report {
    /// Good responses over the whole run.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.phases.iter().map(|phase| phase.good).sum()
    }
}

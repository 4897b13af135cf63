//! Whether a tuned pool did what it must.

use std::fmt::Write;
use std::time::Duration;

use pool_autotune::tuner::{Reason, Verdict};

use crate::generate::{Event, Situation, Style};
use crate::play::{Outcome, Told, bare, fair, tuned};

/// Fails with what went wrong.
///
/// The tuned pool has to keep up with one of three others of the same maximum: a bare one that dials
/// within the same budget; a bare one that dials as it likes, which is no worse a reference where
/// dials fail; and a fair one. With the same budget, bare pools serve the checkouts that happen to come
/// while the others dial, which is luck that a fair pool does not have.
///
/// A single play may be lost by luck, too: by which callers the one statement that fails or the one
/// deadlock finds, or which of them are slow. So one that is lost is played again with other callers, and
/// then the sums decide, and that none is lost by half. It is not one of them itself: chosen because it
/// was lost, it would bring the luck that it was chosen for into the sums.
pub(crate) fn judge(situation: &Situation) -> Result<(), String> {
    const PLAYS: u64 = 20;
    let first = Played::new(situation);
    dials_within_the_budget(situation, &first.tuned)?;
    tells_the_truth(situation, &first.tuned)?;
    let Err(why) = first.verdict(worst(situation)) else {
        return Ok(());
    };
    let mut sums = Played::default();
    for other in 1..=PLAYS {
        let played = Played::new(&situation.with_callers(other));
        played.verdict(HALF)?;
        sums.add(&played);
    }
    sums.verdict(worst(situation))
        .map_err(|sums| format!("{why}; in {PLAYS} plays {sums}"))
}

/// Verdicts, decisions and reports say what server and callers know, as far as they do.
fn tells_the_truth(situation: &Situation, tuned: &Outcome) -> Result<(), String> {
    /// A window of few checkouts, and what it takes to close it.
    const WINDOW: Duration = Duration::from_secs(11);
    /// What no use time but a long one exceeds.
    const LONG: Duration = Duration::from_secs(10);
    /// Times are read at the end of a window.
    const TICK: Duration = Duration::from_millis(250);
    let has_knee = situation.phases.iter().any(|phase| phase.knee.is_some());
    let longest_wait = (situation.patience + TICK).as_secs_f64();
    for (at, decision) in &tuned.decisions {
        let wait = decision.inputs().mean_wait_time;
        if wait > longest_wait || decision.reason() == Reason::AtKnee && !has_knee {
            return Err(format!("untrue at {at:.1?}: {decision}"));
        }
    }
    for ((at, told, truth), index) in tuned.told.iter().zip(1..) {
        let Told {
            verdict,
            snapshot,
            report,
        } = told;
        let seen = &situation.phases[..index];
        let long = truth.used_for.iter().filter(|used| **used >= LONG);
        let oldest = truth.used_for.iter().max().copied().unwrap_or_default();
        let max = seen.iter().rev().find_map(|phase| match phase.event {
            Event::Bounds(max) => Some(max),
            _ => None,
        });
        let is_true = match verdict {
            Verdict::Healthy => truth.waiting_for < WINDOW,
            Verdict::Underprovisioned => snapshot.target() < max.unwrap_or(situation.max),
            Verdict::BudgetBound => snapshot.target() == max.unwrap_or(situation.max),
            Verdict::AtKnee(_) => has_knee,
            Verdict::ConnectBound => {
                truth.open == 0 && truth.dial_failed.is_some()
                    || truth.dialing > 0
                    || truth.dial_failed.is_some_and(|ago| ago < WINDOW)
            }
            Verdict::Leaking(leak) => {
                leak.count() <= long.count() && leak.held_for() <= oldest + TICK
            }
            Verdict::NestedAcquire(_) => seen
                .iter()
                .any(|phase| matches!(phase.style, Style::Nested | Style::Joined)),
            _ => false,
        };
        let sizes = truth.open..=truth.open + truth.dialing;
        let is_counted = sizes.contains(&snapshot.size())
            && snapshot.pending() <= truth.waiting
            && snapshot.wait_mean().as_secs_f64() <= longest_wait;
        let spares = snapshot.size().saturating_sub(truth.used_for.len());
        let claims = report.split("would keep ").nth(1);
        let fewer = claims.and_then(|claim| claim.split(' ').next()?.parse().ok());
        if !is_true || !is_counted || fewer.unwrap_or(0) > spares {
            return Err(format!(
                "untrue at {at:.1?}: {report} {snapshot:?} but {truth:?}"
            ));
        }
    }
    Ok(())
}

/// How a situation was played.
#[derive(Default)]
struct Played {
    tuned: Outcome,
    references: [Outcome; 3],
}

impl Played {
    fn new(situation: &Situation) -> Self {
        Self {
            tuned: tuned(situation),
            references: [
                bare(situation, true),
                bare(situation, false),
                fair(situation),
            ],
        }
    }

    fn add(&mut self, other: &Self) {
        self.tuned.add(&other.tuned);
        for (sum, other) in self.references.iter_mut().zip(&other.references) {
            sum.add(other);
        }
    }

    fn verdict(&self, worst: f64) -> Result<(), String> {
        let least = self.references.iter().min_by_key(|other| other.served);
        verdict(least.expect("three"), &self.tuned, worst)
    }
}

/// The least part of what a reference served in a single play.
const HALF: f64 = 0.5;

/// The same of what it served in all.
fn worst(situation: &Situation) -> f64 {
    // Near a knee the two differ by chance, and experiments cost.
    match situation.phases.iter().any(|phase| phase.knee.is_some()) {
        true => 0.90,
        false => 0.98,
    }
}

/// Two dials run at a time, except for those that hang, and for those within the pool behind where it
/// finds its idle connections dead before the first of them is known.
fn dials_within_the_budget(situation: &Situation, tuned: &Outcome) -> Result<(), String> {
    const HANGS: Duration = Duration::from_millis(500);
    const AT_ONCE: usize = 2;
    const FOUND_DEAD: usize = 2;
    let hang = situation
        .phases
        .iter()
        .any(|phase| phase.dial >= HANGS || matches!(phase.event, Event::Hang(_)));
    if hang || tuned.peak_dials <= AT_ONCE + FOUND_DEAD {
        return Ok(());
    }
    Err(format!("{} dials at once", tuned.peak_dials))
}

fn verdict(bare: &Outcome, tuned: &Outcome, worst: f64) -> Result<(), String> {
    // Of a few callers a part is nothing.
    const SLACK: f64 = 4.0;
    let least = worst * bare.served as f64 - SLACK;
    // No pool knows for how long a checkout will use its connection. With all in use, one that had to
    // refuse those that came first serves many short ones after them, and a count would praise it for it.
    if (tuned.served as f64) < least && tuned.used < bare.used {
        let phases: Vec<_> = bare
            .by_phase
            .iter()
            .zip(&tuned.by_phase)
            .map(|(bare, tuned)| (bare.0, bare.1, tuned.1))
            .collect();
        return Err(format!(
            "of {} callers {} were served, bare {}; by phase (callers, bare, tuned) {phases:?}",
            tuned.callers, tuned.served, bare.served
        ));
    }
    Ok(())
}

/// The smallest part of a situation that still fails.
pub(crate) fn shrink(situation: &Situation) -> (Situation, String) {
    let mut smallest = situation.clone();
    let mut why = judge(&smallest).err().unwrap_or_default();
    loop {
        let smaller = candidates(&smallest).into_iter().find_map(|candidate| {
            let why = judge(&candidate).err()?;
            Some((candidate, why))
        });
        match smaller {
            Some((candidate, reason)) => (smallest, why) = (candidate, reason),
            None => return (smallest, why),
        }
    }
}

fn candidates(situation: &Situation) -> Vec<Situation> {
    let mut all = Vec::new();
    let phases = situation.phases.len();
    if phases > 1 {
        for index in 0..phases {
            let mut fewer = situation.clone();
            fewer.phases.remove(index);
            all.push(fewer);
        }
    }
    for index in 0..phases {
        let mut changed = |differs: bool, change: &dyn Fn(&mut crate::generate::Phase)| {
            if differs {
                let mut simpler = situation.clone();
                change(&mut simpler.phases[index]);
                all.push(simpler);
            }
        };
        let phase = &situation.phases[index];
        changed(phase.event != Event::Nothing, &|phase| {
            phase.event = Event::Nothing
        });
        changed(phase.holders > 0, &|phase| phase.holders = 0);
        changed(phase.holders > 1, &|phase| phase.holders /= 2);
        changed(phase.style != Style::Single, &|phase| {
            phase.style = Style::Single
        });
        changed(phase.knee.is_some(), &|phase| phase.knee = None);
        changed(phase.uses.len() > 1, &|phase| phase.uses.truncate(1));
        changed(phase.lasts.as_millis() > 100, &|phase| phase.lasts /= 2);
    }
    all
}

/// How both fared, and what the tuner did.
pub(crate) fn explain(situation: &Situation) -> String {
    let Played { tuned, references } = Played::new(situation);
    let names = ["bare", "bare, dials as it likes", "fair", "tuned"];
    let mut text = String::new();
    for (name, played) in names.iter().zip(references.iter().chain([&tuned])) {
        let _ = writeln!(
            text,
            "{name}: {} of {}, {} dials, {} at once; by phase {:?}",
            played.served, played.callers, played.dials, played.peak_dials, played.by_phase
        );
    }
    for (at, decision) in &tuned.decisions {
        let _ = writeln!(text, "  {at:.1?} {decision}");
    }
    for (at, told, truth) in &tuned.told {
        let _ = writeln!(
            text,
            "  {at:.1?} {}\n    {:?}\n    {truth:?}",
            told.report, told.snapshot
        );
    }
    text
}

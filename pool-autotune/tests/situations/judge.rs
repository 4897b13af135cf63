//! Whether a tuned pool did what it must.

use std::fmt::Write;
use std::time::Duration;

use crate::generate::{Event, Situation, Style};
use crate::play::{Outcome, bare, fair, tuned};

/// Fails with what went wrong.
///
/// The tuned pool has to keep up with one of three others of the same maximum: a bare one that dials
/// within the same budget; a bare one that dials as it likes, which is no worse a reference where
/// dials fail; and a fair one. With the same budget, bare pools serve the checkouts that happen to come while
/// the others dial, which is luck that a fair pool does not have.
pub(crate) fn judge(situation: &Situation) -> Result<(), String> {
    let tuned = tuned(situation);
    dials_within_the_budget(situation, &tuned)?;
    verdict(situation, &bare(situation, true), &tuned)
        .or_else(|_| verdict(situation, &bare(situation, false), &tuned))
        .or_else(|_| verdict(situation, &fair(situation), &tuned))
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

fn verdict(situation: &Situation, bare: &Outcome, tuned: &Outcome) -> Result<(), String> {
    // Near a knee the two differ by chance, and experiments cost.
    let worst = if situation.phases.iter().any(|phase| phase.knee.is_some()) {
        0.90
    } else {
        0.98
    };
    // Of a few callers a part is nothing.
    const SLACK: f64 = 4.0;
    let least = worst * bare.served as f64 - SLACK;
    if (tuned.served as f64) < least {
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
    let (bare, tuned) = (bare(situation, true), tuned(situation));
    let mut text = String::new();
    let _ = writeln!(
        text,
        "bare: {} of {}, {} dials, {} at once",
        bare.served, bare.callers, bare.dials, bare.peak_dials
    );
    let _ = writeln!(
        text,
        "tuned: {} of {}, {} dials, {} at once",
        tuned.served, tuned.callers, tuned.dials, tuned.peak_dials
    );
    for (at, decision) in &tuned.decisions {
        let _ = writeln!(text, "  {at:.1?} {decision}");
    }
    if let Some(verdict) = &tuned.verdict {
        let _ = writeln!(text, "verdict: {verdict}");
    }
    let _ = writeln!(text, "{}\n{}", tuned.report, tuned.end);
    text
}

//! The table on the terminal, and the document with its blanks filled in.

use std::fmt::{self, Write};

use crate::driver::{Capacity, Played, Run};
use crate::judge::{Verdict, plain};
use crate::measure::Measured;
use crate::profile::Growth;

/// Whether our defaults met every target.
pub(crate) fn is_met(played: &Played) -> bool {
    let ours = played.runs.iter().filter(|run| run.way == "ours");
    let mut verdicts = ours.flat_map(|run| &run.verdicts);
    verdicts.all(|verdict| verdict.met)
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), plain)
}

fn header(profile: &crate::profile::Profile) -> String {
    format!("{} ({}; {})", profile.name, profile.title, profile.scale)
}

pub(crate) fn table(played: &Played) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write_table(&mut text, played);
    text
}

fn write_table(text: &mut String, played: &Played) -> fmt::Result {
    writeln!(text, "\n{}", header(&played.profile))?;
    writeln!(
        text,
        "{:>8} {:<12} {:>9} {:>9} {:>7} {:>7} {:>7} {:>8} {:>7} {:>8} {:>6} {:>7}",
        "way",
        "level",
        "offered/s",
        "good/s",
        "P50",
        "P95",
        "P99",
        "errors %",
        "shed %",
        "429 %",
        "conns",
        "refused"
    )?;
    let mut line = |way: &str, seen: &Measured| {
        writeln!(
            text,
            "{way:>8} {:<12} {:>9} {:>9} {:>7} {:>7} {:>7} {:>8} {:>7} {:>8} {:>6} {:>7}",
            seen.level,
            plain(seen.offered_per_s),
            plain(seen.good_per_s),
            or_dash(seen.p50_ms),
            or_dash(seen.p95_ms),
            or_dash(seen.p99_ms),
            or_dash(seen.error_pct),
            plain(seen.shed_pct),
            or_dash(seen.limited_pct),
            seen.connections,
            seen.connections_refused,
        )
    };
    for swept in &played.sweep {
        line(&format!("≤ {}", swept.concurrency), &swept.seen)?;
    }
    for run in &played.runs {
        for seen in &run.levels {
            line(run.way, seen)?;
        }
        for seen in run.capacity.iter().flat_map(|capacity| &capacity.steps) {
            line(run.way, seen)?;
        }
    }
    for (name, expected, cells) in by_target(played) {
        let [documented, ours] = cells.map(|verdict| verdict.map_or_else(String::new, cell));
        writeln!(
            text,
            "  {name}: {expected}; static {documented}, ours {ours}"
        )?;
    }
    Ok(())
}

fn cell(verdict: &Verdict) -> String {
    let sign = if verdict.met { "✓" } else { "✗" };
    format!("{} {sign}", or_dash(verdict.measured))
}

type Row<'a> = (String, String, [Option<&'a Verdict>; 2]);

/// Each target at each level: expected, and what static numbers and ours reached.
pub(crate) fn by_target(played: &Played) -> Vec<Row<'_>> {
    let of = |way: &str| {
        let run = played.runs.iter().find(|run| run.way == way);
        run.map_or(&[][..], |run| &run.verdicts)
    };
    let (documented, ours) = (of("static"), of("ours"));
    let same = |a: &Verdict, b: &Verdict| (&a.says, &a.level) == (&b.says, &b.level);
    let row = |verdict: &Verdict| {
        (
            format!("{}, {}", verdict.says, verdict.level),
            verdict.expected.clone(),
        )
    };
    let mut rows: Vec<Row<'_>> = Vec::new();
    for verdict in ours {
        let (name, expected) = row(verdict);
        let other = documented.iter().find(|other| same(other, verdict));
        rows.push((name, expected, [other, Some(verdict)]));
    }
    for verdict in documented {
        if !ours.iter().any(|other| same(other, verdict)) {
            let (name, expected) = row(verdict);
            rows.push((name, expected, [Some(verdict), None]));
        }
    }
    rows
}

pub(crate) fn document(played: &Played) -> String {
    let mut text = String::new();
    let _ = write_document(&mut text, played);
    text
}

fn write_document(text: &mut String, played: &Played) -> fmt::Result {
    let profile = &played.profile;
    writeln!(text, "# {}: {}\n", profile.name, profile.title)?;
    writeln!(
        text,
        "Measured, not estimated. Factors between the document and this run: {}. Numbers below are those of \
         the run; targets in milliseconds are multiplied by the factor of times.{} Load average of the \
         machine before the run: {}.\n",
        profile.scale,
        if played.quick {
            " A quick run, which shows that it works and measures nothing."
        } else {
            ""
        },
        plain(played.load_average),
    )?;
    for note in &profile.notes {
        writeln!(text, "- {note}")?;
    }
    writeln!(
        text,
        "\n## Targets\n\n| target | expected | static numbers | ours, without a number |\n|---|---|---|---|"
    )?;
    for (name, expected, cells) in by_target(played) {
        let [documented, ours] = cells.map(|verdict| verdict.map_or_else(|| "–".to_owned(), cell));
        writeln!(text, "| {name} | {expected} | {documented} | {ours} |")?;
    }
    let met = |run: &Run| {
        let met = run.verdicts.iter().filter(|verdict| verdict.met).count();
        format!("{}: {met} of {}", run.way, run.verdicts.len())
    };
    let counts: Vec<_> = played.runs.iter().map(met).collect();
    writeln!(text, "\nTargets met: {}.", counts.join(", "))?;

    writeln!(text, "\n## Levels\n")?;
    write_levels(
        text,
        played
            .runs
            .iter()
            .flat_map(|run| run.levels.iter().map(|seen| (run.way.to_owned(), seen))),
    )?;
    writeln!(
        text,
        "\nThe first {} s of a level are left out. Errors are requests that were neither served nor over quota; \
         what is shed is among them.\n",
        crate::measure::SETTLE
    )?;
    write_blanks(text, played)?;
    if !played.sweep.is_empty() {
        writeln!(text, "\n## The best static numbers\n")?;
        writeln!(
            text,
            "All connections of the server, and a limit of requests at once in each pod. Best goodput of any \
             static numbers: {} a second.\n",
            or_dash(played.saturated_per_s)
        )?;
        write_levels(
            text,
            played
                .sweep
                .iter()
                .map(|swept| (format!("at most {}", swept.concurrency), &swept.seen)),
        )?;
    }
    write_triggers(text, played)?;
    write_capacity(text, played)
}

fn write_levels<'a>(
    text: &mut String,
    levels: impl Iterator<Item = (String, &'a Measured)>,
) -> fmt::Result {
    writeln!(
        text,
        "| numbers | level | offered/s | served/s | goodput/s | P50 ms | P95 ms | P99 ms | errors % | shed % | 429 % | most connections | refused by the server |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (way, seen) in levels {
        writeln!(
            text,
            "| {way} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} ({} %) | {} |",
            seen.level,
            plain(seen.offered_per_s),
            plain(seen.served_per_s),
            plain(seen.good_per_s),
            or_dash(seen.p50_ms),
            or_dash(seen.p95_ms),
            or_dash(seen.p99_ms),
            or_dash(seen.error_pct),
            plain(seen.shed_pct),
            or_dash(seen.limited_pct),
            seen.connections,
            plain(seen.connections_pct),
            seen.connections_refused,
        )?;
    }
    Ok(())
}

/// What documents leave blank.
fn write_blanks(text: &mut String, played: &Played) -> fmt::Result {
    writeln!(
        text,
        "| numbers | level | mean ms | queries P95 ms | slow queries | cache hits % | memory of all pods MiB | memory growth % | WebSockets | time-outs % | probes failed | API calls/min | API 429 after a minute | generator late P99 ms |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for run in &played.runs {
        for seen in &run.levels {
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                run.way,
                seen.level,
                or_dash(seen.mean_ms),
                or_dash(seen.query_p95_ms),
                seen.slow_queries,
                or_dash(seen.hit_pct),
                plain(seen.memory_mib),
                or_dash(seen.memory_growth_pct),
                seen.sockets,
                or_dash(seen.timeout_pct),
                seen.probes_failed,
                or_dash(seen.outbound_per_minute),
                or_dash(seen.outbound_refused.map(|count| count as f64)),
                plain(seen.generator_late_ms),
            )?;
        }
    }
    Ok(())
}

fn write_triggers(text: &mut String, played: &Played) -> fmt::Result {
    if played.profile.triggers.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "\n## Triggers\n\n| trigger | static numbers | ours |\n|---|---|---|"
    )?;
    for trigger in &played.profile.triggers {
        let fired = played.runs.iter().map(|run| {
            let fired = run.levels.iter().filter_map(|seen| {
                let at = trigger.fires(&played.profile.scale, &seen.seconds)?;
                Some(format!("{} after {} s", seen.level, at + 1))
            });
            let fired: Vec<_> = fired.collect();
            match fired.is_empty() {
                true => "never".to_owned(),
                false => fired.join(", "),
            }
        });
        let fired: Vec<_> = fired.collect();
        writeln!(text, "| {} | {} |", trigger.says, fired.join(" | "))?;
    }
    Ok(())
}

fn write_capacity<'a>(text: &mut String, played: &'a Played) -> fmt::Result {
    let found = |run: &'a Run| Some((run.way, run.capacity.as_ref()?));
    let found: Vec<(&str, &Capacity)> = played.runs.iter().filter_map(found).collect();
    if found.is_empty() {
        return Ok(());
    }
    let scale = &played.profile.scale;
    let documented = |rate: Option<f64>| {
        rate.map_or_else(
            || "not reached".to_owned(),
            |rate| {
                format!(
                    "{} (as documented: {})",
                    plain(rate),
                    plain(rate / scale.rate(1.0))
                )
            },
        )
    };
    writeln!(
        text,
        "\n## Capacity, by search\n\n| numbers | comfortable, requests/s | breaking point, requests/s |\n|---|---|---|"
    )?;
    for (way, capacity) in &found {
        let (comfortable, broken) = (capacity.comfortable_per_s, capacity.broken_per_s);
        writeln!(
            text,
            "| {way} | {} | {} |",
            documented(comfortable),
            documented(broken)
        )?;
    }
    writeln!(text)?;
    let steps = found
        .iter()
        .flat_map(|(way, capacity)| capacity.steps.iter().map(|seen| ((*way).to_owned(), seen)));
    write_levels(text, steps)?;
    match played.profile.growth {
        Some(growth) => write_growth(text, played, &growth),
        None => Ok(()),
    }
}

fn write_growth(text: &mut String, played: &Played, growth: &Growth) -> fmt::Result {
    let ours = played.runs.iter().find(|run| run.way == "ours");
    let comfortable = ours.and_then(|run| run.capacity.as_ref()?.comfortable_per_s);
    let pods = played.profile.most_pods() as f64;
    let each = comfortable.map(|rate| rate / played.profile.scale.rate(1.0) / pods);
    writeln!(
        text,
        "\n## Growth\n\nload(m) = {} × (1 + {} %)^m; instances = ⌈load / (one instance × (1 − {} %))⌉. One \
         instance: {} requests/s by the document, {} measured (comfortable, ours).\n\n\
         | month | load/s | instances by the document | instances by measurement |\n|---|---|---|---|",
        plain(growth.rate),
        plain(growth.monthly_pct),
        plain(growth.headroom_pct),
        plain(growth.per_instance),
        or_dash(each),
    )?;
    for month in (0..=growth.months).step_by(3) {
        let load = growth.at(month);
        let needed = |each: f64| match growth.instances(load, each) {
            needed if needed > growth.max_instances => {
                format!("{needed} (more than {})", growth.max_instances)
            }
            needed => needed.to_string(),
        };
        let measured = each.map_or_else(|| "–".to_owned(), needed);
        writeln!(
            text,
            "| {month} | {} | {} | {measured} |",
            plain(load),
            needed(growth.per_instance)
        )?;
    }
    Ok(())
}

impl Growth {
    fn at(&self, month: u32) -> f64 {
        self.rate * (1.0 + self.monthly_pct / 100.0).powi(month as i32)
    }

    fn instances(&self, load: f64, each: f64) -> usize {
        (load / (each * (1.0 - self.headroom_pct / 100.0))).ceil() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_counted_with_the_headroom_that_is_kept_free() {
        let growth = Growth {
            rate: 100.0,
            monthly_pct: 10.0,
            months: 12,
            per_instance: 50.0,
            headroom_pct: 20.0,
            max_instances: 10,
        };
        assert_eq!(growth.instances(growth.at(0), growth.per_instance), 3);
        assert!((growth.at(2) - 121.0).abs() < 1e-9);
        assert_eq!(growth.instances(growth.at(2), growth.per_instance), 4);
    }
}

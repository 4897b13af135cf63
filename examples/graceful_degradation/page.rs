//! The report as plain HTML, for readers without scripts; the page's script draws more in its place.

use std::fmt::Write;

use crate::measure::{Outcome, Phase, Report};

/// The headline, the checks, the picture and the phases.
pub(crate) fn page(report: &Report) -> String {
    let mut html = String::new();
    // Writing to a `String` cannot fail.
    let _ = write_page(&mut html, report);
    html
}

fn write_page(html: &mut String, report: &Report) -> std::fmt::Result {
    let sentence = headline(report);
    let (verdict, aside) = match report.outcome() {
        Outcome::NotMeasurable => ("Not measurable on this machine now.", sentence.as_str()),
        Outcome::Met | Outcome::NotMet => (sentence.as_str(), ""),
    };
    writeln!(
        html,
        "<h1>Load report: {}</h1>\n<p class=\"verdict\">{}</p>\n<p class=\"muted\">{}</p>",
        escaped(report.title),
        escaped(verdict),
        escaped(aside)
    )?;
    let failed = report.checks.iter().filter(|check| !check.pass).count();
    let (tone, outcome) = match report.outcome() {
        Outcome::Met => (
            "pass",
            format!("✓ all {} checks passed", report.checks.len()),
        ),
        Outcome::NotMet => (
            "fail",
            format!("✗ {failed} of {} checks failed", report.checks.len()),
        ),
        Outcome::NotMeasurable => (
            "fail",
            format!(
                "✗ this machine is busy: {}",
                report.conditions.problems.join("; ")
            ),
        ),
    };
    writeln!(
        html,
        "<p class=\"outcome {tone}\">{}</p>",
        escaped(&outcome)
    )?;
    html.push_str(
        "<h2>Checks</h2>\n<div class=\"scroll\"><table class=\"checks\"><thead><tr><th>check</th><th>expected</th>\
         <th>measured</th><th>result</th></tr></thead><tbody>\n",
    );
    for check in &report.checks {
        let (tone, word) = match report.result(check) {
            Outcome::Met => ("pass", "✓ pass"),
            Outcome::NotMet => ("fail", "✗ fail"),
            Outcome::NotMeasurable => ("muted", "? unknown"),
        };
        writeln!(
            html,
            "<tr><td>{}</td><td data-label=\"expected\">{}</td><td data-label=\"measured\">{}</td>\
             <td class=\"verdict-cell {tone}\">{word}</td></tr>",
            escaped(check.name),
            escaped(&check.expected),
            escaped(&check.measured)
        )?;
    }
    html.push_str("</tbody></table></div>\n<h2>Over time</h2>\n<div class=\"picture\">");
    html.push_str(&crate::chart::svg(report));
    html.push_str(
        "</div>\n<h2>Phases</h2>\n<div class=\"scroll\"><table class=\"phases\"><thead><tr><th>run</th><th>load</th>",
    );
    for column in COLUMNS {
        write!(html, "<th>{column}</th>")?;
    }
    html.push_str("</tr></thead>\n");
    for run in &report.runs {
        html.push_str("<tbody>");
        for phase in &run.phases {
            write_phase(html, run.name, phase)?;
        }
        html.push_str("</tbody>\n");
    }
    writeln!(
        html,
        "</table></div>\n<h2>How this was made</h2>\n<p>{}, {} cores, {}. The service could do {} requests a second \
         before, between and after the runs ({}).</p>\n<pre>{}</pre>",
        escaped(&report.machine.cpu),
        report.machine.cores,
        escaped(report.backend),
        report
            .conditions
            .capacity_rps
            .map(|rps| format!("{rps:.0}"))
            .join(", "),
        escaped(&report.capacity_measured),
        escaped(&report.command)
    )
}

/// The one number, which is that of the first check.
fn headline(report: &Report) -> String {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    format!(
        "At ten times its capacity the protected service delivered {} of what it can do; the bare service, {}.",
        percent(report.verdict.protected_to_capacity),
        percent(report.verdict.bare_to_capacity)
    )
}

const COLUMNS: [&str; 9] = [
    "offered/s",
    "goodput/s",
    "late/s",
    "refused/s",
    "errors/s",
    "P50 ms",
    "P99 ms",
    "refusal P99 ms",
    "health check P99 ms",
];

fn write_phase(html: &mut String, run: &str, phase: &Phase) -> std::fmt::Result {
    let ms = |time: Option<f64>| time.map_or_else(|| "–".to_owned(), |time| format!("{time:.1}"));
    write!(
        html,
        "<tr><td class=\"{run}\">{run}</td><td class=\"number\" data-label=\"load\">{}×</td>",
        phase.multiplier
    )?;
    let rates = [
        phase.offered_rps,
        phase.goodput_rps,
        phase.late_rps,
        phase.refused_rps,
        phase.error_rps,
    ];
    let rates = rates.map(|rate| format!("{rate:.0}"));
    let times = [
        phase.p50_ms,
        phase.p99_ms,
        phase.refusal_p99_ms,
        phase.health_p99_ms,
    ];
    let times = times.map(ms);
    for (column, cell) in COLUMNS.iter().zip(rates.iter().chain(&times)) {
        write!(
            html,
            "<td class=\"number\" data-label=\"{column}\">{cell}</td>"
        )?;
    }
    writeln!(html, "</tr>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

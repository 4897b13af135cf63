//! The picture: connections, goodput and errors, second by second.

use std::fmt::Write;

use crate::run::{Run, Second};
use crate::{MAX_CONNECTIONS, Way};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 70.0;
const PANEL: f64 = 130.0;
const TOP: f64 = 40.0;
const GAP: f64 = 44.0;

fn colour(way: Way) -> &'static str {
    match way {
        Way::Bare => "#c2571a",
        Way::Static => "#777777",
        Way::Ours => "#1f6fb2",
    }
}

/// What is drawn of a second.
type Panel = (&'static str, fn(&Second) -> f64);

/// Draws the runs as one SVG image.
pub(crate) fn svg(runs: &[Run]) -> String {
    let panels: [Panel; 3] = [
        ("connections, by the server's count", |s| {
            s.connections as f64
        }),
        ("queries done per second", |s| s.done as f64),
        ("errors per second", |s| s.failed as f64),
    ];
    let height = TOP + panels.len() as f64 * (PANEL + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\" \
         aria-label=\"Ten processes on one Postgres: bare, static and with a common budget\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let end = runs.iter().map(|run| run.seconds.len()).max().unwrap_or(1);
    let x = |second: usize| LEFT + (WIDTH - LEFT - RIGHT) * second as f64 / end.max(2) as f64;
    // Writing to a `String` cannot fail.
    for (index, run) in runs.iter().enumerate() {
        let at = LEFT + 90.0 * index as f64;
        let (way, colour) = (run.way.as_str(), colour(run.way));
        let _ = writeln!(
            svg,
            "<text x=\"{at}\" y=\"18\" fill=\"{colour}\" font-weight=\"600\">{way}</text>"
        );
    }
    for (index, (name, value)) in panels.into_iter().enumerate() {
        let top = TOP + index as f64 * (PANEL + GAP);
        let all = runs.iter().flat_map(|run| &run.seconds).map(value);
        let max = all.fold(MAX_CONNECTIONS as f64, f64::max) * 1.05;
        let y = |v: f64| top + PANEL * (1.0 - v / max);
        let bottom = top + PANEL;
        let right = WIDTH - RIGHT;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#333\">{name}</text>\n\
             <line x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\" stroke=\"#999\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{:.0}</text>\n\
             <text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"end\" fill=\"#666\">0</text>",
            top - 4.0,
            LEFT - 6.0,
            y(max / 1.05) + 4.0,
            max / 1.05,
            LEFT - 6.0,
        );
        if index == 0 {
            let most = y(MAX_CONNECTIONS as f64);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{most:.1}\" x2=\"{right}\" y2=\"{most:.1}\" \
                 stroke=\"#b00\" stroke-dasharray=\"4 3\"/>"
            );
        }
        for run in runs {
            let points: Vec<String> = (run.seconds.iter().enumerate())
                .map(|(second, seen)| format!("{:.1},{:.1}", x(second + 1), y(value(seen))))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\" points=\"{}\"/>",
                colour(run.way),
                points.join(" ")
            );
        }
        if index == 2 {
            let _ = writeln!(
                svg,
                "<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{end} s</text>",
                bottom + 16.0
            );
        }
    }
    svg += "</svg>\n";
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_a_line_in_every_panel() {
        let second = Second {
            connections: 97,
            done: 1_000,
            failed: 3,
        };
        let runs = Way::ALL.map(|way| Run {
            way,
            seconds: vec![second; 5],
            causes: std::collections::BTreeMap::new(),
        });
        let svg = svg(&runs);
        assert_eq!(svg.matches("<polyline").count(), 9);
        assert!(!svg.contains("NaN"), "{svg}");
    }
}

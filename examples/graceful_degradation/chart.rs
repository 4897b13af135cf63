//! The picture of the README: goodput and P99 over the ramp, bare and protected.

use std::fmt::Write;

use crate::measure::{Report, Run, Second};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 112.0;
const PANEL: f64 = 150.0;
const TOP: f64 = 46.0;
const GAP: f64 = 40.0;
const BARE: &str = "#c2571a";
const PROTECTED: &str = "#1f6fb2";

/// A vertical axis: where a value stands, 0 at the bottom and 1 at the top.
struct Axis {
    top: f64,
    share: fn(f64, f64) -> f64,
    max: f64,
}

impl Axis {
    fn y(&self, value: f64) -> f64 {
        self.top + PANEL * (1.0 - (self.share)(value, self.max).clamp(0.0, 1.0))
    }
}

fn linear(value: f64, max: f64) -> f64 {
    value / max
}

/// One millisecond at the bottom.
fn logarithmic(value: f64, max: f64) -> f64 {
    value.max(1.0).ln() / max.ln()
}

/// Draws the report as one SVG image.
pub(crate) fn svg(report: &Report) -> String {
    let end = report.ramp.last().map_or(1.0, |step| step.end());
    let x = |t: f64| LEFT + (WIDTH - LEFT - RIGHT) * t / end;
    let goodput = Axis {
        top: TOP,
        share: linear,
        max: 1.25 * report.capacity_rps,
    };
    let p99 = Axis {
        top: TOP + PANEL + GAP,
        share: logarithmic,
        max: 10_000.0,
    };
    let height = p99.top + PANEL + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\" \
         aria-label=\"Goodput and P99 over a ramp to ten times the capacity, bare and protected\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    // Writing to a `String` cannot fail.
    let _ = draw_load(&mut svg, report, &x, height);
    let caption = "goodput: answers a second within 500 ms";
    let _ = draw_axis(
        &mut svg,
        &goodput,
        caption,
        &[0.0, 0.5, 1.0].map(|c| c * report.capacity_rps),
        "",
    );
    let _ = draw_axis(
        &mut svg,
        &p99,
        "P99 of answered requests",
        &[1.0, 10.0, 100.0, 500.0, 5000.0],
        " ms",
    );
    for (run, colour, dash) in report
        .runs
        .iter()
        .zip([BARE, PROTECTED])
        .map(|(run, colour)| (run, colour, if colour == BARE { "5 3" } else { "none" }))
    {
        let style = format!("stroke=\"{colour}\" stroke-dasharray=\"{dash}\"");
        let _ = draw_line(&mut svg, run, &x, &goodput, &style, |second| {
            Some(second.goodput() as f64)
        });
        let _ = draw_line(&mut svg, run, &x, &p99, &style, Second::p99_ms);
    }
    let _ = draw_legend(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

/// The steps of the ramp as columns, darker with more load.
fn draw_load(
    svg: &mut String,
    report: &Report,
    x: &impl Fn(f64) -> f64,
    height: f64,
) -> std::fmt::Result {
    for step in &report.ramp {
        let (from, to) = (x(step.start()), x(step.end()));
        let opacity = 0.03 + 0.05 * step.multiplier().max(0.5).log2().max(0.0);
        writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#555\" opacity=\"{opacity:.2}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}\u{d7}</text>",
            to - from,
            height - TOP - 30.0,
            (from + to) / 2.0,
            height - 14.0,
            step.multiplier(),
        )?;
    }
    writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#444\">of capacity</text>",
        WIDTH - RIGHT + 8.0,
        height - 14.0
    )
}

fn draw_axis(
    svg: &mut String,
    axis: &Axis,
    caption: &str,
    ticks: &[f64],
    unit: &str,
) -> std::fmt::Result {
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\" fill=\"#222\">{caption}</text>",
        axis.top - 8.0
    )?;
    for &tick in ticks {
        let y = axis.y(tick);
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#999\" stroke-width=\"0.5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444\">{tick:.0}{unit}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        )?;
    }
    Ok(())
}

/// A line that breaks where there is no value.
fn draw_line(
    svg: &mut String,
    run: &Run,
    x: &impl Fn(f64) -> f64,
    axis: &Axis,
    style: &str,
    value: impl Fn(&Second) -> Option<f64>,
) -> std::fmt::Result {
    write!(svg, "<path fill=\"none\" stroke-width=\"2\" {style} d=\"")?;
    let mut command = 'M';
    for second in &run.seconds {
        match value(second) {
            Some(value) => {
                write!(
                    svg,
                    "{command}{:.1} {:.1}",
                    x(second.t() + 0.5),
                    axis.y(value)
                )?;
                command = 'L';
            }
            None => command = 'M',
        }
    }
    writeln!(svg, "\"/>")
}

fn draw_legend(svg: &mut String) -> std::fmt::Result {
    let x = WIDTH - RIGHT + 10.0;
    for (row, name, colour, dash) in [
        (0.0, "protected", PROTECTED, "none"),
        (1.0, "bare", BARE, "5 3"),
    ] {
        let y = TOP + 14.0 + 20.0 * row;
        writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222\">{name}</text>",
            x + 24.0,
            x + 30.0,
            y + 4.0
        )?;
    }
    Ok(())
}

//! Draws the result as SVG: for each way the time to read all files, and how late the ticker was.
//! Readable on light and on dark pages.

use std::fmt::Write;

use crate::{Row, State};

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
const HEADER: f64 = 76.0;
const BAR: f64 = 12.0;
const STEP: f64 = 15.0;
const GAP: f64 = 10.0;
/// Where the bars of the two panels begin, and how long they are at most.
const PANELS: [f64; 2] = [180.0, 510.0];
const LENGTH: f64 = 240.0;

/// The least lateness that is drawn, in milliseconds: the axis is logarithmic.
const LEAST: f64 = 0.01;

/// Draws the rows of the states that were measured.
pub(crate) fn svg(bytes: u64, results: &[(State, Vec<Row>)]) -> String {
    let rows = results.first().map_or(0, |(_, rows)| rows.len());
    let group = results.len() as f64 * STEP + GAP;
    let height = HEADER + rows as f64 * group + MARGIN;
    let all = || results.iter().flat_map(|(_, rows)| rows);
    let longest = all().filter(|row| row.way.is_some()).map(Row::seconds);
    let longest = longest.fold(f64::MIN_POSITIVE, f64::max);
    let latest = all().map(|row| row.late(0.999)).fold(2.0 * LEAST, f64::max);

    let mut svg = Svg::new(WIDTH, height);
    let title = format!("Tasks of one thread read {} MiB", bytes >> 20);
    svg.text(MARGIN, 28.0, "h", &title);
    svg.text(PANELS[0], 60.0, "t", "time");
    svg.text(PANELS[1], 60.0, "t", "tick late by (p99.9, logarithmic)");
    for (number, (state, _)) in results.iter().enumerate() {
        let x = WIDTH - MARGIN - 140.0 + 70.0 * number as f64;
        svg.bar(x, 18.0, 12.0, state.name());
        svg.text(x + 18.0, 28.0, "n", state.name());
    }
    for number in 0..rows {
        let top = HEADER + number as f64 * group;
        let middle = top + results.len() as f64 * STEP / 2.0 + 3.0;
        svg.text(PANELS[0] - 10.0, middle, "l", results[0].1[number].name());
        for (place, (state, rows)) in results.iter().enumerate() {
            let row = &rows[number];
            let y = top + place as f64 * STEP;
            let mut draw = |panel: f64, part: f64, label: String| {
                let width = (LENGTH * part).max(1.0);
                svg.bar(panel, y, width, state.name());
                svg.text(panel + width + 6.0, y + BAR - 1.5, "n", &label);
            };
            if row.way.is_some() {
                let seconds = row.seconds();
                draw(
                    PANELS[0],
                    seconds / longest,
                    format!("{:.0} ms", seconds * 1e3),
                );
            }
            let late = row.late(0.999);
            let part = (late.max(LEAST) / LEAST).ln() / (latest / LEAST).ln();
            draw(PANELS[1], part, format!("{late:.2} ms"));
        }
    }
    svg.finish()
}

/// A drawing under construction.
struct Svg(String);

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self(format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<style>
text {{ font: 12px system-ui, sans-serif; fill: #1f2328 }}
.h {{ font-size: 17px; font-weight: 600 }}
.t {{ font-weight: 600 }}
.l {{ text-anchor: end }}
.cold {{ fill: #1f6feb }}
.hot {{ fill: #e5713d }}
.page {{ fill: #ffffff }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }}
.page {{ fill: #0d1117 }}
}}
</style>
<rect class="page" width="{width}" height="{height}" rx="6"/>
"##
        ))
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.line(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#
        ));
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, class: &str) {
        self.line(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="2" class="{class}"/>"#
        ));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String can be written to");
    }

    fn finish(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

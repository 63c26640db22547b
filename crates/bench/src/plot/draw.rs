//! Draws a figure as SVG.

use std::fmt::Write as _;

use super::axis::Placed;
use super::{Chart, Figure, Look, Mark, Scale, Series};

/// The font that is built in.
pub(super) const FONT: &str = "DejaVu Sans";

const WIDTH: f64 = 900.0;
/// Of a chart's data.
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 100.0;
const RIGHT: f64 = 30.0;
/// Between a chart's data and what comes below it: ticks and the axis's label.
const BELOW: f64 = 90.0;
const TITLE: f64 = 28.0;
const TEXT: f64 = 20.0;
/// A letter's mean width, in its height.
const LETTER: f64 = 0.58;
const LINE_WIDTH: f64 = 3.0;
/// A longer line has no dots.
const MAX_DOTS: usize = 24;

/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLORS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222"];

/// Returns a figure as SVG, with text as text.
pub(super) fn svg(figure: &Figure) -> String {
    let mut body = Drawing(String::new());
    let mut top = 44.0;
    for line in wrapped(&figure.title, TITLE) {
        body.text((WIDTH / 2.0, top), &line, Style { size: TITLE, weight: "bold", ..MIDDLE });
        top += TITLE * 1.2;
    }
    for line in wrapped(&figure.subtitle, TEXT * 0.9) {
        body.text((WIDTH / 2.0, top), &line, Style { size: TEXT * 0.9, fill: "#555555", ..MIDDLE });
        top += TEXT * 1.15;
    }
    for chart in &figure.charts {
        top = body.chart(chart, top);
    }
    let height = top + 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"{FONT}\"><rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>{}</svg>",
        body.0
    )
}

#[derive(Clone, Copy)]
struct Style {
    size: f64,
    anchor: &'static str,
    weight: &'static str,
    fill: &'static str,
    turn: f64,
}

const MIDDLE: Style =
    Style { size: TEXT, anchor: "middle", weight: "normal", fill: "#222222", turn: 0.0 };
const START: Style = Style { anchor: "start", ..MIDDLE };
const END: Style = Style { anchor: "end", ..MIDDLE };

struct Drawing(String);

/// Writes to a string, which can't fail.
macro_rules! add {
    ($drawing:expr, $($arg:tt)*) => {{ let _ = write!($drawing.0, $($arg)*); }};
}

impl Drawing {
    /// Draws a chart and returns where it ends.
    fn chart(&mut self, chart: &Chart, top: f64) -> f64 {
        let top = self.legend(chart, top) + 12.0;
        let (left, right, bottom) = (LEFT, WIDTH - RIGHT, top + HEIGHT);
        let points = || chart.series.iter().flat_map(|series| series.points.iter());
        let rules = chart.rules.iter().map(|(at, _)| *at);
        let has_bars = chart.series.iter().any(|series| series.look == Look::Bars);
        let x = Placed::new(&chart.x, points().map(|point| point.0), (left, right), false);
        let heights = points().map(|point| point.1).chain(rules);
        let y = Placed::new(&chart.y, heights, (bottom, top), true);
        self.axes(chart, &x, &y, (top, bottom));
        add!(
            self,
            "<clipPath id=\"c{top}\"><rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{HEIGHT}\"/></clipPath>",
            right - left
        );
        add!(self, "<g clip-path=\"url(#c{top})\">");
        if has_bars {
            self.bars(&chart.series, &x, &y, bottom);
        }
        let is_line = |series: &&Series| series.look != Look::Bars && !series.points.is_empty();
        for series in chart.series.iter().filter(is_line) {
            self.line(series, &x, &y);
        }
        add!(self, "</g>");
        for (at, text) in &chart.rules {
            let Some(at) = y.pixel(*at).filter(|at| (top..=bottom).contains(at)) else { continue };
            self.rule((left, right), at, "#888888", "8 6");
            self.text(
                (right - 6.0, at - 8.0),
                text,
                Style { size: TEXT * 0.85, fill: "#555555", ..END },
            );
        }
        let mut labels: Vec<(f64, f64)> = Vec::new();
        for Mark { at, text, color } in &chart.marks {
            let Some((at_x, at_y)) = x.pixel(at.0).zip(y.pixel(at.1)) else { continue };
            let color = COLORS[color % COLORS.len()];
            add!(
                self,
                "<circle cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"7\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.5\"/>"
            );
            let style = if at_x > (left + right) / 2.0 { END } else { START };
            let beside = if at_x > (left + right) / 2.0 { -12.0 } else { 12.0 };
            // Below the label of a mark nearby.
            let mut at = (at_x + beside, at_y + 26.0);
            let is_taken = |at: (f64, f64)| {
                let near = |&(x, y): &(f64, f64)| {
                    (x - at.0).abs() < width(text, TEXT) + 12.0 && (y - at.1).abs() < TEXT
                };
                labels.iter().any(near)
            };
            while is_taken(at) {
                at.1 += TEXT * 1.1;
            }
            labels.push(at);
            self.text(at, text, Style { size: TEXT * 0.9, fill: color, ..style });
        }
        bottom + BELOW
    }

    /// Lists the named series in rows and returns where they end.
    fn legend(&mut self, chart: &Chart, top: f64) -> f64 {
        let (mut at, mut row) = (LEFT, top + 4.0);
        let named = chart.series.iter().filter(|series| !series.name.is_empty());
        let mut is_empty = true;
        for series in named {
            let width = 48.0 + width(&series.name, TEXT) + 24.0;
            if at + width > WIDTH - RIGHT + 24.0 && at > LEFT {
                (at, row) = (LEFT, row + TEXT * 1.4);
            }
            let middle = row - TEXT * 0.35;
            match series.look {
                Look::Bars => add!(
                    self,
                    "<rect x=\"{at}\" y=\"{}\" width=\"36\" height=\"14\" fill=\"{}\"/>",
                    middle - 7.0,
                    color(series)
                ),
                look => add!(
                    self,
                    "<path d=\"M{at} {middle}h36\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{}/>",
                    color(series),
                    LINE_WIDTH + 1.0,
                    dashes(look)
                ),
            }
            self.text((at + 44.0, row), &series.name, START);
            at += width;
            is_empty = false;
        }
        if is_empty { top - TEXT } else { row }
    }

    fn axes(&mut self, chart: &Chart, x: &Placed<'_>, y: &Placed<'_>, (top, bottom): (f64, f64)) {
        let (left, right) = (LEFT, WIDTH - RIGHT);
        for (value, label) in y.ticks(6) {
            let Some(at) = y.pixel(value) else { continue };
            self.rule((left, right), at, "#dddddd", "");
            self.text((left - 10.0, at + TEXT * 0.35), &label, END);
        }
        for (value, label) in x.ticks(8) {
            let Some(at) = x.pixel(value) else { continue };
            if matches!(chart.x.scale, Scale::Linear | Scale::Log) {
                add!(self, "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#eeeeee\"/>");
            }
            self.text((at, bottom + TEXT * 1.4), &label, MIDDLE);
        }
        add!(
            self,
            "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#222222\" stroke-width=\"1.5\"/>"
        );
        self.text(((left + right) / 2.0, bottom + TEXT * 2.9), &chart.x.label, MIDDLE);
        self.text((26.0, (top + bottom) / 2.0), &chart.y.label, Style { turn: -90.0, ..MIDDLE });
    }

    fn line(&mut self, series: &Series, x: &Placed<'_>, y: &Placed<'_>) {
        let mut path = String::new();
        let mut dots = String::new();
        let place = |&(at_x, at_y): &(f64, f64)| x.pixel(at_x).zip(y.pixel(at_y));
        for (at_x, at_y) in visible(series.points.iter().filter_map(place)) {
            let _ = match series.look {
                _ if path.is_empty() => write!(path, "M{at_x:.1} {at_y:.1}"),
                Look::Steps => write!(path, "H{at_x:.1}V{at_y:.1}"),
                _ => write!(path, "L{at_x:.1} {at_y:.1}"),
            };
            if series.points.len() <= MAX_DOTS && series.look != Look::Steps {
                let _ = write!(dots, "<circle cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"5\"/>");
            }
        }
        let color = color(series);
        add!(
            self,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{LINE_WIDTH}\" stroke-linejoin=\"round\"{}/>\
             <g fill=\"{color}\">{dots}</g>",
            dashes(series.look)
        );
    }

    fn bars(&mut self, all: &[Series], x: &Placed<'_>, y: &Placed<'_>, bottom: f64) {
        let bars: Vec<&Series> = all.iter().filter(|series| series.look == Look::Bars).collect();
        let width = x.unit() * 0.8 / bars.len().max(1) as f64;
        for (index, series) in bars.iter().enumerate() {
            let shift = (index as f64 - bars.len() as f64 / 2.0) * width;
            for &(value_x, value_y) in &series.points {
                let Some((at_x, at_y)) = x.pixel(value_x).zip(y.pixel(value_y)) else { continue };
                let (left, height) = (at_x + shift, bottom - at_y);
                // A rectangle needs a height.
                if height < 0.1 {
                    continue;
                }
                add!(
                    self,
                    "<rect x=\"{left:.1}\" y=\"{at_y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\"/>",
                    width * 0.92,
                    color(series)
                );
            }
        }
    }

    fn rule(&mut self, (left, right): (f64, f64), at: f64, color: &str, dashes: &str) {
        let dashes = if dashes.is_empty() {
            String::new()
        } else {
            format!(" stroke-dasharray=\"{dashes}\"")
        };
        add!(
            self,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"{color}\" stroke-width=\"1.5\"{dashes}/>"
        );
    }

    fn text(&mut self, (x, y): (f64, f64), text: &str, style: Style) {
        let Style { size, anchor, weight, fill, turn } = style;
        let turn = if turn == 0.0 {
            String::new()
        } else {
            format!(" transform=\"rotate({turn} {x:.1} {y:.1})\"")
        };
        add!(
            self,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" text-anchor=\"{anchor}\" \
             fill=\"{fill}\"{turn}>{}</text>",
            escaped(text)
        );
    }
}

/// Leaves out points that can't be told from others: of consecutive ones in a column a pixel wide (all beyond the page are
/// one), the first, the lowest, the highest
/// and the last remain.
fn visible(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut column: Vec<(f64, f64)> = Vec::new();
    let mut close = |column: &mut Vec<(f64, f64)>| {
        if column.len() > 4 {
            let extreme = |order: fn(f64, f64) -> bool| {
                let better = |best: usize, next: usize| {
                    if order(column[next].1, column[best].1) { next } else { best }
                };
                (0..column.len()).reduce(better).unwrap_or_default()
            };
            let mut ends = [0, extreme(|a, b| a < b), extreme(|a, b| a > b), column.len() - 1];
            ends.sort_unstable();
            kept.extend(ends.map(|index| column[index]));
        } else {
            kept.extend_from_slice(column);
        }
        column.clear();
    };
    let on_page = |x: f64| x.clamp(0.0, WIDTH);
    for point in points {
        if column.first().is_some_and(|first| (on_page(first.0) - on_page(point.0)).abs() >= 1.0) {
            close(&mut column);
        }
        column.push(point);
    }
    close(&mut column);
    kept
}

const fn color(series: &Series) -> &'static str {
    COLORS[series.color % COLORS.len()]
}

const fn dashes(look: Look) -> &'static str {
    match look {
        Look::Dashed => " stroke-dasharray=\"14 8\"",
        Look::Dotted => " stroke-dasharray=\"3 6\"",
        Look::Line | Look::Steps | Look::Bars => "",
    }
}

fn width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * LETTER
}

/// Breaks a line that is wider than the figure at its spaces.
fn wrapped(text: &str, size: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.lines() {
        let first = lines.len();
        for word in paragraph.split_whitespace() {
            let fits = |line: &&mut String| width(line, size) + width(word, size) < WIDTH - 60.0;
            match lines[first..].last_mut().filter(fits) {
                Some(line) => {
                    line.push(' ');
                    line.push_str(word);
                }
                None => lines.push(word.to_owned()),
            }
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

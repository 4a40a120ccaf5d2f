//! Line charts and bars, as SVG.

use std::fmt::Write as _;

use super::escape;
use crate::comparison::{Comparison, Difference};

/// Size of a chart, and of the margins in which axes and names stand.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;
/// With more lines than this, each is thin.
const THICK_LINES: usize = 4;
/// Most lines that are named in the legend: what fits beside each other.
const NAMED_LINES: usize = 8;
/// Height of a bar's row.
const ROW: f64 = 26.0;

/// Colours that people with the common kinds of colour blindness tell apart (Okabe and Ito).
const COLORS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a",
];

/// Lines over a common pair of axes.
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
}

/// One line.
pub(super) struct Series {
    pub(super) name: String,
    /// The number of its colour.
    pub(super) color: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// An axis from the least to the greatest value; a linear one from 0.
pub(super) struct Axis {
    label: &'static str,
    is_logarithmic: bool,
}

/// An axis with its range.
struct Scale {
    is_logarithmic: bool,
    from: f64,
    to: f64,
}

impl Axis {
    pub(super) fn linear(label: &'static str) -> Self {
        Self {
            label,
            is_logarithmic: false,
        }
    }

    pub(super) fn logarithmic(label: &'static str) -> Self {
        Self {
            label,
            is_logarithmic: true,
        }
    }

    fn scale(&self, values: impl Iterator<Item = f64>) -> Scale {
        let usable = values.filter(|value| value.is_finite() && (!self.is_logarithmic || *value > 0.0));
        let range = usable.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(from, to)| (from.min(value), to.max(value))))
        });
        let (from, to) = range.unwrap_or((1.0, 1.0));
        if self.is_logarithmic {
            let (from, to) = (libm::log10(from), libm::log10(to));
            let to = if to - from < 0.1 { from + 0.1 } else { to };
            Scale {
                is_logarithmic: true,
                from,
                to,
            }
        } else {
            let to = if to > 0.0 { to } else { 1.0 };
            Scale {
                is_logarithmic: false,
                from: 0.0,
                to,
            }
        }
    }
}

impl Scale {
    /// The place of a value, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let value = if self.is_logarithmic {
            libm::log10(value.max(1e-9))
        } else {
            value
        };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Round values, each with its text.
    fn ticks(&self) -> Vec<(f64, String)> {
        if self.is_logarithmic {
            let decades = self.from.floor() as i32..=self.to.ceil() as i32;
            let of_decade =
                |decade: i32| [1.0, 2.0, 5.0].map(|digit| digit * libm::pow(10.0, f64::from(decade)));
            let values = decades.flat_map(of_decade);
            let is_inside = |value: &f64| (self.from..=self.to).contains(&libm::log10(*value));
            return values
                .filter(is_inside)
                .map(|value| (value, number(value)))
                .collect();
        }
        let rough = self.to / 5.0;
        let unit = libm::pow(10.0, libm::log10(rough).floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * unit);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let count = (self.to / step) as usize;
        (0..=count)
            .map(|place| place as f64 * step)
            .map(|value| (value, number(value)))
            .collect()
    }
}

fn number(value: f64) -> String {
    let digits = match value.abs() {
        small if small > 0.0 && small < 0.1 => 2,
        middle if middle > 0.0 && middle < 10.0 && middle.fract() != 0.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

impl Chart {
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (x, y) = (
            self.x.scale(points().map(|point| point.0)),
            self.y.scale(points().map(|point| point.1)),
        );
        let across = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let up = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = open(HEIGHT);
        for (value, text) in y.ticks() {
            let (at, end) = (up(value), WIDTH - RIGHT);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{end}\"/>");
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (value, text) in x.ticks() {
            let (at, foot) = (across(value), HEIGHT - BOTTOM);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{foot}\"/>");
            let _ = write!(
                svg,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                foot + 17.0
            );
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = write!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            self.x.label
        );
        let _ = write!(svg, "<text x=\"8\" y=\"14\">{}</text>", self.y.label);
        let class = if self.series.len() > THICK_LINES {
            "line thin"
        } else {
            "line"
        };
        for series in &self.series {
            let mut path = String::new();
            for (number, &(x, y)) in series.points.iter().enumerate() {
                let step = if number == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{step}{:.1} {:.1}", across(x), up(y));
            }
            let color = COLORS[series.color % COLORS.len()];
            let _ = write!(svg, "<path class=\"{class}\" stroke=\"{color}\" d=\"{path}\"/>");
        }
        self.add_legend(&mut svg);
        svg.push_str("</svg>");
        svg
    }

    fn add_legend(&self, svg: &mut String) {
        let named = &self.series[..self.series.len().min(NAMED_LINES)];
        let widths = named
            .iter()
            .map(|series| 30.0 + 7.0 * series.name.chars().count() as f64);
        let mut at = (WIDTH - RIGHT - widths.clone().sum::<f64>()).max(LEFT + 220.0);
        for (series, width) in named.iter().zip(widths) {
            let color = COLORS[series.color % COLORS.len()];
            let _ = write!(
                svg,
                "<path class=\"line\" stroke=\"{color}\" d=\"M{at:.0} 10h14\"/>"
            );
            let _ = write!(
                svg,
                "<text x=\"{:.0}\" y=\"14\">{}</text>",
                at + 19.0,
                escape(&series.name)
            );
            at += width;
        }
    }
}

/// A bar for each difference, in percent of the first policy's value, with its confidence interval.
pub(super) fn differences(comparison: &Comparison) -> String {
    let rows: Vec<(f64, &Difference)> = comparison
        .differences
        .iter()
        .filter_map(|difference| Some((100.0 * difference.relative()?, difference)))
        .collect();
    let half = |difference: &Difference| {
        let half = difference.confidence_95.unwrap_or(0.0);
        100.0 * (half / difference.before).abs()
    };
    let widest = rows
        .iter()
        .map(|(percent, difference)| percent.abs() + half(difference))
        .fold(1.0, f64::max);
    let (zero, unit) = (560.0, 300.0 / widest);
    let height = ROW * rows.len() as f64 + 8.0;
    let mut svg = open(height);
    let _ = write!(svg, "<path class=\"grid\" d=\"M{zero} 0V{height}\"/>");
    for (place, (percent, difference)) in rows.iter().enumerate() {
        let middle = ROW * (place as f64 + 0.5) + 4.0;
        let (from, width) = (zero + percent.min(0.0) * unit, percent.abs() * unit);
        let color = if *percent < 0.0 { COLORS[0] } else { COLORS[1] };
        let _ = write!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{color}\"/>",
            middle - 7.0
        );
        let (low, high) = (percent - half(difference), percent + half(difference));
        let (low, high) = (zero + low * unit, zero + high * unit);
        let _ = write!(
            svg,
            "<path stroke=\"var(--ink)\" d=\"M{low:.1} {middle:.1}H{high:.1}\"/>"
        );
        let text = middle + 4.0;
        let _ = write!(svg, "<text x=\"8\" y=\"{text:.1}\">{}</text>", difference.figure);
        let _ = write!(
            svg,
            "<text x=\"250\" y=\"{text:.1}\" text-anchor=\"end\">{percent:+.1} %</text>"
        );
    }
    svg.push_str("</svg>");
    svg
}

fn open(height: f64) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">")
}

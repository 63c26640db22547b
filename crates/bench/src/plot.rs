//! Charts as SVG, PNG and PDF, readable on a phone: large type, few lines, legends outside of the data.
//!
//! Charts are drawn as SVG here, because one drawing has to serve three formats and axes of three kinds (linear, logarithmic, named);
//! `resvg` and `svg2pdf` do the rest with the one font that is built in, so that a plot looks the same everywhere.

mod attainment;
mod axis;
mod draw;
mod run;
mod write;

pub use attainment::{AttainmentConfig, Group, attainment};
pub use run::run_figures;
pub use write::write;

/// One or more charts under one title, one below the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// How it came about: model, device, workload. A line break starts another line.
    pub subtitle: String,
    /// The charts.
    pub charts: Vec<Chart>,
}

/// Lines or bars over two axes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// The axis to the right.
    pub x: Axis,
    /// The axis upwards.
    pub y: Axis,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Values on the y axis with a line across the chart, and what they are.
    pub rules: Vec<(f64, String)>,
    /// Points with a few words.
    pub marks: Vec<Mark>,
}

/// A point with a ring around it and a few words beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Where.
    pub at: (f64, f64),
    /// The words.
    pub text: String,
    /// Their colour, that of the series that they belong to.
    pub color: usize,
}

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// What it measures, with the unit.
    pub label: String,
    /// How values are placed.
    pub scale: Scale,
    /// From where to where; what the data need, if not given.
    pub range: Option<(f64, f64)>,
    /// Draws larger values first.
    pub is_reversed: bool,
}

/// How values are placed on an axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By their logarithm; values that are not positive are left out.
    Log,
    /// By name: value 0 is the first name, and so on.
    Names(Vec<String>),
}

/// A line, or bars of one colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend; an empty one is not listed.
    pub name: String,
    /// Its points, in order; one without any is in the legend alone.
    pub points: Vec<(f64, f64)>,
    /// How it is drawn.
    pub look: Look,
    /// Its colour, counted from 0; series that belong together share one.
    pub color: usize,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// A line, with a dot at each of a few points.
    Line,
    /// A dashed line.
    Dashed,
    /// A dotted line.
    Dotted,
    /// A line that keeps each value until the next point.
    Steps,
    /// Bars, beside those of other series at the same place.
    Bars,
}

impl Axis {
    /// Returns a linear axis.
    #[must_use]
    pub fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), ..Self::default() }
    }

    /// Returns a logarithmic axis.
    #[must_use]
    pub fn log(label: &str) -> Self {
        Self { scale: Scale::Log, ..Self::linear(label) }
    }

    /// Returns an axis of names.
    #[must_use]
    pub fn names(label: &str, names: impl IntoIterator<Item = String>) -> Self {
        Self { scale: Scale::Names(names.into_iter().collect()), ..Self::linear(label) }
    }

    /// Sets from where to where it goes.
    #[must_use]
    pub const fn from_to(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }
}

impl Series {
    /// A colour that no series takes before six others have one.
    pub const NEUTRAL: usize = 6;

    /// Returns a line.
    #[must_use]
    pub fn line(name: &str, color: usize, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), points, look: Look::Line, color }
    }

    /// Sets how it is drawn.
    #[must_use]
    pub const fn looking(mut self, look: Look) -> Self {
        self.look = look;
        self
    }
}

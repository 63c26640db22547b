//! Where values lie on an axis, and where its ticks are.

use super::{Axis, Scale};

/// An axis that knows its data and its place on the page.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    axis: &'a Axis,
    low: f64,
    high: f64,
    /// Where `low` and `high` are, in pixels.
    from: f64,
    to: f64,
}

impl<'a> Placed<'a> {
    /// Fits an axis to data, between two pixels. `from_zero` has a linear axis begin at 0 where no range says otherwise.
    pub(super) fn new(
        axis: &'a Axis,
        values: impl Iterator<Item = f64>,
        (from, to): (f64, f64),
        from_zero: bool,
    ) -> Self {
        let is_drawn =
            |value: &f64| value.is_finite() && (axis.scale != Scale::Log || *value > 0.0);
        let (mut low, mut high) = values
            .filter(is_drawn)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        match &axis.scale {
            Scale::Linear => {
                if from_zero {
                    low = low.min(0.0);
                }
                if high - low <= f64::EPSILON * high.abs() {
                    high = low + 1.0;
                }
                let room = (high - low) * 0.04;
                high += room;
                low -= if low < 0.0 || !from_zero { room } else { 0.0 };
            }
            Scale::Log if high / low < 2.0 => (low, high) = (low / 1.5, high * 1.5),
            Scale::Log => (low, high) = (low / 1.1, high * 1.1),
            Scale::Names(names) => (low, high) = (-0.5, names.len().max(1) as f64 - 0.5),
        }
        if let Some((given_low, given_high)) = axis.range.filter(|(low, high)| low < high) {
            (low, high) = (given_low, given_high);
        }
        let (from, to) = if axis.is_reversed { (to, from) } else { (from, to) };
        Self { axis, low, high, from, to }
    }

    /// Returns the pixel of a value, which may lie outside of the axis; `None` if it has no place at all.
    pub(super) fn pixel(&self, value: f64) -> Option<f64> {
        let share = match self.axis.scale {
            Scale::Log if value <= 0.0 => return None,
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
            Scale::Linear | Scale::Names(_) => (value - self.low) / (self.high - self.low),
        };
        share.is_finite().then_some(self.from + (self.to - self.from) * share)
    }

    /// Returns how many pixels a distance of 1 takes.
    pub(super) fn unit(&self) -> f64 {
        ((self.to - self.from) / (self.high - self.low)).abs()
    }

    /// Returns the ticks and their labels, at most about `count`.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let ticks: Vec<f64> = match &self.axis.scale {
            Scale::Linear => linear_ticks(self.low, self.high, count),
            Scale::Log => log_ticks(self.low, self.high, count),
            Scale::Names(names) => {
                return names
                    .iter()
                    .enumerate()
                    .map(|(i, name)| (i as f64, name.clone()))
                    .collect();
            }
        };
        ticks.into_iter().map(|value| (value, number(value))).collect()
    }
}

/// Steps of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= rough);
    let step = step.unwrap_or(10.0) * power;
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|index| index as f64 * step).collect()
}

/// Powers of ten, and 2 and 5 times them where there is room, or all multiples where few would be left.
fn log_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let steps: &[f64] = match (high / low).log10() {
        decades if decades < 0.75 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        decades if decades * 3.0 <= count as f64 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let every = powers.flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
    every.filter(|value| (low..=high).contains(value)).collect()
}

/// Writes a number shortly: `0.25`, `40`, `12k`.
pub(super) fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        magnitude if magnitude >= 1e6 => (value / 1e6, "M"),
        magnitude if magnitude >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        magnitude if magnitude >= 0.001 || value == 0.0 => format!("{value:.4}"),
        _ => return format!("{value:.0e}"),
    };
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::{Axis, Placed, number};

    fn labels(axis: &Axis, low: f64, high: f64) -> String {
        let placed = Placed::new(axis, [low, high].into_iter(), (0.0, 100.0), true);
        placed.ticks(6).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round() {
        let linear = Axis::linear("");
        assert_eq!(labels(&linear, 0.1, 0.9), "0 0.2 0.4 0.6 0.8");
        assert_eq!(labels(&linear, 0.0, 28_400.0), "0 5000 10k 15k 20k 25k");
        assert_eq!(labels(&linear, 3.0, 3.0), "0 1 2 3");
        let log = Axis::log("");
        assert_eq!(labels(&log, 0.9, 1100.0), "1 10 100 1000");
        assert_eq!(labels(&log, 1.0, 20.0), "1 2 5 10 20");
        assert_eq!(labels(&log, 0.32, 1.0), "0.3 0.4 0.5 0.7 1");
        assert_eq!(labels(&Axis::names("", ["a".to_owned(), "b".to_owned()]), 0.0, 1.0), "a b");
        assert_eq!(labels(&Axis::linear("").from_to(10.0, 20.0), 0.0, 1.0), "10 12 14 16 18 20");
    }

    #[test]
    fn pixels_are_in_proportion() {
        let log = Axis::log("").from_to(1.0, 100.0);
        let placed = Placed::new(&log, std::iter::empty(), (0.0, 200.0), false);
        assert_eq!(placed.pixel(10.0), Some(100.0));
        assert_eq!(placed.pixel(0.0), None);
        let reversed = Axis { is_reversed: true, ..Axis::linear("").from_to(0.0, 4.0) };
        let placed = Placed::new(&reversed, std::iter::empty(), (0.0, 200.0), false);
        assert_eq!(placed.pixel(1.0), Some(150.0));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (40.0, "40"),
            (12_000.0, "12k"),
            (2.5e6, "2.5M"),
            (0.0001, "1e-4"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}

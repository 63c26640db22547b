//! SLO attainment over rate and over the objectives' scale, as DistServe draws it (OSDI '24, figures 8 and 9).

use super::{Axis, Chart, Figure, Look, Mark, Series};
use crate::StoredResult;
use crate::metrics::{Attained, Crossing, Slo, SloMetric, attained, crossing};

/// Results that belong to one curve.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// GPUs.
    pub num_gpus: f64,
    /// The requests of all results at a rate, by rate a GPU; runs at the same rate are one.
    pub points: Vec<(f64, Vec<SloMetric>)>,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub struct AttainmentConfig {
    /// What requests are promised.
    pub slo: Slo,
    /// The share of requests that has to get it.
    pub target: f64,
    /// Factors on both objectives, for the second chart.
    pub scales: Vec<f64>,
    /// At which rate a GPU the second chart is drawn. If not given, the highest that all groups have and one of them meets the
    /// target at; if none does, the lowest that all have.
    pub scale_rate: Option<f64>,
}

impl Group {
    /// Collects results; those without a rate or without their requests' figures are left out.
    #[must_use]
    pub fn new(name: &str, results: &[&StoredResult]) -> Self {
        let num_gpus = results.first().map_or(1.0, |result| result.num_gpus()).max(1.0);
        let mut points: Vec<(f64, Vec<SloMetric>)> = Vec::new();
        for result in results.iter().filter(|result| !result.requests.is_empty()) {
            let Some(rate) = result.rate().map(|rate| rate / num_gpus) else { continue };
            match points.iter_mut().find(|(known, _)| (known - rate).abs() < 1e-9) {
                Some((_, requests)) => requests.extend_from_slice(&result.requests),
                None => points.push((rate, result.requests.clone())),
            }
        }
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Self { name: name.to_owned(), num_gpus, points }
    }

    /// Returns what was attained at each rate a GPU.
    #[must_use]
    pub fn curve(&self, slo: Slo) -> Vec<(f64, Attained)> {
        self.points.iter().map(|(rate, requests)| (*rate, attained(requests, slo))).collect()
    }

    /// Returns up to which rate a GPU the target is met.
    #[must_use]
    pub fn goodput(&self, slo: Slo, target: f64) -> Crossing {
        let both: Vec<_> = self.curve(slo).into_iter().map(|(rate, a)| (rate, a.both)).collect();
        crossing(&both, target)
    }
}

/// Draws both charts: over the rate a GPU, and over the objectives' scale at one rate.
#[must_use]
pub fn attainment(groups: &[Group], config: &AttainmentConfig, subtitle: &str) -> Figure {
    let Slo { ttft, tpot } = config.slo;
    let title = format!("SLO attainment: TTFT ≤ {:.0} ms, TPOT ≤ {:.0} ms", ttft * 1e3, tpot * 1e3);
    let mut charts = vec![over_rate(groups, config)];
    let rate = config.scale_rate.or_else(|| telling_rate(groups, config));
    charts.extend(rate.map(|rate| over_scale(groups, config, rate)));
    let mut lines = vec![subtitle.to_owned()];
    lines.extend(improvement(groups, config));
    lines.retain(|line| !line.is_empty());
    Figure { title, subtitle: lines.join("\n"), charts }
}

/// Says how many times the first group's goodput that of each other one is; nothing if there is nothing to compare.
fn improvement(groups: &[Group], config: &AttainmentConfig) -> Option<String> {
    let goodput = |group: &Group| group.goodput(config.slo, config.target).last_met();
    let (first, others) = groups.split_first()?;
    let base = goodput(first).filter(|&base| base > 0.0)?;
    let over = |group: &Group| Some(format!("{} {:.2}x", group.name, goodput(group)? / base));
    let over: Vec<String> = others.iter().filter_map(over).collect();
    let what = format!("rate at {:.0} %, over that of {}", config.target * 100.0, first.name);
    (!over.is_empty()).then(|| format!("{what}: {}", over.join(", ")))
}

fn over_rate(groups: &[Group], config: &AttainmentConfig) -> Chart {
    let mut chart = chart(Axis::linear("Requests a second and GPU"), config);
    chart.series.extend(key());
    for (color, group) in groups.iter().enumerate() {
        let curve = group.curve(config.slo);
        chart.series.extend(lines(&group.name, color, &curve));
        if let Crossing::At(rate) = group.goodput(config.slo, config.target) {
            chart.marks.push(mark(rate, config, color));
        }
    }
    chart
}

fn over_scale(groups: &[Group], config: &AttainmentConfig, rate: f64) -> Chart {
    let label = format!("Scale of both objectives, at {rate:.3} requests a second and GPU");
    let mut chart = chart(Axis { is_reversed: true, ..Axis::linear(&label) }, config);
    let mut scales = config.scales.clone();
    scales.sort_by(|a, b| b.total_cmp(a));
    chart.series.extend(key());
    for (color, group) in groups.iter().enumerate() {
        let nearest = group
            .points
            .iter()
            .min_by(|(a, _), (b, _)| (a - rate).abs().total_cmp(&(b - rate).abs()));
        let Some((nearest, requests)) = nearest else { continue };
        let name = match (nearest - rate).abs() < 1e-9 {
            true => group.name.clone(),
            false => format!("{} at {nearest:.3}", group.name),
        };
        let at = |&scale: &f64| (scale, attained(requests, config.slo.scaled(scale)));
        let curve: Vec<_> = scales.iter().map(at).collect();
        chart.series.extend(lines(&name, color, &curve));
        let both: Vec<_> = curve.iter().map(|(scale, a)| (*scale, a.both)).collect();
        if let Crossing::At(scale) = crossing(&both, config.target) {
            chart.marks.push(mark(scale, config, color));
        }
    }
    chart
}

fn chart(x: Axis, config: &AttainmentConfig) -> Chart {
    Chart {
        x,
        y: Axis::linear("Requests within objectives (%)").from_to(0.0, 104.0),
        rules: vec![(config.target * 100.0, format!("{:.0} %", config.target * 100.0))],
        marks: Vec::new(),
        series: Vec::new(),
    }
}

/// Says where a group's line goes through the target.
fn mark(x: f64, config: &AttainmentConfig, color: usize) -> Mark {
    Mark { at: (x, config.target * 100.0), text: format!("{x:.2}"), color }
}

/// What the three lines of each group are, for the legend.
fn key() -> [Series; 3] {
    let entry = |what, look| Series::line(what, Series::NEUTRAL, Vec::new()).looking(look);
    [
        entry("both objectives", Look::Line),
        entry("TTFT alone", Look::Dotted),
        entry("TPOT alone", Look::Dashed),
    ]
}

/// Three lines a group: both objectives, the first alone, the second alone. The legend has its colour once.
fn lines(name: &str, color: usize, curve: &[(f64, Attained)]) -> [Series; 3] {
    let line = |name: &str, look, of: fn(&Attained) -> f64| {
        let points = curve.iter().map(|(x, attained)| (*x, of(attained) * 100.0)).collect();
        Series::line(name, color, points).looking(look)
    };
    [
        line(name, Look::Line, |attained| attained.both),
        line("", Look::Dotted, |attained| attained.ttft),
        line("", Look::Dashed, |attained| attained.tpot),
    ]
}

/// Returns the rate at which scaling the objectives tells most, see [`AttainmentConfig::scale_rate`].
fn telling_rate(groups: &[Group], config: &AttainmentConfig) -> Option<f64> {
    let (first, rest) = groups.split_first()?;
    let has =
        |group: &Group, rate: f64| group.points.iter().any(|(at, _)| (at - rate).abs() < 1e-9);
    let common = |rate: &f64| rest.iter().all(|group| has(group, *rate));
    let rates = || first.points.iter().map(|(rate, _)| *rate).filter(common);
    let goodput = |group: &Group| group.goodput(config.slo, config.target).last_met();
    let best = groups.iter().filter_map(goodput).reduce(f64::max).unwrap_or(0.0);
    let highest = rates().filter(|&rate| rate <= best).reduce(f64::max);
    highest.or_else(|| rates().reduce(f64::min)).or_else(|| Some(first.points.first()?.0))
}

#[cfg(test)]
mod tests {
    use super::{AttainmentConfig, Group, attainment};
    use crate::metrics::{Slo, SloMetric};

    /// A deployment whose requests take `rate` over `speed` seconds to their first token, give or take a half.
    fn group(name: &str, speed: f64, rates: &[f64]) -> Group {
        let requests = |rate: f64| {
            let request = |share: u32| SloMetric {
                ttft: Some(rate / speed * (0.5 + f64::from(share) / 100.0)),
                tpot: Some(0.05),
            };
            (0..=100).map(request).collect()
        };
        let points = rates.iter().map(|&rate| (rate, requests(rate))).collect();
        Group { name: name.to_owned(), num_gpus: 1.0, points }
    }

    #[test]
    fn crossings_are_marked_and_the_scale_is_drawn_where_it_tells() {
        let slo = Slo { ttft: 1.0, tpot: 0.1 };
        let check = |rates: &[f64], expected: &[&str], scaled_at: &str| {
            let groups = [group("slow", 1.0, rates), group("fast", 2.0, rates)];
            let config = AttainmentConfig {
                slo,
                target: 0.9,
                scales: vec![0.5, 1.0, 2.0],
                scale_rate: None,
            };
            let figure = attainment(&groups, &config, "");
            let marks: Vec<&str> = figure.charts[0].marks.iter().map(|mark| &*mark.text).collect();
            assert_eq!(marks, expected, "{rates:?}");
            let ratio = figure.subtitle.rsplit(' ').next().unwrap_or_default().to_owned();
            let said = match expected {
                [slow, fast] => {
                    let [slow, fast] = [slow, fast].map(|rate| rate.parse::<f64>().unwrap());
                    ratio
                        .trim_end_matches('x')
                        .parse::<f64>()
                        .is_ok_and(|ratio| (ratio / (fast / slow) - 1.0).abs() < 0.03)
                }
                _ => ratio.is_empty() || ratio == "1.00x",
            };
            assert!(said, "{rates:?}: {}", figure.subtitle);
            let label = &figure.charts[1].x.label;
            assert!(label.contains(scaled_at), "{rates:?}: {label}");
            let series = &figure.charts[0].series;
            let drawn = series.iter().filter(|series| !series.points.is_empty());
            assert_eq!(drawn.count(), 6, "three lines a deployment");
            let named = series.iter().filter(|series| !series.name.is_empty());
            assert_eq!(named.count(), 5, "the legend has each deployment, and each kind of line");
        };
        check(&[0.5, 1.0, 1.5], &["0.60", "1.30"], "1.000");
        check(&[0.1, 2.0], &["0.29", "0.48"], "0.100");
        check(&[0.1], &[], "0.100");
        check(&[3.0, 4.0], &[], "3.000");
    }

    #[test]
    fn who_has_no_point_at_the_scaled_rate_says_which_it_shows() {
        let groups = [group("slow", 1.0, &[0.5, 1.0]), group("fast", 2.0, &[2.0])];
        let slo = Slo { ttft: 1.0, tpot: 0.1 };
        let config =
            AttainmentConfig { slo, target: 0.9, scales: vec![1.0], scale_rate: Some(1.0) };
        let figure = attainment(&groups, &config, "");
        let names: Vec<&str> = figure.charts[1].series.iter().map(|series| &*series.name).collect();
        assert!(names.contains(&"slow"), "{names:?}");
        assert!(names.contains(&"fast at 2.000"), "{names:?}");
    }
}

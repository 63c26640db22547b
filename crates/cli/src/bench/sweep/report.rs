//! A sweep's table and plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use stallfree_bench::StoredResult;
use stallfree_bench::metrics::Slo;
use stallfree_bench::plot::{
    self, AttainmentConfig, Axis, Chart, Figure, Group, Look, Series, attainment,
};

use super::mode::DeploymentMode;
use super::plan::{Plan, Point, RATES};
use crate::bench::compare::{Curve, SCALES, report};
use crate::console;

/// A figure of a run: its column, its field in results, the factor to the column's unit, and its name in plots.
struct Column {
    name: &'static str,
    field: &'static str,
    scale: f64,
    label: &'static str,
}

const fn column(
    name: &'static str,
    field: &'static str,
    scale: f64,
    label: &'static str,
) -> Column {
    Column { name, field, scale, label }
}

const COLUMNS: &[Column] = &[
    column("completed", "completed", 1.0, ""),
    column("failed", "failed", 1.0, ""),
    column("duration_s", "duration", 1.0, ""),
    column("request_throughput", "request_throughput", 1.0, "Requests a second, completed"),
    column("output_throughput", "output_throughput", 1.0, "Output tokens a second"),
    column("median_ttft_s", "median_ttft_ms", 1e-3, "Median time to first token (s)"),
    column("p99_ttft_s", "p99_ttft_ms", 1e-3, ""),
    column("median_tbt_s", "median_itl_ms", 1e-3, ""),
    column("p99_tbt_s", "p99_itl_ms", 1e-3, "P99 time between tokens (s)"),
    column("p99_tpot_s", "p99_tpot_ms", 1e-3, ""),
    column("median_scheduling_delay_s", "median_scheduling_delay_ms", 1e-3, ""),
    column("longest_gap_s", "stalls.longest_gap", 1.0, "Longest gap between tokens (s)"),
    column("num_long_gaps", "stalls.num_long_gaps", 1.0, ""),
    column("stalled_share", "stalls.stalled_share", 1.0, "Share of decoding time without a token"),
    column("slo_attainment", "slo_attainment.both", 1.0, ""),
    column("slo_attainment_ttft", "slo_attainment.ttft", 1.0, ""),
    column("slo_attainment_tpot", "slo_attainment.tpot", 1.0, ""),
    column("num_preemptions", "num_preemptions", 1.0, ""),
    column("p99_send_lag_s", "p99_send_lag_ms", 1e-3, ""),
];

/// Columns of the table on the screen.
const SHOWN: [&str; 6] = [
    "request_throughput",
    "median_ttft_s",
    "median_tbt_s",
    "p99_tbt_s",
    "longest_gap_s",
    "stalled_share",
];

/// Writes `sweep.csv` and plots, and prints a table; where deployments are compared, how many requests met their objectives, too.
pub(super) fn write(
    plan: &Plan,
    results: &[(&Point, StoredResult)],
    target: f64,
    folder: &Path,
) -> Result<()> {
    let path = folder.join("sweep.csv");
    fs::write(&path, csv(plan, results)).with_context(|| format!("{}", path.display()))?;
    console::print(screen(results))?;
    let subtitle = subtitle(results);
    for column in COLUMNS.iter().filter(|column| !column.label.is_empty()) {
        let figure = Figure {
            title: column.label.to_owned(),
            subtitle: subtitle.clone(),
            charts: vec![chart(plan, results, column)],
        };
        plot::write(&figure, &folder.join("plots").join(column.name))?;
    }
    if plan.has_rates() {
        plot::write(&trade_off(results, &subtitle), &folder.join("plots/latency_throughput"))?;
    }
    let slo = results.first().and_then(|(_, result)| {
        Some(Slo { ttft: result.number("slo.ttft")?, tpot: result.number("slo.tpot")? })
    });
    let Some(slo) = slo.filter(|_| plan.has_rates()) else { return Ok(()) };
    let config = AttainmentConfig { slo, target, scales: SCALES.to_vec(), scale_rate: None };
    if !plan.modes.is_empty() {
        let curves = groups(results).into_iter().map(|(name, members)| {
            Curve::new(&name, members.iter().map(|(_, result)| result.clone()).collect())
        });
        console::print("\n")?;
        return report(&curves.collect::<Vec<_>>(), &config, &folder.join("plots/comparison"));
    }
    let named = groups(results).into_iter().map(|(name, members)| {
        Group::new(&name, &members.iter().map(|(_, result)| result).collect::<Vec<_>>())
    });
    let figure = attainment(&named.collect::<Vec<_>>(), &config, &subtitle);
    plot::write(&figure, &folder.join("plots/attainment")).map_err(Into::into)
}

type Member<'a> = &'a (&'a Point, StoredResult);

/// Returns the results of each curve, in their order.
fn groups<'a>(results: &'a [(&'a Point, StoredResult)]) -> Vec<(String, Vec<Member<'a>>)> {
    let mut groups: Vec<(String, Vec<Member<'a>>)> = Vec::new();
    for result in results {
        let name = result.0.group();
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, members)) => members.push(result),
            None => groups.push((name, vec![result])),
        }
    }
    groups
}

fn rate(point: &Point) -> Option<f64> {
    let (_, rate) = point.values.iter().find(|(flag, _)| RATES.contains(&&**flag))?;
    rate.parse().ok().filter(|rate: &f64| rate.is_finite())
}

fn value(result: &StoredResult, column: &Column) -> Option<f64> {
    Some(result.number(column.field)? * column.scale)
}

/// One figure over the rate, a line a group; without rates, a bar a group.
fn chart(plan: &Plan, results: &[(&Point, StoredResult)], column: &Column) -> Chart {
    let groups = groups(results);
    let y = Axis::linear(column.label);
    if !plan.has_rates() {
        let bars = groups.iter().enumerate().filter_map(|(place, (_, members))| {
            Some((place as f64, value(&members.first()?.1, column)?))
        });
        let series = vec![Series::line("", 0, bars.collect()).looking(Look::Bars)];
        let names = groups.iter().map(|(name, _)| name.clone());
        return Chart { x: Axis::names("", names), y, series, ..Chart::default() };
    }
    let series = groups.iter().enumerate().map(|(color, (name, members))| {
        let point = |member: &Member<'_>| Some((rate(member.0)?, value(&member.1, column)?));
        Series::line(name, color, members.iter().filter_map(point).collect())
    });
    let series = series.collect();
    let of_a_gpu = results.iter().any(|(point, _)| point.values.iter().any(|(f, _)| f == RATES[1]));
    let x = if of_a_gpu { "Requests a second and GPU" } else { "Requests a second" };
    Chart { x: Axis::linear(x), y, series, ..Chart::default() }
}

/// The median TTFT against the P99 TBT, a point a rate: lines end where a system can do no more.
fn trade_off(results: &[(&Point, StoredResult)], subtitle: &str) -> Figure {
    let series = groups(results).into_iter().enumerate().map(|(color, (name, members))| {
        let point = |member: &Member<'_>| {
            let number = |field| Some(member.1.number(field)? / 1000.0);
            Some((number("p99_itl_ms")?, number("median_ttft_ms")?))
        };
        Series::line(&name, color, members.iter().filter_map(point).collect())
    });
    let chart = Chart {
        x: Axis::log("P99 time between tokens (s, log scale)"),
        y: Axis::log("Median time to first token (s, log scale)"),
        series: series.collect(),
        ..Chart::default()
    };
    let title = "Latency: a point for each rate".to_owned();
    Figure { title, subtitle: subtitle.to_owned(), charts: vec![chart] }
}

fn subtitle(results: &[(&Point, StoredResult)]) -> String {
    let Some((_, first)) = results.first() else { return String::new() };
    let text = |name| first.text(name).unwrap_or_default();
    let prompts = first.number("num_prompts").unwrap_or_default();
    format!("{}, {prompts} requests of {}", text("model_name"), text("dataset_name"))
}

fn csv(plan: &Plan, results: &[(&Point, StoredResult)]) -> String {
    let quoted = |text: &str| {
        if text.contains([',', '"', '\n']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let mut header: Vec<&str> = Vec::new();
    header.extend((!plan.modes.is_empty()).then_some("mode"));
    header.extend(plan.has_variants().then_some("variant"));
    header.extend(plan.settings());
    header.extend(plan.rates());
    let names = header.clone();
    header.extend(COLUMNS.iter().map(|column| column.name));
    let mut text = header.join(",") + "\n";
    for (point, result) in results {
        let setting = |name: &&str| match *name {
            "mode" => point.mode.map_or("", DeploymentMode::name).to_owned(),
            "variant" => quoted(point.variant.as_deref().unwrap_or_default()),
            name => {
                let value = point.values.iter().find(|(flag, _)| flag == name);
                quoted(value.map_or("", |(_, value)| value))
            }
        };
        let figure = |column: &Column| {
            value(result, column).map_or_else(String::new, |value| value.to_string())
        };
        let fields = names.iter().map(setting).chain(COLUMNS.iter().map(figure));
        text.push_str(&(fields.collect::<Vec<_>>().join(",") + "\n"));
    }
    text
}

fn screen(results: &[(&Point, StoredResult)]) -> String {
    let width = results.iter().map(|(point, _)| point.title().chars().count()).max().unwrap_or(0);
    let shown: Vec<&Column> =
        COLUMNS.iter().filter(|column| SHOWN.contains(&column.name)).collect();
    // Writing to a string can't fail.
    let mut text = format!("{:width$}", "");
    for column in &shown {
        let _ = write!(text, "  {:>w$}", column.name, w = column.name.len());
    }
    text.push('\n');
    for (point, result) in results {
        let _ = write!(text, "{:width$}", point.title());
        for column in &shown {
            let value = value(result, column);
            let value = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let _ = write!(text, "  {value:>w$}", w = column.name.len());
        }
        text.push('\n');
    }
    text
}

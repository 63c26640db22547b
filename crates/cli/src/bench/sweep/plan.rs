//! Which combinations a sweep has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use toml::Value;

use super::SweepArgs;
use super::mode::DeploymentMode;
use crate::console;

/// What combinations are given to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Target {
    /// bench run
    #[default]
    Run,
    /// bench serve
    Serve,
}

/// A sweep.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) name: String,
    target: Target,
    /// What starts the server that is measured, where it is not there already.
    pub(super) serve_cmd: Option<String>,
    /// How the system is deployed, if that is compared.
    pub(super) modes: Vec<DeploymentMode>,
    /// Where the server of a mode is.
    servers: Vec<(DeploymentMode, String)>,
    /// Flags of all runs, as they are typed.
    flags: Vec<String>,
    variants: Vec<Variant>,
    /// Flags that take several values, in the order given; every combination is run.
    axes: Vec<(String, Vec<String>)>,
}

/// Flags that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Variant {
    name: Option<String>,
    flags: Vec<String>,
}

/// A plan's file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    name: Option<String>,
    #[serde(default)]
    target: Target,
    serve_cmd: Option<String>,
    #[serde(default)]
    modes: Vec<DeploymentMode>,
    #[serde(default)]
    flags: BTreeMap<String, Value>,
    #[serde(default)]
    vary: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    variants: Vec<BTreeMap<String, Value>>,
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    target: Target,
    flags: Vec<String>,
    /// What starts its server.
    pub(super) serve_cmd: Option<String>,
    /// How its system is deployed, if that is compared.
    pub(super) mode: Option<DeploymentMode>,
    /// The variant's name, if it has one.
    pub(super) variant: Option<String>,
    /// The values of the flags that vary.
    pub(super) values: Vec<(String, String)>,
}

/// The flags whose values make a curve's points.
pub(super) const RATES: [&str; 2] = ["request-rate", "request-rate-per-gpu"];

impl Plan {
    /// Puts file and flags together; a flag's value counts where both say something.
    pub(super) fn read(args: &SweepArgs) -> Result<Self> {
        let file = args.plan.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = args.name.clone().or(file.name).or_else(|| stem(args.plan.as_deref()?));
        let mut axes = Vec::new();
        for (flag, values) in &file.vary {
            axes.push((flag.clone(), values.iter().map(text).collect::<Result<Vec<_>>>()?));
        }
        for vary in &args.vary {
            let (flag, values) = vary.split_once('=').with_context(|| {
                format!("--vary {vary}: expected a flag and its values, as in request-rate=1,2,4")
            })?;
            let flag = flag.trim_start_matches('-').to_owned();
            let values = values.split(',').map(str::to_owned).collect();
            axes.retain(|(known, _)| *known != flag);
            axes.push((flag, values));
        }
        if let Some((flag, _)) = axes.iter().find(|(_, values)| values.is_empty()) {
            bail!("`{flag}` has no values to vary");
        }
        let mut flags = typed(&file.flags)?;
        flags.extend(args.flags.iter().cloned());
        for (flag, value) in [("ttft-slo", args.ttft_slo), ("tpot-slo", args.tpot_slo)] {
            flags.extend(value.map(|ms| format!("--{flag}={ms}")));
        }
        let variants = file.variants.iter().map(Variant::read).collect::<Result<Vec<_>>>()?;
        let serve_cmd = args.serve_cmd.clone().or(file.serve_cmd);
        let target = match &serve_cmd {
            Some(_) => Target::Serve,
            None if !args.server.is_empty() => Target::Serve,
            None => args.target.unwrap_or(file.target),
        };
        let name = name.unwrap_or_else(|| "sweep".to_owned());
        let servers = args.server.clone();
        let mut modes = if args.modes.is_empty() { file.modes } else { args.modes.clone() };
        for (mode, _) in &servers {
            if !modes.contains(mode) {
                modes.push(*mode);
            }
        }
        if serve_cmd.is_some() && !servers.is_empty() {
            bail!("--server: with --serve-cmd the sweep starts the servers itself");
        }
        Ok(Self { name, target, serve_cmd, modes, servers, flags, variants, axes })
    }

    /// Returns every combination: modes outside, then variants, then the flags in their order.
    pub(super) fn points(&self) -> Result<Vec<Point>> {
        let plain = [Variant::default()];
        let variants = if self.variants.is_empty() { &plain[..] } else { &self.variants };
        let mut modes: Vec<Option<DeploymentMode>> = self.modes.iter().copied().map(Some).collect();
        if modes.is_empty() {
            modes.push(None);
        }
        let all =
            modes.iter().flat_map(|mode| variants.iter().map(move |variant| (*mode, variant)));
        let mut points = Vec::new();
        for (mode, variant) in all {
            let mut open = vec![self.first_point(mode, variant)?];
            let known = |flag: &str| mode.is_none_or(|mode| mode.knows(&format!("--{flag}")));
            for (flag, values) in self.axes.iter().filter(|(flag, _)| known(flag)) {
                let with = |point: &Point, value: &String| {
                    let mut point = point.clone();
                    point.values.push((flag.clone(), value.clone()));
                    point
                };
                open = open.iter().flat_map(|p| values.iter().map(move |v| with(p, v))).collect();
            }
            points.extend(open);
        }
        for (index, point) in points.iter().enumerate() {
            if points[..index].iter().any(|other| other.folder() == point.folder()) {
                bail!("two runs are both called `{}`; name the variants apart", point.title());
            }
        }
        Ok(points)
    }

    /// Returns a combination to which the flags that vary are still to come.
    fn first_point(&self, mode: Option<DeploymentMode>, variant: &Variant) -> Result<Point> {
        let mut flags = self.flags.clone();
        flags.extend(variant.flags.iter().cloned());
        let mut serve_cmd = self.serve_cmd.clone();
        if let Some(mode) = mode {
            let deployed = mode.apply(self.target, &flags)?;
            flags = deployed.bench;
            let server = self.servers.iter().find(|(of, _)| *of == mode);
            flags.extend(server.map(|(_, url)| format!("--base-url={url}")));
            serve_cmd = serve_cmd.map(|command| command + " " + &console::quoted(deployed.server));
        }
        let (variant, values) = (variant.name.clone(), Vec::new());
        Ok(Point { target: self.target, flags, serve_cmd, mode, variant, values })
    }

    /// Returns the flags that vary, but for the rate.
    pub(super) fn settings(&self) -> impl Iterator<Item = &str> {
        self.axes.iter().map(|(flag, _)| flag.as_str()).filter(|flag| !RATES.contains(flag))
    }

    /// Returns the flags of rates that vary.
    pub(super) fn rates(&self) -> impl Iterator<Item = &str> {
        self.axes.iter().map(|(flag, _)| flag.as_str()).filter(|flag| RATES.contains(flag))
    }

    /// Returns whether rates vary.
    pub(super) fn has_rates(&self) -> bool {
        self.rates().next().is_some()
    }

    /// Returns whether there are named variants.
    pub(super) fn has_variants(&self) -> bool {
        self.variants.iter().any(|variant| variant.name.is_some())
    }
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("the plan {} can't be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("the plan {}", path.display()))
    }
}

impl Variant {
    fn read(table: &BTreeMap<String, Value>) -> Result<Self> {
        let name = table.get("name").map(text).transpose()?;
        let mut flags = table.clone();
        flags.remove("name");
        Ok(Self { name, flags: typed(&flags)? })
    }
}

/// Returns flags as they are typed: `true` is a flag without a value, a list repeats it.
fn typed(flags: &BTreeMap<String, Value>) -> Result<Vec<String>> {
    let mut typed = Vec::new();
    for (flag, value) in flags {
        match value {
            Value::Boolean(true) => typed.push(format!("--{flag}")),
            Value::Boolean(false) => {}
            Value::Array(values) => {
                for value in values {
                    typed.push(format!("--{flag}={}", text(value)?));
                }
            }
            value => typed.push(format!("--{flag}={}", text(value)?)),
        }
    }
    Ok(typed)
}

fn text(value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        other => {
            bail!("a {} is no value for a flag: expected a text or a number", other.type_str())
        }
    })
}

impl Point {
    /// Returns its command line.
    pub(super) fn argv(&self) -> Vec<String> {
        let target = match self.target {
            Target::Run => "run",
            Target::Serve => "serve",
        };
        let mut argv: Vec<String> = ["stallfree", "bench", target].map(str::to_owned).into();
        let mut flags = self.flags.iter();
        while let Some(flag) = flags.next() {
            let (name, value) = flag.split_once('=').map_or((&**flag, None), |(n, v)| (n, Some(v)));
            let name = name.strip_prefix("--").unwrap_or_default();
            if !self.values.iter().any(|(varied, _)| varied == name) {
                argv.push(flag.clone());
            } else if value.is_none() {
                // Its value is the next word.
                flags.next();
            }
        }
        argv.extend(self.values.iter().map(|(flag, value)| format!("--{flag}={value}")));
        // The runs share a server, and its prefix cache.
        let has_seed = self.flags.iter().any(|flag| flag.starts_with("--prompt-seed"));
        if self.target == Target::Serve && !has_seed {
            argv.push(format!("--prompt-seed={}", self.prompt_seed()));
        }
        if !self.group().is_empty() && !self.flags.iter().any(|flag| flag.starts_with("--label")) {
            argv.push(format!("--label={}", self.group()));
        }
        argv
    }

    /// Returns a number that no other run of the sweep is likely to have, and that adding runs does not change (FNV-1a).
    fn prompt_seed(&self) -> u32 {
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
        self.folder().bytes().fold(2_166_136_261, step)
    }

    /// Returns its command line as text.
    pub(super) fn command_line(&self) -> String {
        console::quoted(self.argv())
    }

    /// Returns what it is called in progress and tables.
    pub(super) fn title(&self) -> String {
        let values = self.values.iter().map(|(flag, value)| format!("{flag} {value}"));
        self.names().chain(values).collect::<Vec<_>>().join(", ")
    }

    /// Returns its mode and its variant, as far as it has them.
    fn names(&self) -> impl Iterator<Item = String> + '_ {
        let mode = self.mode.map(|mode| mode.name().to_owned());
        mode.into_iter().chain(self.variant.clone())
    }

    /// Returns what it has in common with the other points of its curve.
    pub(super) fn group(&self) -> String {
        let values = self.values.iter().filter(|(flag, _)| !RATES.contains(&&**flag));
        let values = values.map(|(flag, value)| match flag.as_str() {
            "scheduler" => value.clone(),
            _ => format!("{flag} {value}"),
        });
        self.names().chain(values).collect::<Vec<_>>().join(", ")
    }

    /// Returns its folder's name.
    pub(super) fn folder(&self) -> String {
        let values = self.values.iter().map(|(flag, value)| format!("{flag}={value}"));
        let name = self.variant.iter().cloned().chain(values).collect::<Vec<_>>().join("_");
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_=.".contains(c) { c } else { '-' };
        let name: String = name.chars().map(plain).collect();
        let name = if name.is_empty() { "run".to_owned() } else { name };
        self.mode.map_or_else(|| name.clone(), |mode| format!("{}/{name}", mode.name()))
    }
}

#[cfg(test)]
mod tests;

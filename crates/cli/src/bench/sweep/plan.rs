//! Which combinations a sweep has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use toml::Value;

use super::SweepArgs;
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
    /// The variant's name, if it has one.
    pub(super) variant: Option<String>,
    /// The values of the flags that vary.
    pub(super) values: Vec<(String, String)>,
}

/// The flag whose values make a curve's points.
pub(super) const RATE: &str = "request-rate";

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
        let variants = file.variants.iter().map(Variant::read).collect::<Result<Vec<_>>>()?;
        let serve_cmd = args.serve_cmd.clone().or(file.serve_cmd);
        let target = match &serve_cmd {
            Some(_) => Target::Serve,
            None => args.target.unwrap_or(file.target),
        };
        let name = name.unwrap_or_else(|| "sweep".to_owned());
        Ok(Self { name, target, serve_cmd, flags, variants, axes })
    }

    /// Returns every combination: variants outside, then the flags in their order.
    pub(super) fn points(&self) -> Result<Vec<Point>> {
        let plain = [Variant::default()];
        let variants = if self.variants.is_empty() { &plain[..] } else { &self.variants };
        let mut points = Vec::new();
        for variant in variants {
            let mut flags = self.flags.clone();
            flags.extend(variant.flags.iter().cloned());
            let first = Point {
                target: self.target,
                flags,
                variant: variant.name.clone(),
                values: Vec::new(),
            };
            let mut open = vec![first];
            for (flag, values) in &self.axes {
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

    /// Returns the flags that vary, but for the rate.
    pub(super) fn settings(&self) -> impl Iterator<Item = &str> {
        self.axes.iter().map(|(flag, _)| flag.as_str()).filter(|flag| *flag != RATE)
    }

    /// Returns whether rates vary.
    pub(super) fn has_rates(&self) -> bool {
        self.axes.iter().any(|(flag, _)| flag == RATE)
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
        self.variant.iter().cloned().chain(values).collect::<Vec<_>>().join(", ")
    }

    /// Returns what it has in common with the other points of its curve.
    pub(super) fn group(&self) -> String {
        let values = self.values.iter().filter(|(flag, _)| flag != RATE);
        let values = values.map(|(flag, value)| match flag.as_str() {
            "scheduler" => value.clone(),
            _ => format!("{flag} {value}"),
        });
        self.variant.iter().cloned().chain(values).collect::<Vec<_>>().join(", ")
    }

    /// Returns its folder's name.
    pub(super) fn folder(&self) -> String {
        let values = self.values.iter().map(|(flag, value)| format!("{flag}={value}"));
        let name = self.variant.iter().cloned().chain(values).collect::<Vec<_>>().join("_");
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_=.".contains(c) { c } else { '-' };
        let name: String = name.chars().map(plain).collect();
        if name.is_empty() { "run".to_owned() } else { name }
    }
}

#[cfg(test)]
mod tests;

//! How the system under test is deployed: what a mode means for command lines.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Deserialize;

use super::plan::Target;
use crate::args::ReplicaSpec;

/// How the system under test is deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeploymentMode {
    /// One instance, over --tensor-parallel-size and --pipeline-parallel-size
    Simple,
    /// Some instances prefill, others decode: --replica-spec, --partition-id and their kin
    #[value(alias = "distserve", alias = "nixl")]
    Disaggregated,
}

/// Flags that say over what an engine is spread, by their long names and vLLM's short ones.
const RANKS: [&str; 4] = ["--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"];

/// Flags that mean something with several instances only.
const INSTANCES: [&str; 5] = [
    "--replica-spec",
    "--partition-id",
    "--schedule-policy",
    "--max-multiplexing-length",
    "--early-rejection",
];

/// How others of these begin.
const OF_INSTANCES: [&str; 4] = ["--prefill-", "--decode-", "--dispatch-", "--multiplexing-"];

/// A run's flags, by whom they are for.
#[derive(Debug, Default)]
pub(super) struct Deployed {
    /// The benchmark's.
    pub(super) bench: Vec<String>,
    /// The server's, where there is one.
    pub(super) server: Vec<String>,
}

impl DeploymentMode {
    /// Returns what it is called.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Disaggregated => "disaggregated",
        }
    }

    /// Returns whether a flag means something.
    pub(super) fn knows(self, flag: &str) -> bool {
        self == Self::Disaggregated || !is_of_instances(flag)
    }

    /// Leaves of a run's flags those that this mode knows. An engine in the process gets all of them; for a server, results are told
    /// what it is.
    ///
    /// # Errors
    /// A flag of the deployment has no value that it can have.
    pub(super) fn apply(self, target: Target, flags: &[String]) -> Result<Deployed> {
        let mut deployed = Deployed::default();
        for words in by_flag(flags) {
            let name = words[0].split('=').next().unwrap_or_default();
            match () {
                () if !self.knows(name) => {}
                () if is_of_instances(name) || RANKS.contains(&name) => {
                    deployed.server.extend_from_slice(words);
                }
                () => deployed.bench.extend_from_slice(words),
            }
        }
        if self == Self::Disaggregated {
            deployed.server.push("--mode=distserve".to_owned());
        }
        match target {
            Target::Run => deployed.bench.append(&mut deployed.server),
            Target::Serve => {
                let told = self.told(&deployed.server)?;
                deployed.bench.extend(told);
            }
        }
        Ok(deployed)
    }

    /// Returns the flags that tell results what a server with these flags is.
    fn told(self, server: &[String]) -> Result<Vec<String>> {
        let one = |names: &[&str]| -> Result<usize> {
            match values(server, names).last() {
                Some(value) => value.parse().with_context(|| format!("{} {value}", names[0])),
                None => Ok(1),
            }
        };
        let own = ReplicaSpec { tensor: one(&RANKS[..2])?, pipeline: one(&RANKS[2..])? };
        let size = |spec: &ReplicaSpec| spec.tensor * spec.pipeline;
        let mode = format!("--deployment-mode={}", self.name());
        if self == Self::Simple {
            let told = format!("tensor_parallel_size={}", own.tensor);
            return Ok(vec![mode, format!("--num-gpus={}", size(&own)), told_as(&told)]);
        }
        let specs = values(server, &["--replica-spec"]).into_iter().map(|text| {
            text.parse::<ReplicaSpec>().map_err(anyhow::Error::msg).context("--replica-spec")
        });
        let mut specs = specs.collect::<Result<Vec<_>>>()?;
        if specs.is_empty() {
            specs = vec![own; 2];
        }
        let num_prefill = match values(server, &["--partition-id"]).last() {
            Some(value) => value.parse().with_context(|| format!("--partition-id {value}"))?,
            None => specs.len() / 2,
        };
        let (prefill, decode) = specs.split_at(num_prefill.min(specs.len()));
        let tensor = |specs: &[ReplicaSpec]| specs.first().map_or(0, |spec| spec.tensor);
        let num_gpus: usize = specs.iter().map(size).sum();
        Ok(vec![
            mode,
            format!("--num-gpus={num_gpus}"),
            told_as(&format!("num_prefill_instances={}", prefill.len())),
            told_as(&format!("num_decode_instances={}", decode.len())),
            told_as(&format!("prefill_tensor_parallel_size={}", tensor(prefill))),
            told_as(&format!("decode_tensor_parallel_size={}", tensor(decode))),
        ])
    }
}

fn is_of_instances(flag: &str) -> bool {
    INSTANCES.contains(&flag) || OF_INSTANCES.iter().any(|prefix| flag.starts_with(prefix))
}

fn told_as(field: &str) -> String {
    format!("--metadata={field}")
}

/// Splits a command line into flags with their values. Only --replica-spec, of those that matter here, takes several; what is before
/// the first flag is by itself.
fn by_flag(flags: &[String]) -> Vec<&[String]> {
    let mut groups = Vec::new();
    let mut rest = flags;
    while let Some(first) = rest.first() {
        let takes = match (first.starts_with('-'), &**first) {
            (false, _) => 0,
            (true, "--replica-spec") => {
                rest[1..].iter().take_while(|word| word.parse::<ReplicaSpec>().is_ok()).count()
            }
            (true, "--early-rejection") => 0,
            (true, flag) if flag.contains('=') => 0,
            (true, _) => rest[1..].iter().take(1).filter(|word| !word.starts_with('-')).count(),
        };
        let (group, others) = rest.split_at(1 + takes);
        groups.push(group);
        rest = others;
    }
    groups
}

/// Returns the values of a flag that has these names.
fn values<'a>(flags: &'a [String], names: &[&str]) -> Vec<&'a str> {
    let of = |words: &'a [String]| -> Vec<&'a str> {
        match words[0].split_once('=') {
            Some((name, value)) if names.contains(&name) => vec![value],
            None if names.contains(&&*words[0]) => words[1..].iter().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    };
    by_flag(flags).into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &str = "opt-13b --device sim:x --replica-spec 2,1 1,1 1,1 --partition-id=1 -tp 4 --no-progress \
        --decode-max-num-seqs 9 --schedule-policy edf --num-prompts=8";

    fn check(mode: DeploymentMode, target: Target, bench: &str, server: &str) {
        let flags: Vec<String> = FLAGS.split_whitespace().map(str::to_owned).collect();
        let deployed = mode.apply(target, &flags).unwrap();
        assert_eq!(deployed.bench.join(" "), bench);
        assert_eq!(deployed.server.join(" "), server);
    }

    #[test]
    fn flags_go_to_whom_they_are_for() {
        use DeploymentMode::{Disaggregated, Simple};
        let load = "opt-13b --device sim:x --no-progress --num-prompts=8";
        let apart = "--replica-spec 2,1 1,1 1,1 --partition-id=1 -tp 4 --decode-max-num-seqs 9 --schedule-policy edf \
            --mode=distserve";
        check(Simple, Target::Run, &format!("{load} -tp 4"), "");
        check(Disaggregated, Target::Run, &format!("{load} {apart}"), "");
        let told = "--deployment-mode=simple --num-gpus=4 --metadata=tensor_parallel_size=4";
        check(Simple, Target::Serve, &format!("{load} {told}"), "-tp 4");
        let told = "--deployment-mode=disaggregated --num-gpus=4 --metadata=num_prefill_instances=1 \
            --metadata=num_decode_instances=2 --metadata=prefill_tensor_parallel_size=2 \
            --metadata=decode_tensor_parallel_size=1";
        check(Disaggregated, Target::Serve, &format!("{load} {told}"), apart);
    }
}

//! Every policy by name.

use crate::policy::{chunked, fastertransformer, orca, sarathi, vllm, vllm_v1};
use crate::{Error, Scheduler, SchedulerConfig};

/// A policy that can be chosen by name.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// What `--scheduler` takes.
    pub name: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// What it does, in a sentence or two.
    pub doc: &'static str,
    /// What `--scheduler-config` takes.
    pub settings: &'static [Setting],
    /// Makes it.
    pub build: Build,
}

/// Makes a policy; it fails if a setting does not do.
pub type Build = fn(&SchedulerConfig) -> Result<Box<dyn Scheduler>, Error>;

/// A policy's own setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its key.
    pub name: &'static str,
    /// What it is if it is not given, in words.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// Every policy of this crate; adding one adds one line.
pub const POLICIES: &[Policy] = &[
    sarathi::POLICY,
    vllm_v1::POLICY,
    vllm::POLICY,
    orca::POLICY,
    fastertransformer::POLICY,
    chunked::POLICY,
];

/// Policies to choose from: those of this crate and others' own.
#[derive(Clone, Debug)]
pub struct Registry {
    policies: Vec<Policy>,
}

impl Default for Registry {
    /// Has [`POLICIES`].
    fn default() -> Self {
        Self { policies: POLICIES.to_vec() }
    }
}

impl Registry {
    /// Adds a policy; one of the same name is replaced.
    pub fn register(&mut self, policy: Policy) {
        self.policies.retain(|known| known.name != policy.name);
        self.policies.push(policy);
    }

    /// Returns the policies.
    #[must_use]
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Returns the policy of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, name: &str) -> Result<&Policy, Error> {
        self.policies.iter().find(|policy| policy.name == name).ok_or_else(|| {
            Error::UnknownPolicy {
                name: name.to_owned(),
                known: self.policies.iter().map(|policy| policy.name).collect(),
            }
        })
    }

    /// Makes the policy of that name.
    ///
    /// # Errors
    /// There is none, it lacks one of the settings, or a setting's value does not do.
    pub fn build(&self, name: &str, config: &SchedulerConfig) -> Result<Box<dyn Scheduler>, Error> {
        let policy = self.find(name)?;
        let known = || policy.settings.iter().map(|setting| setting.name);
        match config.settings.keys().find(|&key| known().all(|name| name != key)) {
            Some(key) => Err(Error::UnknownSetting {
                policy: policy.name,
                key: key.clone(),
                known: known().collect(),
            }),
            None => (policy.build)(config),
        }
    }
}

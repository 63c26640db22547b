//! A server for this process alone, which the terminal chat talks to.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::{front, report, runtime};
use crate::args::ServeArgs;
use crate::config::{DeploymentConfig, FrontConfig};
use crate::environment::Environment;
use crate::{instance, model_source};

/// A server on a port that only this machine sees; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct PrivateServer {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl PrivateServer {
    /// Starts one, with the flags of a `serve`.
    ///
    /// # Errors
    /// As [`super::run`].
    pub(crate) fn start(args: &ServeArgs, environment: &Environment) -> Result<Self> {
        let config = DeploymentConfig::resolve(&args.engine, &args.deployment, environment)?;
        let front = FrontConfig {
            api_keys: Vec::new(),
            ..FrontConfig::resolve(&args.server, &config, environment)?
        };
        let found = model_source::find(&args.engine.model, config.base.weights, environment)?;
        let instance = instance::start(&found.path, found.name(), &config)?;
        instance.reports.iter().for_each(report::warn);
        let state = front::state(instance, &found, front);
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(stallfree_server::serve(listener, state, std::future::pending()));
        Ok(Self { address, runtime: Some(runtime) })
    }

    /// Returns where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

//! `stallfree serve`: takes the port, starts the engine, answers until told to stop.

mod front;
mod private;
pub(crate) mod report;

use anyhow::{Context as _, Result};
use stallfree_core::{Clock as _, WallClock};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

use crate::args::ServeArgs;
use crate::config::{DeploymentConfig, FrontConfig, Nodes};
use crate::environment::Environment;
use crate::{instance, model_source, signals};

pub(crate) use private::PrivateServer;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// What the front's threads are called.
pub(crate) const FRONT_THREADS: &str = "stallfree-http";

/// Runs a server until SIGTERM or SIGINT.
///
/// # Errors
/// A flag, the port, the model or the machine doesn't allow it.
pub(crate) fn run(args: &ServeArgs, environment: &Environment) -> Result<()> {
    let clock = WallClock::start();
    if let Some(nodes) = Nodes::of(&args.engine.cache)?.filter(|nodes| nodes.node > 0) {
        return run_node(args, &nodes, environment);
    }
    let config = DeploymentConfig::resolve(&args.engine, &args.deployment, environment)?;
    let front = FrontConfig::resolve(&args.server, &config, environment)?;
    let weights = config.base.weights;
    // A port that is taken shows now, not after minutes of loading.
    let socket = bind(&front)?;
    let found = model_source::find(&args.engine.model, weights, environment)?;
    let found_at = clock.now();
    let name = front.served_model_names.first().map_or(found.name(), String::as_str).to_owned();
    let instance = instance::start(&found.path, &name, &config)?;
    report::print(&instance.reports, found_at.since_start(), clock.now().since_start());
    let state = front::state(instance, &found, front);
    let runtime = runtime()?;
    runtime.block_on(async {
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        let stop = signals::first()?;
        report::invite(address, &name, !state.config().api_keys.is_empty());
        let engine = state.clone();
        stallfree_server::serve(listener, state, async move {
            stop.await;
            let stats = engine.engine().stats();
            tracing::info!(
                "Finishing {} running and {} waiting requests; Ctrl-C stops at once",
                stats.num_running,
                stats.num_waiting
            );
        })
        .await;
        Ok::<_, anyhow::Error>(())
    })?;
    tracing::info!("Stopped");
    Ok(())
}

/// Computes for node 0, which hears why if this node has no model or cannot run it.
fn run_node(args: &ServeArgs, nodes: &Nodes, environment: &Environment) -> Result<()> {
    let config = DeploymentConfig::resolve(&args.engine, &args.deployment, environment);
    let found = config.and_then(|config| {
        let weights = config.base.weights;
        let found = model_source::find(&args.engine.model, weights, environment)?;
        Ok((instance::open(&found.path, weights)?, config.base))
    });
    let (checkpoint, config) = found.inspect_err(|error| instance::decline(nodes, error))?;
    instance::run_node(&checkpoint, &config)
}

/// Takes the port, but lets nobody connect before there is somebody to answer.
fn bind(front: &FrontConfig) -> Result<TcpSocket> {
    let address = front.address;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that ended a moment ago leaves the port in a state that only matters to its own connections.
    socket.set_reuseaddr(true)?;
    socket
        .bind(address)
        .with_context(|| format!("can't listen on {address}; choose another --port or --host"))?;
    Ok(socket)
}

/// Makes the front's threads: few, because the cores belong to the model.
pub(crate) fn runtime() -> Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cores / 4).clamp(1, 8))
        .thread_name(FRONT_THREADS)
        .enable_all()
        .build()?;
    Ok(runtime)
}

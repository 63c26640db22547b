//! The engines of a deployment: builds them, and puts them on threads or on a virtual clock.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use stallfree_cluster::{
    Cluster, ClusterConfig, ClusterReplay, DispatchConfig, GateConfig, Role, Start,
};
use stallfree_core::{Clock, InstanceId, LeaseBook, WallClock};
use stallfree_engine::{EngineHandle, Replay, StepObserver, ThreadedEngine, VirtualTime};
use stallfree_models::Checkpoint;
use stallfree_scheduler::SchedulerConfig;
use stallfree_sim::SimNetwork;
use stallfree_transfer::Ports;

use super::{Built, build, open, start_device};
use crate::config::DeploymentConfig;

/// An engine of a deployment that nothing drives yet.
#[derive(Debug)]
pub(crate) struct Member {
    /// What it is for.
    pub(crate) role: Role,
    /// The engine, and what building it found.
    pub(crate) built: Built,
    /// What it keeps for the others.
    leases: LeaseBook,
}

/// An engine's place in a deployment, as its executor needs to know it.
pub(super) struct Seat {
    pub(super) instance: InstanceId,
    pub(super) leases: LeaseBook,
    pub(super) ports: Ports,
    pub(super) network: SimNetwork,
}

/// Makes who watches an instance.
pub(crate) type Observers<'a> =
    &'a mut dyn FnMut(InstanceId, &SchedulerConfig) -> Box<dyn StepObserver>;

/// Builds a deployment's engines for the model at `path`, without what only text needs.
///
/// # Errors
/// The model can't be read or is not supported, or the machine is too small for it.
pub(crate) fn members(
    path: &Path,
    deployment: &DeploymentConfig,
    observers: Observers<'_>,
) -> Result<Vec<Member>> {
    let (_, first) = deployment.instances.first().context("a deployment needs an instance")?;
    // More models can be simulated than computed.
    let checkpoint = match first.device.is_simulated() {
        true => None,
        false => Some(open(path, first.weights)?),
    };
    members_of(checkpoint.as_ref(), path, deployment, &Ports::default(), observers)
}

/// Does the same for a model that is open already, if it has to be.
pub(super) fn members_of(
    checkpoint: Option<&Checkpoint>,
    path: &Path,
    deployment: &DeploymentConfig,
    ports: &Ports,
    observers: Observers<'_>,
) -> Result<Vec<Member>> {
    let network = SimNetwork::default();
    let mut members = Vec::new();
    for (index, (role, config)) in (0..).zip(&deployment.instances) {
        if deployment.instances.len() > 1 {
            tracing::info!("Instance {index} ({role})");
        }
        let (instance, leases) = (InstanceId(index), LeaseBook::default());
        let (ports, network) = (ports.clone(), network.clone());
        let seat = Seat { instance, leases: leases.clone(), ports, network };
        let started = start_device(checkpoint, path, config, Some(&seat))?;
        let built = build(started, config, |scheduler| Some(observers(instance, scheduler)))?;
        members.push(Member { role: *role, built, leases });
    }
    Ok(members)
}

/// Starts a thread for each engine, and waits for instances in other processes if there is a `gate`. At most `max_waiting` requests wait
/// on each.
///
/// # Errors
/// The system refuses a thread, or the engines don't go together.
pub(crate) fn on_threads(
    members: Vec<Member>,
    gate: Option<GateConfig>,
    deployment: &DeploymentConfig,
    max_waiting: usize,
) -> Result<Arc<dyn EngineHandle>> {
    let clock: Arc<dyn Clock> = Arc::new(WallClock::start());
    let mut starts = starts(members);
    // A single engine refuses nothing for its objectives.
    if starts.len() > 1 || gate.is_some() || deployment.dispatch.early_rejection {
        let dispatch = stallfree_cluster::build(&deployment.dispatch)?;
        let config = ClusterConfig { dispatch, clock, max_waiting, gate };
        return Ok(Arc::new(Cluster::spawn(starts, config)?));
    }
    let only = starts.pop().context("a deployment needs an instance")?;
    let engine = ThreadedEngine::spawn(only.engine, clock, max_waiting);
    Ok(Arc::new(engine.context("the engine's thread can't be started")?))
}

/// Puts the engines on a virtual clock.
///
/// # Errors
/// There is no such dispatch policy.
pub(crate) fn in_virtual_time(
    members: Vec<Member>,
    dispatch: &DispatchConfig,
) -> Result<Box<dyn VirtualTime>> {
    let mut starts = starts(members);
    if starts.len() > 1 || dispatch.early_rejection {
        let dispatch = stallfree_cluster::build(dispatch)?;
        return Ok(Box::new(ClusterReplay::new(starts, dispatch)));
    }
    let only = starts.pop().context("a deployment needs an instance")?;
    Ok(Box::new(Replay::new(only.engine)))
}

fn starts(members: Vec<Member>) -> Vec<Start> {
    let start =
        |Member { role, built, leases }: Member| Start { engine: built.engine, role, leases };
    members.into_iter().map(start).collect()
}
